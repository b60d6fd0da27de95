"""`clip-anatomy paths`: what does this part do through later heads?"""

from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import (
    Images,
    ModelOptions,
    OutputOptions,
    ReadingOptions,
    Texts,
    print_notes,
)


def paths(
    *images: Images,
    part: str = "neurons",
    layers: str | None = None,
    texts: Texts = None,
    pool: str | None = None,
    top: int = 8,
    count: Annotated[int, Parameter(alias="-n")] = 3,
    released: bool = False,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    reading: ReadingOptions = ReadingOptions(),
) -> int:
    """Rank neurons, heads or MLPs by what they do through later heads, and say it in words (second order).

    Writes paths.png (source, the heads it goes through, what arrives in the embedding) and paths.json into a folder.

        clip-anatomy paths photos/ --layers 9
        clip-anatomy paths photos/ --part mlps
        clip-anatomy paths world:100 --text "the number 3"
        clip-anatomy paths photos/ --model open_clip:RN50-quickgelu/openai

    Args:
        part: neurons (of MLPs; of a CLIP-ResNet with the heads that read them) | heads | mlps: what is ranked.
        layers: of the sources: 9 | 8-10 | 0,3; by default all but the last, which no head reads.
        texts: also how much each source moves the cosine with these.
        pool: vocabulary of the words: general | world | a file of one text per line. By default the general one (the demo model: world).
        top: how many sources.
        count: texts of each.
        released: normalise the vocabulary as the released code of second-order effects does.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, output_beside
    from clip_anatomy.progress import note, shown

    folder = output.folder("paths")
    pictures = asked_pictures(images, "paths", demo=reading.demo)[0]
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.naming.paths import paths as run
        from clip_anatomy.report import figures, paths_figure

        if folder is not None:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, paths_figure.KIND, images))
        result = run(
            opening.load(), pictures, part, layers=layers, texts=texts, pool=pool, top=top, count=count, released=released,
            allow_urls=reading.allow_urls, skip_bad=True, progress=progress,
        )  # fmt: skip
        result = replace(
            result, notes=(*demo_notes(opening.model, images), *result.notes), failed=named_failures(result.failed)
        )
        if target is not None:
            paths_figure.write(result, target)
    print_notes(result.notes, result.failed)
    output.show(result)
    if folder is not None:
        note(f"figure: {folder / paths_figure.FIGURE}")
    return reading.exit_code(result.failed)
