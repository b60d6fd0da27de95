"""`clip-anatomy repair`: find what a model should not look at, ablate it, keep the rest."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import OutputOptions, StoreModelOptions, Templates


def repair(
    source: str,
    *,
    label: str = "label",
    classes: str | None = None,
    group: Annotated[str | None, Parameter(alias="-g")] = None,
    cue: Annotated[str | None, Parameter(alias="-c")] = None,
    also: str | None = None,
    templates: Templates = None,
    select: Annotated[str | None, Parameter(alias="-s")] = None,
    effect: str = "direct",
    registers: int = 0,
    yes: Annotated[bool, Parameter(alias="-y")] = False,
    split: str | None = None,
    seed: int = 0,
    images: int = 20_000,
    heads_only: bool = False,
    cost: float = 2.0,
    most: int = 10,
    tower: str = "image",
    atlas: Path | None = None,
    protocol: str | None = None,
    output: OutputOptions = OutputOptions(),
    opening: StoreModelOptions = StoreModelOptions(),
) -> int:
    """Find the heads and MLPs that a wrong answer hangs on, ablate those that you choose, and save the edit.

    Shows the suspects with their names, what ablating each does, and asks which to ablate; what is printed is measured on pictures that
    had no part in the choice. Writes edit.json (for `clip-anatomy apply`), repair.png and repair.json into a folder, by default
    clip-anatomy-repair.

        clip-anatomy repair world:4000                  birds are fish over water
        clip-anatomy repair world:4000 --label count    a digit is read as the count
        clip-anatomy repair STORE --group place --cue "forest, sea"
        clip-anatomy repair photos/ --cue typo --classes "dog, cat, bird" --model MODEL     words in the picture are read

    Args:
        source: a store that `clip-anatomy index` made (--keep heads,mlps lets it ablate MLPs too), or world:COUNT, which is indexed first; for --cue typo any folder or collection.
        label: column of the right answers.
        classes: class names "a, b, c", or a text file of one a line; by default the values of the column. Labels that are numbers count them from 0.
        group: column of the groups, or of what misleads; by default group.
        cue: what may mislead the model, in words: "sky, water"; by default the words of the groups. typo: writing in the picture (a wrong class is printed over each, and heads that look at it are held).
        also: columns of other tasks that must be kept: colour,size.
        select: ablate these without asking: 7.0,7.3 | role=background | mlp=2 | several joined by +. With 'along cue' behind them, of heads only what they write along the cue's texts; with 'along classes', of a re-run only what it changes along the class texts.
        effect: direct | rerun (parts are held inside the forward and later blocks feel it; the pictures are read again).
        registers: for --cue typo: measure as well what so many test-time registers do.
        yes: ablate what is suggested without asking.
        split: column that says test for the pictures to report on; by default split, else halves by id.
        seed: of these halves.
        images: pictures of each half, at most.
        heads_only: leave MLPs alone.
        cost: points that the average, and each other task, may lose.
        most: parts to ablate, at most.
        tower: image | text (heads of the text tower that put the cue into the class texts: a bird in the sky).
        atlas: atlas.json, or folder of an atlas, that names the heads; by default they are named from the pictures to choose on.
        protocol: paper: run the published Waterbirds table instead, on a folder with Waterbirds or a store of it.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.cli.options import print_json, print_notes
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.progress import note, say, shown
    from clip_anatomy.report.repair_folder import EDIT, repair_folder
    from clip_anatomy.report.repair_interactive import show

    folder = output.folder("repair")
    with repair_folder(folder if protocol is None else None) as write:  # refused before work if it cannot be written
        with shown(f"opening {source}") as progress:
            from clip_anatomy.studies.repair import RepairResult
            from clip_anatomy.studies.repair import repair as run
            from clip_anatomy.studies.waterbirds_protocol import PROTOCOL_OUT
            from clip_anatomy.studies.waterbirds_table import PaperTable

            result = run(
                source, label=label, classes=classes, group=group, cue=cue, also=also, templates=templates, select=select, effect=effect, registers=registers,
                split=split, seed=seed, images=images, heads_only=heads_only, cost=cost, most=most, tower=tower, atlas=atlas, protocol=protocol, out=output.out,
                **vars(opening), progress=progress,
            )  # fmt: skip
        if isinstance(result, RepairResult) and not output.as_json:
            result = show(result, asking=select is None and not yes, words=in_cli_words)
        if not isinstance(result, PaperTable):
            write(result)
    if output.as_json:
        print_json(result.to_dict())
    elif not isinstance(result, RepairResult):
        say(result.summary())
    if isinstance(result, PaperTable):
        if folder is not None:
            note(f"the same as JSON: {result.save(PROTOCOL_OUT if output.out is None else output.out)}")
        return 0
    print_notes(result.notes)
    if folder is not None:
        note(f"edit: {folder / EDIT} · figure and JSON: {folder} · use it: clip-anatomy apply {folder / EDIT} PICTURES")
    return 0
