"""`clip-anatomy pairs`: why are these two similar?"""

from clip_anatomy.cli.options import AllowUrls, Demo, Images, ModelOptions, OutputOptions, Texts, print_notes


def pairs(
    *images: Images,
    texts: Texts = None,
    how: str = "split",
    kept: float = 0.5,
    forwards: int | None = None,
    seed: int = 0,
    demo: Demo = False,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    allow_urls: AllowUrls = False,
) -> int:
    """Say why a picture and a text, two pictures or two texts are similar: part by part of both.

    Writes index.html (point at a word and its patches light up, and the other way round), pairs.png and pairs.json into a folder.

        clip-anatomy pairs photo.jpg --text "a dog on the beach"
        clip-anatomy pairs photo.jpg other.jpg
        clip-anatomy pairs --text "a dog" --text "a puppy"
        clip-anatomy pairs photo.jpg --text "a dog" --how removal

    Args:
        how: split (exact shares of the cosine) | removal (what both do together, by runs without some patches and words: FIxLIP).
        kept: of removal, the probability of each part to be kept.
        forwards: of removal, runs a side; by default as many as bring the largest standard error to a tenth of the largest value.
        seed: of removal.

    Returns:
        Exit code: 0 done.
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from pathlib import Path
    from typing import Any, cast

    from clip_anatomy.cli.pictures import demo_notes, output_beside
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.loading.typed_texts import read_texts
    from clip_anatomy.progress import note, shown

    items: list[Any] = [one if "://" in one else Path(one) for one in images] + read_texts(texts or [])
    if demo and not items:
        from clip_anatomy.data.world.bundled_pictures import bundled

        path, (text, _) = next(iter(bundled().items()))
        items = [path, text]
    if len(items) != 2:
        raise BadSpec(
            f'{len(items)} pictures and texts were given; two were expected. Type: clip-anatomy pairs photo.jpg --text "a dog"'
        )
    folder = output.folder("pairs")
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.report import figures, pairs_page
        from clip_anatomy.split.pairs import pairs as run

        if folder is not None:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, pairs_page.KIND, images))
        clip = opening.load()
        result = run(
            clip, *items, how=cast("Any", how), kept=kept, forwards=forwards, seed=seed, allow_urls=allow_urls, progress=progress
        )  # fmt: skip
        result = replace(result, notes=(*demo_notes(opening.model, images), *result.notes))
        if target is not None:
            pairs_page.write(result, target)
    print_notes(result.notes)
    output.show(result)
    if folder is not None:
        note(f"report: {folder / 'index.html'}")
    return 0
