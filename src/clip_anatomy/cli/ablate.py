"""`clip-anatomy ablate`: what do the answers hang on?"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import (
    AtlasFile,
    EngineOptions,
    OutputOptions,
    StoreFolder,
    StoreModelOptions,
    print_notes,
)


def ablate(
    store: StoreFolder,
    *,
    study: Annotated[str | None, Parameter(alias="-s")] = None,
    select: list[str] | None = None,
    by: str = "mean",
    effect: str = "direct",
    means: Path | None = None,
    other: str | None = None,
    pool: str | None = None,
    texts: int | None = None,
    label: str | None = None,
    classes: Annotated[str | None, Parameter(alias="-c")] = None,
    templates: Annotated[list[str] | None, Parameter(name=["--template", "--templates"])] = None,
    group: Annotated[str | None, Parameter(alias="-g")] = None,
    atlas: AtlasFile = None,
    tower: str = "image",
    output: OutputOptions = OutputOptions(),
    opening: StoreModelOptions = StoreModelOptions(),
    where: EngineOptions = EngineOptions(),
) -> int:
    """Replace parts of the model in all images of a store, and see how many answers change: which layers, heads, MLPs matter.

    Prints a table and writes a figure and ablate.json for each study. From the store alone, without reading an image; only
    class-to-class attention and tokens are not in a store: for these the pictures are read again, once.

        clip-anatomy ablate STORE                        heads up to each layer
        clip-anatomy ablate STORE --study heads,mlps     every head; the MLPs
        clip-anatomy ablate STORE --select role=background --group background
        clip-anatomy ablate STORE --tower text --study layers,heads
        clip-anatomy ablate STORE --select layer=0-7+mlp=all --template imagenet

    Args:
        study: layers | last (all but the last k) | heads (one at a time) | mlps | class-to-class | all; several joined by commas. By default layers.
        select: parts of your own in place of a study, repeat it for several sets: 9.3,10.1 | layer=0-5 | last=4 | mlp=all | class-to-class=all | role=background | words=striped fabric | input-embedding | token=0 | all, joined by +.
        by: mean | zero | texts (heads by their TextSpan reconstruction) | swap (what --other has there).
        effect: direct | rerun (heads and MLPs are held inside the forward and later blocks feel it; the pictures are read again).
        means: another store of the model, or a file of moments, to take the means from; by default this store.
        other: for --by swap: id of the other image.
        pool: for --by texts: general | world | a text file of one description a line.
        texts: for --by texts: how many of each head; by default 20.
        label: column of the right answers; by default label.
        classes: names of the classes, 'a, b, c', or a text file of one a line; by default the values of the column. Labels that are numbers count them from 0.
        templates: prompt with one {}, repeat it for several; imagenet for the 80 of CLIP's own recipe. By default 'a photo of a {}.'
        group: column of the groups, or several joined by +; by default group, where it is filled.
        tower: image | text (parts of the text tower are replaced in every class text, by their mean over the classes or by zero).
        out: folder for figures and JSON, added to those of earlier studies there (the same question again takes the place of its answer); by default clip-anatomy-ablate, and none with --json.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack

    from clip_anatomy.atomic_output import atomic_output
    from clip_anatomy.progress import note, shown
    from clip_anatomy.report.figures import need_matplotlib

    folder = output.folder("ablate")
    if folder is not None:
        need_matplotlib()
    with ExitStack() as stack:  # a folder that cannot be written is refused before the work
        progress = stack.enter_context(shown(f"opening {store}"))
        from clip_anatomy.report.ablation_figure import KIND, check_folder, write
        from clip_anatomy.studies.ablate import ablate as run

        target = None
        if folder is not None:
            check_folder(folder, store)
            target = stack.enter_context(atomic_output(folder, KIND))
        result = run(
            store, study=study, select=select, by=by, effect=effect, means=means, other=other, pool=pool, texts=texts, label=label, classes=classes,
            templates=templates, group=group, atlas=atlas, tower=tower, **vars(opening), engine=stack.enter_context(where.open()), progress=progress,
        )  # fmt: skip
        if target is not None:
            write(result, target)
    output.show(result)
    print_notes(result.notes)
    if folder is not None:
        note(f"figures and numbers: {folder}")
    return 0
