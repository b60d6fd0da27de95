"""`clip-anatomy heatmap`: where in these pictures does this text match?"""

from pathlib import Path
from typing import TYPE_CHECKING

from clip_anatomy.cli.large import FilmRate, LargeRequest, TilesLevel, draw_large, is_large
from clip_anatomy.cli.options import (
    EngineOptions,
    Images,
    ModelOptions,
    OutputOptions,
    Pictures,
    ReadingOptions,
    Registers,
    Size,
    Stride,
    Templates,
    Texts,
    Window,
    print_json,
    print_notes,
)

if TYPE_CHECKING:
    from clip_anatomy.evaluation.method_checks import MethodChecks
    from clip_anatomy.maps.map_set import MapSet


def heatmap(
    *images: Images,
    texts: Texts = None,
    templates: Templates = None,
    method: list[str] | None = None,
    against: str = "neutral",
    size: Size = None,
    window: Window = None,
    stride: Stride = None,
    replace_sinks: bool = False,
    registers: Registers = 0,
    layers: bool = False,
    words: bool = False,
    colours: str = "signed",
    film: FilmRate = None,
    tiles: TilesLevel = None,
    sanity: bool = False,
    sanity_pictures: int = 8,
    pictures: Pictures = None,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    reading: ReadingOptions = ReadingOptions(),
    where: EngineOptions = EngineOptions(),
) -> int:
    """Show where in pictures texts match: overlays on the original pixels, contact sheets, one page with everything.

    Writes into a folder: an overlay for each picture, text and method, contact-sheet.png, index.html and heatmap.json.

        clip-anatomy heatmap photo.jpg --text "a dog" --text "a cat"
        clip-anatomy heatmap holiday/ --text "a dog" --method all --size whole
        clip-anatomy heatmap photo.jpg --text "a dog on a sofa" --layers --words
        clip-anatomy heatmap walk.mp4 --text "a dog" --film 5
        clip-anatomy heatmap scene.tif --text "a river" --tiles 0 --window 224 --stride 112

    Args:
        method: one method or several (repeat it, or separate by commas), or all; methods stand side by side on the contact sheet. By default auto, the decomposition: the exact share of the cosine that was read from each place. Which for what: decomposition to explain an answer; grad_eclip for what would change it; scclip for which text each place belongs to; attention for where the model looked whatever the text.
        against: what is subtracted from every text by decomposition and surgery: neutral (the mean of descriptions of anything) | "each other" (the mean of the texts, as published; of two texts the second map mirrors the first) | nothing | a text of your own ("" for the empty one).
        replace_sinks: give attention sinks (patches attended to whatever they show) the mean of the places around them.
        layers: also which layer read it: a GIF for each picture, a slider on the page.
        words: also a map for every word of each text, and how much the match hangs on it (Grad-ECLIP on the text side).
        colours: signed (orange for, blue against) | heat (each map from its lowest to its highest value).
        sanity: also check whether the maps mean anything: negative texts, random weights, a contrast text, sinks, and what happens to the model when patches are taken out in the order of the map.
        sanity_pictures: check the first so many; each costs some 150 forwards a method.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, output_beside
    from clip_anatomy.progress import shown

    _refuse_contradictions(sanity_pictures, colours, window, stride, layers=layers)
    if is_large(images, film, tiles):
        typed_options = {
            "window": window, "stride": stride, "templates": templates, "registers": registers or None,
            "replace_sinks": replace_sinks or None, "against": None if against == "neutral" else against,
        }  # fmt: skip
        large = LargeRequest(
            "heatmap", images, film, tiles, texts, ",".join(method or ["auto"]), colours=colours, pictures=pictures, size=size,
            options=typed_options, refused={"layers": layers, "words": words, "sanity": sanity, "demo": reading.demo},
        )  # fmt: skip
        return draw_large(large, opening, output, reading)
    folder = output.folder("heatmap")
    collection, descriptions = asked_pictures(images, "heatmap", demo=reading.demo)
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.evaluation.method_checks import method_checks
        from clip_anatomy.images.input_size import parse_size
        from clip_anatomy.loading.registered_clip import registered
        from clip_anatomy.loading.typed_texts import typed_texts
        from clip_anatomy.maps.map_set import checked_methods, map_set
        from clip_anatomy.report import maps_folder

        wanted = parse_size(size)
        target = stack.enter_context(output_beside(folder, maps_folder.KIND, images))
        engine = stack.enter_context(where.open())
        clip = opening.load()
        if registers:
            clip = registered(clip, registers)
        typed, notes = typed_texts(texts or descriptions, clip.tokenizer)
        given = {"window": window, "stride": stride, "replace_sinks": replace_sinks or None}
        result = map_set(
            clip, collection, [text.text for text in typed], checked_methods(clip, method or []), against=against, templates=templates, size=wanted, layers=layers,
            words=words, allow_urls=reading.allow_urls, skip_bad=True, engine=engine, progress=progress,
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
        result = replace(
            result, typed=tuple(typed), notes=(*demo_notes(opening.model, images), *notes), colours=colours
        )
        result = result.with_failed(named_failures(result.failed))
        checks = method_checks(result, sanity_pictures, progress) if sanity else None
        if target is not None:
            maps_folder.write(result, target, progress, pictures=pictures, checks=checks)
    print_notes(result.all_notes, result.failed)
    _print(result, checks, folder, as_json=output.as_json)
    return reading.exit_code(result.failed)


def _print(result: "MapSet", checks: "MethodChecks | None", folder: Path | None, *, as_json: bool) -> None:
    from clip_anatomy.evaluation.sanity_result import counted
    from clip_anatomy.progress import note, say
    from clip_anatomy.report.map_overlay import empty_maps
    from clip_anatomy.studies.store_columns import few

    if as_json:
        print_json(result.to_dict() if checks is None else {**result.to_dict(), "sanity": checks.to_list()})
    else:
        say(result.table("" if folder is None else str(folder / "heatmap.json")))
        if empty := empty_maps(result):
            say(f"nothing to show on the scale of its method: {few(empty)}")
        if checks is not None:
            say(f"\n{checks.table()}")
            if checks.left:
                every = checks.images + checks.left
                say(
                    f"\n(the first {counted(checks.images, 'picture')}; {checks.left:,} more drawn and not judged: "
                    f"--sanity-pictures {every})"
                )
    if folder is not None:
        note(f"maps: {folder / 'index.html'}")


def _refuse_contradictions(
    sanity_pictures: int, colours: str, window: int | None, stride: int | None, *, layers: bool
) -> None:
    """Raise BadSpec where options have no meaning, alone or together."""
    from clip_anatomy.errors import BadSpec

    if sanity_pictures < 1:
        raise BadSpec(f"--sanity-pictures {sanity_pictures}: at least one. Type --sanity --sanity-pictures 8")
    if colours not in ("signed", "heat"):
        raise BadSpec(f"--colours {colours} is not known. Type --colours signed or --colours heat")
    if stride is not None and window is None:
        raise BadSpec(f"--stride {stride} is the step between windows. Type --window 224 --stride {stride}")
    if layers and window is not None:
        raise BadSpec("--layers looks at a picture once, without windows. Type --layers --size 448")
