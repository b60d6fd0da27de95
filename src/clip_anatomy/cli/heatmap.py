"""`clip-anatomy heatmap`: where in these pictures is this text answered?"""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clip_anatomy.cli.explain import DEMO_NOTE

DEFAULT_OUT = Path("clip-anatomy-heatmap")


def heatmap(
    *images: str,
    text: Annotated[list[str] | None, Parameter(alias="-t")] = None,
    method: list[str] | None = None,
    size: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    replace_sinks: bool = False,
    layers: bool = False,
    words: bool = False,
    colours: str = "signed",
    sanity: bool = False,
    sanity_pictures: int = 8,
    demo: bool = False,
    model: Annotated[str, Parameter(alias="-m")] = "demo",
    weights: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    strict: bool = False,
    device: str = "auto",
    allow_urls: bool = False,
) -> int:
    """Show where in pictures texts are answered: overlays on the original pixels, contact sheets, one page with everything.

    Writes into a folder: an overlay for each picture, text and method, contact-sheet.png, index.html and heatmap.json.

        clip-anatomy heatmap photo.jpg --text "a dog" --text "a cat"
        clip-anatomy heatmap holiday/ --text "a dog" --method all --size whole
        clip-anatomy heatmap photo.jpg --text "a dog on a sofa" --layers --words

    Args:
        images: pictures, or folders of pictures.
        text: what to look for; repeat it for several. Most methods compare the texts with each other.
        method: one method or several (repeat it, or separate by commas), or all; methods stand side by side on the contact sheet. By default decomposition: the exact share of the cosine that was read from each place.
        size: crop (the model's own, the default) | whole (nothing cut off) | 512 (short side) | 336x448 (row x col).
        window: look through square windows of so many pixels, for large pictures; without --size at the picture's own size.
        stride: from one window to the next; by default half a window.
        replace_sinks: give patches that the model looks at whatever they show the mean of the places around them.
        layers: also which layer read it: a GIF for each picture, a slider on the page.
        words: also a map for every word of each text.
        colours: signed (orange for, blue against) | heat (each map from its lowest to its highest value).
        sanity: also ask whether the maps mean anything: random texts, random weights, a contrast text, sinks, and what happens to the model when patches are taken out in the order of the map.
        sanity_pictures: judge the first so many; each costs some 150 forwards a method.
        demo: look at the bundled pictures, with their own descriptions if no text is given.
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model.
        weights: a checkpoint file for open_clip:NAME.
        out: folder to write; by default clip-anatomy-heatmap, and none with --json.
        as_json: print all maps as JSON on stdout; without --out nothing is drawn or written.
        strict: exit with 1 if any picture could not be read (the others are done all the same).
        device: auto, cpu, cuda, cuda:1, mps.
        allow_urls: fetch pictures given as http(s) addresses.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from clip_anatomy.atomic_output import REPORT
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.progress import note, progress

    if sanity_pictures < 1:
        raise BadSpec(f"--sanity-pictures {sanity_pictures}: at least one. Type --sanity --sanity-pictures 8")
    if colours not in ("signed", "heat"):
        raise BadSpec(f"--colours {colours} is not known. Type --colours signed or --colours heat")
    if stride is not None and window is None:
        raise BadSpec(f"--stride {stride} is the step between windows. Type --window 224 --stride {stride}")
    if layers and window is not None:
        raise BadSpec("--layers looks at a picture once, without windows. Type --layers --size 448")
    folder = out if out is not None or as_json else DEFAULT_OUT
    with progress(f"opening {model}"):
        from clip_anatomy.report import heatmap_run as run
        from clip_anatomy.report.map_files import tell
        from clip_anatomy.report.map_gather import Asked, checked_methods, parsed_size
        from clip_anatomy.report.map_request import opened

    looked = parsed_size(size)
    given = (("window", window), ("stride", stride), ("replace_sinks", replace_sinks or None))
    options = tuple((name, value) for name, value in given if value is not None)
    judged = None
    with opened(
        images, text, run.KIND, folder, verb="heatmap", demo=demo, model=model, weights=weights, device=device,
        allow_urls=allow_urls, notes=[DEMO_NOTE] if model == "demo" and not demo else [],
    ) as request:  # fmt: skip
        methods = checked_methods(request.clip, method or [])
        asked = Asked(request.texts, methods, looked, options, layers, words)
        found = run.walk(request, asked, colours)
    if sanity:
        from clip_anatomy.report.map_sanity import judge

        judged = judge(request, asked, sanity_pictures)
    tell(request, found)
    if as_json:
        held = run.as_dict(request, asked, found)
        print(json_text(held if judged is None else {**held, "sanity": judged.to_list()}), end="")
    else:
        _table(found.images, len(methods) > 1, "" if folder is None else str(folder / run.KIND.mark))
        if judged is not None:
            print(f"\n{judged.table()}")
    if folder is not None:
        note(f"maps: {folder / REPORT}")
    return 1 if strict and found.failed else 0


def _table(images: list[dict[str, Any]], several: bool, file: str) -> None:
    """Print for each picture, method and text where its map is highest."""
    from clip_anatomy.report.map_lines import printed
    from clip_anatomy.report.typed_texts import shorten
    from clip_anatomy.split.explanation import signed

    def row(one: dict[str, Any]) -> list[str]:
        x, y = one["peak"]
        ends = signed(one["lowest"]), signed(one["highest"])
        return [*([one["method"]] if several else []), shorten(one["text"], 40), *ends, f"{x:.0f}, {y:.0f}"]

    titles = [*(["method"] if several else []), "text", ">lowest", ">highest", ">at (x, y)"]
    printed(titles, [(Path(image["image"]).name, [row(one) for one in image["maps"]]) for image in images], file)
