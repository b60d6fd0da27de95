"""`clip-anatomy pairs`: why are these two similar?"""

from clip_anatomy.cli.options import (
    AllowUrls,
    AsJson,
    Device,
    Model,
    Out,
    Texts,
    Weights,
    output_folder,
    print_json,
    print_notes,
)


def pairs(
    *images: str,
    texts: Texts = None,
    how: str = "split",
    kept: float = 0.5,
    forwards: int | None = None,
    seed: int = 0,
    demo: bool = False,
    model: Model = "demo",
    weights: Weights = None,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    allow_urls: AllowUrls = False,
) -> int:
    """Say why a picture and a text, two pictures or two texts are similar: part by part of both.

    Writes index.html (point at a word and its patches light up, and the other way round), pairs.png and pairs.json into a folder.

        clip-anatomy pairs photo.jpg --text "a dog on the beach"
        clip-anatomy pairs photo.jpg other.jpg
        clip-anatomy pairs --text "a dog" --text "a puppy"
        clip-anatomy pairs photo.jpg --text "a dog" --how removal

    Args:
        images: one picture, or two.
        how: split (exact shares of the cosine) | removal (what both do together, by runs without some patches and words: FIxLIP).
        kept: of removal, the probability of each part to be kept.
        forwards: of removal, runs a side; by default as many as bring the largest standard error to a tenth of the largest value.
        seed: of removal.
        demo: take the first bundled picture and its description.
        out: folder to write; by default clip-anatomy-pairs, and none with --json.

    Returns:
        Exit code: 0 done.
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from pathlib import Path
    from typing import Any, cast

    from clip_anatomy.cli.pictures import demo_notes, staged_beside
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.loading.typed_texts import read_texts
    from clip_anatomy.progress import note, say, shown

    items: list[Any] = [one if "://" in one else Path(one) for one in images] + read_texts(texts or [])
    if demo and not items:
        from clip_anatomy.data.world.bundled_pictures import bundled

        path, (text, _) = next(iter(bundled().items()))
        items = [path, text]
    if len(items) != 2:
        raise BadSpec(
            f'{len(items)} pictures and texts were given; two were expected. Type: clip-anatomy pairs photo.jpg --text "a dog"'
        )
    folder = output_folder(out, "clip-anatomy-pairs", as_json=as_json)
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {model}"))
        from clip_anatomy.loading.load import load
        from clip_anatomy.report import figures, pairs_page
        from clip_anatomy.split.pairs import pairs as run

        if folder is not None:
            figures.need_matplotlib()
        staging = stack.enter_context(staged_beside(folder, pairs_page.KIND, images))
        clip = load(model, weights=weights, device=device)
        found = run(
            clip, *items, how=cast("Any", how), kept=kept, forwards=forwards, seed=seed, allow_urls=allow_urls, progress=progress
        )  # fmt: skip
        found = replace(found, notes=(*demo_notes(model, images), *found.notes))
        if staging is not None:
            pairs_page.write(found, staging)
    print_notes(found.notes)
    if as_json:
        print_json(found.to_dict())
    else:
        say(found.summary())
    if folder is not None:
        note(f"report: {folder / 'index.html'}")
    return 0
