"""`clip-anatomy segment`: cut out of these pictures what a text says."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clip_anatomy.cli.explain import DEMO_NOTE

DEFAULT_OUT = Path("clip-anatomy-segment")


def segment(
    *images: str,
    text: Annotated[list[str] | None, Parameter(alias="-t")] = None,
    background: list[str] | None = None,
    together: list[str] | None = None,
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
        clip-anatomy segment holiday/ -t "a dog" -t "a cat" --background grass

    Args:
        images: pictures, or folders of pictures.
        text: one thing to cut out, or several that compete for the pixels.
        together: texts whose points for SAM are wanted together, joined by +, as "a dog + a cat"; repeat it for several groups. By default all.
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
    from clip_anatomy.atomic_output import REPORT
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.progress import note, progress

    folder = out if out is not None or as_json else DEFAULT_OUT
    with progress(f"opening {model}"):
        from clip_anatomy.maps.map_texts import Texts
        from clip_anatomy.report import segment_run as cutout
        from clip_anatomy.report.map_files import tell
        from clip_anatomy.report.map_gather import asked_of, checked_methods, parsed_size
        from clip_anatomy.report.map_request import opened

    looked = parsed_size(size)
    with opened(
        images, text, cutout.KIND, folder, verb="segment", demo=demo, model=model, weights=weights, device=device,
        allow_urls=allow_urls, notes=[DEMO_NOTE] if model == "demo" and not demo else [],
    ) as request:  # fmt: skip
        clip = request.clip
        behind = [question.text for question in asked_of(background, clip.tokenizer)[0]] if background else []
        given: dict[str, Any] = {
            "method": _one(checked_methods(clip, [method])),
            "background": Texts.of(clip, behind) if behind else (),
            "threshold": threshold,
            "size": looked,
            "window": window,
            "stride": stride,
            "refine": refine,
        }
        found = cutout.walk(request, given, groups_of(together or [], request.texts.names))
    tell(request, found)
    if as_json:
        print(json_text(cutout.as_dict(request, found)), end="")
    else:
        _table(found.images, "" if folder is None else str(folder / cutout.KIND.mark))
    note(found.how)
    if folder is not None:
        note(f"masks: {folder / REPORT}")
    return 1 if strict and found.failed else 0


def groups_of(wanted: list[str], texts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Groups of texts as typed; all of them together where nothing was typed and there are several.

    Raises:
        BadSpec: one that was not asked for.

    Example:
        >>> groups_of(["a dog + a cat"], ("a cat", "a dog", "grass"))
        (('a dog', 'a cat'),)
    """
    from clip_anatomy.errors import BadSpec

    found: list[tuple[str, ...]] = []
    for group in wanted:
        parts = [part.strip() for part in group.split(" + ")] if group not in texts else [group]
        for part in (part for part in parts if part not in texts):
            raise BadSpec(f'--together {group!r}: {part!r} is not among the texts. Type also: --text "{part}"')
        found.append(tuple(dict.fromkeys(parts)))
    return tuple(found) if wanted or len(texts) < 2 else (texts,)


def _one(methods: tuple[str, ...]) -> str:
    from clip_anatomy.errors import BadSpec

    if len(methods) != 1:
        raise BadSpec("masks are cut from one method's maps. Type --method decomposition")
    return methods[0]


def _table(images: list[dict[str, Any]], file: str) -> None:
    """Print for each picture and text how much it holds, and its largest box."""
    from clip_anatomy.report.map_lines import printed
    from clip_anatomy.report.typed_texts import shorten

    def row(image: dict[str, Any], one: dict[str, Any]) -> list[str]:
        box = ", ".join(f"{edge:.0f}" for edge in one["boxes"][0]) if one["boxes"] else ""
        return [shorten(one["text"], 36), f"{image['shares'][one['text']]:.1%}", str(len(one["boxes"])), box]

    titles = ["text", ">share", ">regions", ">largest box (x0, y0, x1, y1)"]
    printed(titles, [(Path(i["image"]).name, [row(i, one) for one in i["prompts"]]) for i in images], file)
