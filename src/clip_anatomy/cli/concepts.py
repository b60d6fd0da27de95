"""`clip-anatomy concepts`: of which texts are these pictures made?"""

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


def concepts(
    *images: Images,
    texts: Texts = None,
    pool: str | None = None,
    over: str | None = None,
    penalty: float = 0.25,
    count: Annotated[int | None, Parameter(alias="-n")] = None,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    reading: ReadingOptions = ReadingOptions(),
) -> int:
    """Write pictures as sums of few texts (SpLiCE), or with --text alone, texts as sums of other texts.

    Writes concepts.png (each picture with the texts that it is made of) and concepts.json into a folder.

        clip-anatomy concepts photos/ --over STORE
        clip-anatomy concepts photo.jpg --count 6 --over STORE
        clip-anatomy concepts --text "a photo of a lemur" --pool words.txt

    Args:
        pool: the vocabulary: general | world | a file of one text per line. By default the general one (the demo model: world).
        over: a store whose mean is what all pictures share; by default the mean of the pictures given, if there are eight.
        penalty: of the sum of weights; larger is sparser.
        count: exactly so many texts instead, by matching pursuit.

    Returns:
        Exit code: 0 done, 1 a picture could not be read under --strict.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import asked_pictures, demo_notes, named_failures, output_beside
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.progress import note, shown

    if texts and (images or reading.demo):
        raise BadSpec("pictures and --text: one of the two is written as texts. Type them in two commands")
    folder = output.folder("concepts")
    pictures = None if texts else asked_pictures(images, "concepts", demo=reading.demo)[0]
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.naming.concepts import concepts as run
        from clip_anatomy.report import concepts_figure, figures

        if folder is not None:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, concepts_figure.KIND, images))
        clip = opening.load()
        result = run(
            clip, pictures, pool, texts=texts, over=over, penalty=penalty, count=count, allow_urls=reading.allow_urls, skip_bad=True,
            progress=progress,
        )  # fmt: skip
        result = replace(
            result, notes=(*demo_notes(opening.model, images), *result.notes), failed=named_failures(result.failed)
        )
        if target is not None:
            concepts_figure.write(result, target)
    print_notes(result.notes, result.failed)
    output.show(result)
    if folder is not None:
        note(f"figure: {folder / concepts_figure.FIGURE}")
    return reading.exit_code(result.failed)
