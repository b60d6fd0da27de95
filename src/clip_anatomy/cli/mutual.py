"""`clip-anatomy mutual`: which details do this picture and its label share?"""

from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import AllowUrls, Images, ModelOptions, OutputOptions, Templates, print_notes


def mutual(
    image: Images,
    *,
    classes: Annotated[str, Parameter(alias="-c")],
    descriptors: str | None = None,
    how: str = "split",
    parts: int = 5,
    details: int = 3,
    expected: int = 15,
    measure: str = "information",
    transport: int = 0,
    templates: Templates = None,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    allow_urls: AllowUrls = False,
) -> int:
    """Say which named details a picture and its label share, which only the label expects, which only the picture shows.

    For the best and the second-best class. Writes mutual.png and mutual.json into a folder.

        clip-anatomy mutual photo.jpg --classes "albatross, gull, tern"
        clip-anatomy mutual photo.jpg --classes birds.txt --descriptors parts.txt --how circle

    Args:
        classes: labels "a, b, c", or a text file of one a line.
        descriptors: details to choose from: general | world | a file of one a line. By default the general ones (the demo model: world). Those that name a class are left out.
        how: split (what the patches of a part wrote into the embedding, exact) | circle (red ellipses, as published: three forwards a part).
        parts: of the picture.
        details: of each part.
        expected: details of each label.
        measure: of the deletion curve: information | released (log N + log M + log k, as the released code has it; no mutual information).
        transport: name parts as published: texts among so many nearest of every part (100 there) are shared out between the parts. 0: each by its own.

    Returns:
        Exit code: 0 done.
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from typing import Any, cast

    from clip_anatomy.cli.pictures import demo_notes, output_beside
    from clip_anatomy.progress import note, shown

    folder = output.folder("mutual")
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.report import figures, mutual_figure
        from clip_anatomy.studies.mutual import mutual as run

        if folder is not None:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, mutual_figure.KIND, (image,)))
        clip = opening.load()
        result = run(
            clip, image, classes, descriptors, how=cast("Any", how), parts=parts, details=details, expected=expected, measure=cast("Any", measure), transport=transport,
            templates=templates, allow_urls=allow_urls, progress=progress,
        )  # fmt: skip
        result = replace(result, notes=(*demo_notes(opening.model, (image,)), *result.notes))
        if target is not None:
            mutual_figure.write(result, target)
    print_notes(result.notes)
    output.show(result)
    if folder is not None:
        note(f"figure: {folder / mutual_figure.FIGURE}")
    return 0
