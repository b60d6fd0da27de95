"""`clip-anatomy explain`: why does this picture match this text?"""

from collections.abc import Sequence

from clip_anatomy.cli.options import (
    Images,
    ModelOptions,
    OutputOptions,
    Pictures,
    ReadingOptions,
    Size,
    Templates,
    Texts,
    Versus,
    print_notes,
)


def explain(
    *images: Images,
    texts: Texts = None,
    versus: Versus = None,
    templates: Templates = None,
    size: Size = None,
    text_tower: bool = False,
    pictures: Pictures = None,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    reading: ReadingOptions = ReadingOptions(),
) -> int:
    """Say why pictures match texts: which layers, heads, MLPs and patches raise and lower the cosine (direct logit attribution).

    Writes index.html (one page that holds everything) and explain.json into a folder; with --pictures, and by default where they are
    few, also a PNG for each picture and text.
    All shares add up to the cosine exactly; with --versus to the difference of two cosines. Give two texts or more: what counts for one more than for the others is the
    clearest answer. With --text-tower one sentence is taken apart instead, word by word and by heads of the text tower (explain_text):

        clip-anatomy explain photo.jpg --text "a dog" --text "a cat"
        clip-anatomy explain --text "a dog on the beach" --text-tower
        clip-anatomy explain photos/ --text "a dog on the beach" --text "a dog" --text-tower

    Args:
        text_tower: take the first text apart instead of the pictures; pictures and other texts are what it is compared with, by default the nearest texts of the general pool.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, output_beside
    from clip_anatomy.progress import note, shown

    if text_tower:
        return _text_tower(images, texts or [], output, opening, reading)
    folder = output.folder("explain")
    collection, descriptions = asked_pictures(images, "explain", demo=reading.demo)
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.images.input_size import parse_size
        from clip_anatomy.report import explain_folder, figures
        from clip_anatomy.split.explanation import explain as run

        wanted = parse_size(size)
        if folder is not None and pictures is not False:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, explain_folder.KIND, images))
        clip = opening.load()
        result = run(
            clip, collection, texts or descriptions, versus=versus, templates=templates, size=wanted, allow_urls=reading.allow_urls, skip_bad=True,
            progress=progress,
        )  # fmt: skip
        notes = (*demo_notes(opening.model, images), *result.notes)
        result = replace(result, notes=notes, failed=named_failures(result.failed))
        left = 0
        if target is not None:
            left = explain_folder.write(result, target, progress, pictures=pictures)
    print_notes(result.all_notes, result.failed)
    output.show(result)
    if folder is not None:
        note(f"report: {folder / 'index.html'}")
        if left and pictures is None:
            note(f"no picture files for {left:,} pairs of picture and text; --pictures draws them")
    return reading.exit_code(result.failed)


def _text_tower(
    images: Sequence[str], texts: Sequence[str], output: OutputOptions, opening: ModelOptions, reading: ReadingOptions
) -> int:
    """Explain the first text by its words and the heads of the text tower."""
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, output_beside
    from clip_anatomy.errors import BadText
    from clip_anatomy.loading.typed_texts import read_texts
    from clip_anatomy.progress import note, shown

    typed = read_texts(texts)
    if not typed:
        raise BadText('no text was given. Type: clip-anatomy explain --text "a dog on the beach" --text-tower')
    folder = output.folder("explain-text")
    pictures = asked_pictures(images, "explain", demo=reading.demo)[0] if images or reading.demo else None
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.naming.text_explanation import explain_text as run
        from clip_anatomy.report import figures, text_page

        if folder is not None:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, text_page.KIND, images))
        clip = opening.load()
        result = run(
            clip, typed[0], pictures, texts=typed[1:] or None, allow_urls=reading.allow_urls, progress=progress
        )  # fmt: skip
        result = replace(result, notes=(*demo_notes(opening.model, images), *result.notes))
        if target is not None:
            text_page.write(result, target)
    print_notes(result.notes)
    output.show(result)
    if folder is not None:
        note(f"report: {folder / 'index.html'}")
    return 0
