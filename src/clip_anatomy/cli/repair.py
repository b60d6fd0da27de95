"""`clip-anatomy repair`: find what a model should not look at, silence it, keep the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.loading.clip import Clip
    from clip_anatomy.store.store import Store
    from clip_anatomy.studies.cue_result import Found
    from clip_anatomy.studies.repair import Repaired

DEFAULT_OUT = Path("clip-anatomy-repair")
EDIT, FIGURE, RESULT = "edit.json", "repair.png", "repair.json"


def repair(
    store: str,
    *,
    label: str = "label",
    classes: str | None = None,
    group: Annotated[str | None, Parameter(alias="-g")] = None,
    cue: Annotated[str | None, Parameter(alias="-c")] = None,
    also: str | None = None,
    template: list[str] | None = None,
    select: Annotated[str | None, Parameter(alias="-s")] = None,
    yes: Annotated[bool, Parameter(alias="-y")] = False,
    split: str | None = None,
    seed: int = 0,
    images: int = 20_000,
    heads_only: bool = False,
    cost: float = 2.0,
    most: int = 10,
    atlas: Path | None = None,
    protocol: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    device: str = "auto",
) -> int:
    """Find the heads and MLPs that a wrong answer hangs on, silence those that you choose, and save the edit.

    Shows the suspects with their names, what silencing each does, and asks which to silence. Then it measures on pictures that had
    no part in the choice, and writes edit.json (for `clip-anatomy apply`), repair.png and repair.json into a folder.

        clip-anatomy repair world:4000                  birds are fish over water
        clip-anatomy repair world:4000 --label count    a digit is read as the count
        clip-anatomy repair STORE --group place --cue "forest, sea"

    Args:
        store: a store that `clip-anatomy index` made (--keep heads,mlps lets it silence MLPs too), or world:COUNT, which is indexed first.
        label: column of the right answers.
        classes: class names "a, b, c", or a text file of one a line; by default the values of the column.
        group: column of the groups, or of what misleads; by default group.
        cue: what may mislead the model, in words: "sky, water"; by default the words of the groups.
        also: columns of other questions that must be kept: colour,size.
        template: prompt with one {}; repeat it for several.
        select: silence these without asking: 7.0,7.3 | role=background | mlp=2 | several joined by +. With 'along cue' behind them, of heads only what they write along the cue's texts.
        yes: silence what is suggested without asking.
        split: column that says test for the pictures to report on; by default split, else halves by id.
        seed: of these halves.
        images: pictures of each half, at most.
        heads_only: leave MLPs alone.
        cost: points that the average, and each other question, may lose.
        most: parts to silence, at most.
        atlas: atlas.json, or folder of an atlas, that names the heads; by default they are named from the pictures to choose on.
        protocol: paper: run the published Waterbirds table instead, on a folder with Waterbirds or a store of it.
        out: folder for edit, figure and JSON; by default clip-anatomy-repair.
        as_json: print the result as JSON on stdout; does not ask.
        model: the store's model under another name or path; by default as it was indexed.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.atomic_output import Kind, staged
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import BadInput
    from clip_anatomy.progress import note, progress
    from clip_anatomy.report.figures import need_matplotlib
    from clip_anatomy.report.step_progress import stages

    if protocol is not None:
        from clip_anatomy.report.waterbirds_report import paper

        return paper(store, protocol, model=model, weights=weights, out=out, as_json=as_json, device=device)
    if not 0 <= cost <= 100 or most < 1 or images < 1:
        raise BadInput(f"--cost {cost}, --most {most}, --images {images}: type --cost 2 --most 10 --images 20000")
    need_matplotlib()
    folder = DEFAULT_OUT if out is None else out
    with staged(folder, Kind("repair", RESULT, "clip-anatomy/repair/1")) as staging:
        opened, clip = _opened(store, folder, model, weights, device)
        with progress("importing"):
            from clip_anatomy.report import repair_prompt as prompt
            from clip_anatomy.report import repair_screen as screen
            from clip_anatomy.report.repair_json import result_of
            from clip_anatomy.studies.repair import edit_of
            from clip_anatomy.studies.repair import repair as measure
            from clip_anatomy.studies.spurious_cue import find_cue
        if select is not None:
            prompt.check(select, opened)
        with stages() as tell:
            found = find_cue(
                opened, clip, label=label, classes=classes, group=group, cue=cue,
                also=None if also is None else [name for name in also.split(",") if name.strip()],
                templates=template, split=split, seed=seed, images=images, heads_only=heads_only, cost=cost / 100, most=most,
                atlas=atlas, report=tell,
            )  # fmt: skip
        page = screen.console()
        say: Callable[..., None] = (lambda *said: None) if as_json else page.print
        for piece in (*screen.before(opened, found), *screen.found_parts(found), *screen.ways(found)):
            say(piece)
        silence = found.best.silence
        if select is not None:
            silence = prompt.read(select, opened, found)
        elif not yes and not as_json:
            for piece in prompt.pictures(opened, found, page):
                say(piece)
            silence = prompt.ask(opened, found)
        told = measure(opened, found, silence)
        others = [
            (one.how, measure(opened, found, one.silence))
            for one in found.choices
            if one.parts and one.silence != silence
        ]
        for piece in screen.after(found, told, others):
            say(piece)
        edit = edit_of(opened, clip, found, silence, f"{found.plan.main.column}, cue: {', '.join(found.plan.cue)}")
        result = result_of(opened, found, told, others, select)
        staging.write(FIGURE, _figure(opened, found, told))
        edit.save(staging.folder / EDIT)
        staging.write(RESULT, json_text(result))
    _sweep(folder)
    for message in dict.fromkeys([*found.notes, *told.notes]):
        note(f"note: {message}")
    if as_json:
        print(json_text(result), end="")
    note(f"edit: {folder / EDIT} · figure: {folder / FIGURE} · use it: clip-anatomy apply {folder / EDIT} PICTURES")
    return 0


