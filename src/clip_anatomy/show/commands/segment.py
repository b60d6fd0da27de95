"""`clip-anatomy segment`: cut out of these pictures what a text says."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clip_anatomy.show.commands.explain import DEMO_NOTE

DEFAULT_OUT = Path("clip-anatomy-segment")


def segment(
    *images: str,
    text: Annotated[list[str] | None, Parameter(alias="-t")] = None,
    background: list[str] | None = None,
    threshold: str = "otsu",
    method: str = "decomposition",
    size: str = "whole",
    window: int | None = None,
    stride: int | None = None,
    refine: str | None = None,
    demo: bool = False,
    model: Annotated[str, Parameter(alias="-m")] = "demo",
    weights: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    strict: bool = False,
    device: str = "auto",
    allow_urls: bool = False,
) -> int:
    """Cut out of pictures what texts say: masks, and points and boxes for SAM.

    Writes into a folder: a mask (PNG with the labels) and a painting for each picture, masks.coco.json (COCO's format with run
    lengths), masks.npz, prompts.json (points and boxes for SAM), contact-sheet.png, index.html and segment.json.

        clip-anatomy segment photo.jpg --text "a dog"
        clip-anatomy segment holiday/ --text "a dog" --text "a cat" --background grass --background sky --refine pamr

    Args:
        images: pictures, or folders of pictures.
        text: one thing to cut out, or several that compete for the pixels.
        background: a text that takes pixels and is no label; repeat it for several.
        threshold: otsu (two groups of least spread) | mean | half | none | a number from 0 to 1 (a share of the map's range).
        method: a method of heatmap.
        size: whole (nothing cut off, the model's own short side) | crop (the model's own) | 512 (short side) | 336x448.
        window: look through square windows of so many pixels, for large pictures.
        stride: from one window to the next; by default half a window.
        refine: pamr: let the masks follow the picture's edges. Off by default, and told wherever it was used.
        demo: cut out of the bundled pictures, with their own descriptions if no text is given.
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model.
        weights: a checkpoint file for open_clip:NAME.
        out: folder to write; by default clip-anatomy-segment, and none with --json.
        as_json: print shares, prompts and COCO masks as JSON on stdout; without --out nothing is written.
        strict: exit with 1 if any picture could not be read (the others are done all the same).
        device: auto, cpu, cuda, cuda:1, mps.
        allow_urls: fetch pictures given as http(s) addresses.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack

    from clip_anatomy.show.commands.heatmap import sources_of
    from clip_anatomy.show.progress import note, progress
    from clip_anatomy.show.staging import REPORT
    from clip_anatomy.show.staging import as_json as json_text

    folder = out if out is not None or as_json else DEFAULT_OUT
    with ExitStack() as stack:
        with progress(f"opening {model}"):
            from clip_anatomy.model.load import load
            from clip_anatomy.show.maps_page import cutout
            from clip_anatomy.show.maps_page.gather import asked_of, checked_methods, parsed_size
            from clip_anatomy.show.staging import staged

            looked = parsed_size(size)
            sources, described = sources_of(images, demo, "segment")
            staging = None if folder is None else stack.enter_context(staged(folder, cutout.KIND))
            clip = load(model, weights=weights, device=device)
        questions, left_out = asked_of(text or described, clip.tokenizer)
        behind = [question.text for question in asked_of(background, clip.tokenizer)[0]] if background else []
        given: dict[str, Any] = {
            "method": _one(checked_methods(clip, [method])),
            "background": behind,
            "threshold": threshold,
            "size": looked,
            "window": window,
            "stride": stride,
            "refine": refine,
        }
        notes = [*([DEMO_NOTE] if model == "demo" and not demo else []), *left_out]
        found = cutout.walk(clip, sources, questions, given, staging, notes=notes, allow_urls=allow_urls)
    for said in (*notes, *(f"“{q.short}”: {said}" for q in questions for said in q.notes)):
        note(f"note: {said}")
    for _, error in found.failed:
        note(f"not read: {error}")
    if as_json:
        print(json_text(cutout.as_dict(clip, questions, found, notes)), end="")
    else:
        _table(found.images)
    note(found.how)
    if folder is not None:
        note(f"masks: {folder / REPORT}")
    return 1 if strict and found.failed else 0


def _one(methods: tuple[str, ...]) -> str:
    from clip_anatomy.errors import BadSpec

    if len(methods) != 1:
        raise BadSpec("masks are cut from one method's maps. Type --method decomposition")
    return methods[0]


def _table(images: list[dict[str, Any]]) -> None:
    """Print for each picture and text how much it holds, and its largest box."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clip_anatomy.show.texts import shorten

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    view = Table(pad_edge=False)
    for name in ("picture", "text", "share of the picture", "regions", "largest box (left, top, right, bottom)"):
        view.add_column(
            name, justify="right" if name in ("share of the picture", "regions") else "left", overflow="fold"
        )
    for image in images:
        for one in image["prompts"]:
            box = ", ".join(f"{edge:.0f}" for edge in one["boxes"][0]) if one["boxes"] else ""
            name, text = Text(shorten(Path(image["image"]).name, 32)), Text(shorten(one["text"], 40))
            view.add_row(name, text, f"{image['shares'][one['text']]:.1%}", str(len(one["boxes"])), box)
    console.print(view)
