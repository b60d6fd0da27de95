"""`clip-anatomy explain`: why does this picture match this text?"""

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
    pictures: Pictures = None,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    reading: ReadingOptions = ReadingOptions(),
) -> int:
    """Say why pictures match texts: which layers, heads, MLPs and patches raise and lower the cosine (direct logit attribution).

    Writes index.html (one page that holds everything) and explain.json into a folder; with --pictures, and by default where they are
    few, also a PNG for each picture and text.
    All shares add up to the cosine exactly; with --versus to the difference of two cosines. Give two texts or more: what counts for one more than for the others is the
    clearest answer.

    Args:

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, output_beside
    from clip_anatomy.progress import note, shown

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
