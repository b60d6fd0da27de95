"""`clip-anatomy segment`: cut out of these pictures what a text names."""

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


def segment(
    *images: Images,
    texts: Texts = None,
    templates: Templates = None,
    background: list[str] | None = None,
    together: list[str] | None = None,
    threshold: str = "lenient",
    method: str = "auto",
    size: Size = "whole",
    window: Window = None,
    stride: Stride = None,
    registers: Registers = 0,
    refine: str | None = None,
    film: FilmRate = None,
    tiles: TilesLevel = None,
    pictures: Pictures = None,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    reading: ReadingOptions = ReadingOptions(),
    where: EngineOptions = EngineOptions(),
) -> int:
    """Cut out of pictures what texts name: masks, and points and boxes for SAM.

    Writes into a folder: a mask (PNG with the labels) and a painting for each picture, masks.coco.json (COCO's format with run
    lengths), masks.npz, prompts.json (points and boxes for SAM), contact-sheet.png, index.html and segment.json.

        clip-anatomy segment photo.jpg --text "a dog"
        clip-anatomy segment holiday/ -t "a dog" -t "a cat" --background grass
        clip-anatomy segment walk.mp4 -t "a dog" --background grass --film 5

    Args:
        background: a text that takes pixels and is no label; repeat it for several.
        together: texts whose points for SAM are wanted together, joined by +, as "a dog + a cat"; repeat it for several groups. By default all.
        threshold: lenient (Otsu's cut, or one standard deviation above the mean where that is lower) | otsu (two groups of least spread) | mean | half | none | a number from 0 to 1 (a share of the map's range).
        method: a method of heatmap. auto: with several texts on a model of twelve blocks or more scclip (which text each pixel belongs to), else decomposition (where the model read the text).
        refine: pamr: let the masks follow the picture's edges. Off by default, and named wherever it was used.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, output_beside
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.progress import note, say, shown

    if is_large(images, film, tiles):
        typed_options = {"window": window, "stride": stride, "templates": templates, "registers": registers or None}
        large = LargeRequest(
            "segment", images, film, tiles, texts, method, background or [], threshold, pictures=pictures, size=size,
            options=typed_options, refused={"refine": refine, "together": together, "demo": reading.demo},
        )  # fmt: skip
        return draw_large(large, opening, output, reading)
    folder = output.folder("segment")
    collection, descriptions = asked_pictures(images, "segment", demo=reading.demo)
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.images.input_size import parse_size
        from clip_anatomy.loading.typed_texts import typed_texts
        from clip_anatomy.maps.map_set import checked_methods
        from clip_anatomy.maps.segment import segment as run
        from clip_anatomy.report import masks_folder

        wanted = parse_size(size)
        target = stack.enter_context(output_beside(folder, masks_folder.KIND, images))
        engine = stack.enter_context(where.open())
        clip = opening.load()
        typed, notes = typed_texts(texts or descriptions, clip.tokenizer)
        names = tuple(text.text for text in typed)
        behind = [text.text for text in typed_texts(background, clip.tokenizer)[0]] if background else ()
        methods = [method] if method == "auto" else checked_methods(clip, [method])
        if len(methods) != 1:
            raise BadSpec("masks are cut from one method's maps. Type --method decomposition")
        result = run(
            clip, collection, names, methods[0], threshold=threshold, background=behind, templates=templates, size=wanted, window=window, stride=stride, registers=registers,
            refine=refine, together=groups_of(together or [], names), allow_urls=reading.allow_urls, skip_bad=True, engine=engine, progress=progress,
        )  # fmt: skip
        result = replace(result, typed=tuple(typed), notes=(*demo_notes(opening.model, images), *notes))
        result = replace(result, maps=result.maps.with_failed(named_failures(result.failed)))
        if target is not None:
            masks_folder.write(result, target, progress, pictures=pictures)
    print_notes(result.all_notes, result.failed)
    if output.as_json:
        print_json(result.to_dict())
    else:
        say(result.table("" if folder is None else str(folder / "segment.json")))
    note(str(result.how))
    if folder is not None:
        note(f"masks: {folder / 'index.html'}")
    return reading.exit_code(result.failed)


def groups_of(wanted: list[str], texts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Read groups of texts as typed; all of them together where nothing was typed and there are several.

    Raises:
        BadSpec: one that was not asked for.

    Example:
        >>> groups_of(["a dog + a cat"], ("a cat", "a dog", "grass"))
        (('a dog', 'a cat'),)
    """
    from clip_anatomy.errors import BadSpec

    groups: list[tuple[str, ...]] = []
    for group in wanted:
        parts = [part.strip() for part in group.split(" + ")] if group not in texts else [group]
        for part in (part for part in parts if part not in texts):
            raise BadSpec(f'--together {group!r}: {part!r} is not among the texts. Type also: --text "{part}"')
        groups.append(tuple(dict.fromkeys(parts)))
    return tuple(groups) if wanted or len(texts) < 2 else (texts,)