def _opened(store: str, folder: Path, model: str | None, weights: str | None, device: str) -> "tuple[Store, Clip]":
    """The store and its model; a world is indexed into the folder of the result first."""
    from clip_anatomy.progress import progress, shown

    with progress(f"opening {store}"):
        from clip_anatomy.data.open_source import open_source
        from clip_anatomy.loading.load import load
        from clip_anatomy.store.index import index
        from clip_anatomy.store.store import Store

        place = Path(store)
        if not store.startswith("world:") or place.is_dir():
            opened = Store.open(place)
            return opened, load(model or opened.manifest.model, weights=weights, device=device)
        # A repair needs groups of some size: unseen pictures, where either background is as likely, if nothing else is said.
        spec = store if store.count(":") > 1 else f"{store}:val:balanced"
        source = open_source(spec)
        clip = load(model or "demo", weights=weights, device=device)
    place = folder / spec.replace(":", "-")
    with shown(spec) as tell:
        index(clip, source, place, keep="heads,mlps", progress=tell)
    return Store.open(place, clip), clip


def _sweep(folder: Path) -> None:
    """Remove the means of edits that stood here before."""
    named = (folder / EDIT).read_text(encoding="utf-8")
    for old in folder.glob(f"{Path(EDIT).stem}-*.safetensors"):
        if old.name not in named:
            old.unlink(missing_ok=True)


def _figure(opened: "Store", found: "Found", told: "Repaired") -> bytes:
    """Fetch the pictures behind the silenced parts and draw the figure."""
    from clip_anatomy.progress import progress
    from clip_anatomy.report.repair_figure import draw_repair
    from clip_anatomy.report.thumbnails import thumbnails
    from clip_anatomy.studies.ablated_answers import selects
    from clip_anatomy.studies.examples import examples, flips

    with progress("drawing"):
        loud, seen = examples(opened, found, selects(opened, told.silence)), flips(opened, found, told)
        rows = {row.id: row for one in loud for row in one.rows} | {one.row.id: one.row for one in seen.shown}
        pictures = {row.id: image for row, image, _ in thumbnails(rows.values()) if image is not None}
        caption = f"{opened.path.name}, model {opened.manifest.model}"
        return draw_repair(found, told, caption, seen=seen, examples=loud, pictures=pictures)
