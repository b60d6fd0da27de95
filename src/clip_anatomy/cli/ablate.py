"""`clip-anatomy ablate`: what do the answers hang on?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.loading.clip import Clip
    from clip_anatomy.studies.study_result import Study

DEFAULT_OUT = Path("clip-anatomy-ablate")
SCHEMA = "clip-anatomy/ablations/1"
RESULT = "ablate.json"


def ablate(
    store: Path,
    *,
    study: Annotated[str | None, Parameter(alias="-s")] = None,
    select: list[str] | None = None,
    by: str = "mean",
    means: Path | None = None,
    other: str | None = None,
    pool: str | None = None,
    texts: int | None = None,
    label: str | None = None,
    classes: Annotated[str | None, Parameter(alias="-c")] = None,
    template: list[str] | None = None,
    group: Annotated[str | None, Parameter(alias="-g")] = None,
    atlas: Path | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    device: str = "auto",
) -> int:
    """Replace parts of the model in all images of a store, and see how many answers change: which layers, heads, MLPs matter.

    Prints a table and writes a figure and ablate.json for each study. From the store alone, without reading an image; only
    class-to-class attention and tokens are not in a store: for these the pictures are read again, once.

        clip-anatomy ablate STORE                        heads up to each layer
        clip-anatomy ablate STORE --study heads,mlps     every head; the MLPs
        clip-anatomy ablate STORE --select role=background --group background
        clip-anatomy ablate STORE --select layer=0-7+mlp=all --template imagenet

    Args:
        store: a store that `clip-anatomy index` made.
        study: layers | last (all but the last k) | heads (one at a time) | mlps | class-to-class | all; several joined by commas. By default layers.
        select: parts of your own in place of a study, repeat it for several sets: 9.3,10.1 | layer=0-5 | last=4 | mlp=all | class-to-class=all | role=background | words=striped fabric | input-embedding | token=0 | all, joined by +.
        by: mean | zero | texts (heads by their TextSpan reconstruction) | swap (what --other has there).
        means: another store of the model, or a file of moments, to take the means from; by default this store.
        other: for --by swap: id of the other image.
        pool: for --by texts: general | world | a text file of one description a line.
        texts: for --by texts: how many of each head; by default 20.
        label: column of the right answers; by default label.
        classes: names of the classes, 'a, b, c', or a text file of one a line; by default the values of the column.
        template: prompt with one {}, repeat it for several; imagenet for the 80 of CLIP's own recipe. By default 'a photo of a {}.'
        group: column of the groups, or several joined by +; by default group, where it is filled.
        atlas: atlas.json, or folder of an atlas, that names the heads; by default the one kept in the store.
        out: folder for figures and JSON; by default clip-anatomy-ablate, and none with --json.
        as_json: print everything as JSON on stdout.
        model: the store's model under another name or path; by default as it was indexed.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack
    from functools import cache

    from clip_anatomy.atomic_output import Kind, staged
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import BadSpec, StoreError
    from clip_anatomy.progress import note, progress
    from clip_anatomy.report.figures import need_matplotlib
    from clip_anatomy.report.step_progress import stages

    if study is not None and select:
        raise BadSpec("--study and --select exclude each other. Type one of them")
    if texts is not None and texts < 1:
        raise BadSpec(f"--texts {texts}: at least one text of each head. Type --texts 20")
    if (pool is not None or texts is not None) and by != "texts":
        raise BadSpec("--pool and --texts are for heads that are replaced by their texts. Type --by texts")
    folder = out if out is not None or as_json else DEFAULT_OUT
    if folder is not None:
        need_matplotlib()
    with ExitStack() as stack:
        with progress(f"opening {store}"):
            from clip_anatomy.store.store import Store
            from clip_anatomy.studies.ablation_study import STUDIES
            from clip_anatomy.studies.ablation_study import study as run

            opened = Store.open(store)
            names = _names(study, tuple(STUDIES)) if not select else [SELECTED]
            kind = Kind("ablate", RESULT, SCHEMA, (*(f"{name}.png" for name in (*STUDIES, SELECTED)), RESULT))
            staging = None if folder is None else stack.enter_context(staged(folder, kind))

        @cache
        def load_model() -> "Clip":
            from clip_anatomy.loading.load import load

            return load(model or opened.manifest.model, weights=weights, device=device)

        found: list[Study] = []
        with stages() as tell:
            common: dict[str, Any] = {
                "clip": load_model, "by": by, "over": _means(means), "other": other, "pool": pool, "texts_per_head": texts or 20,
                "atlas": atlas, "report": tell,
            }  # fmt: skip
            for name in names:
                try:
                    one = run(
                        opened, "layers" if select else name, select=select or (), label=label, classes=classes, group=group,
                        templates=_templates(template), **common,
                    )  # fmt: skip
                except StoreError as error:
                    if study != "all":
                        raise
                    note(f"note: no study of {name}: {error}")
                    continue
                found.append(one)
        if not found:
            raise StoreError(f"{store} answers none of the studies. Type: clip-anatomy index SOURCE STORE --layers all")
        result = {"schema": SCHEMA, "studies": [one.to_dict() for one in found]}
        if staging is not None:
            from clip_anatomy.report.ablation_figure import draw_study

            for one in found:
                staging.write(f"{one.name}.png", draw_study(one))
            staging.write(RESULT, json_text(result))
    if as_json:
        print(json_text(result), end="")
    else:
        print("\n\n".join(one.table() for one in found))
    for message in dict.fromkeys(message for one in found for message in one.notes):
        note(f"note: {message}")
    if folder is not None:
        note(f"figures: {', '.join(str(folder / f'{one.name}.png') for one in found)}")
    return 0


SELECTED = "selected"


def _names(study: str | None, known: tuple[str, ...]) -> list[str]:
    from clip_anatomy.errors import BadSpec

    names = [name.strip() for name in (study or "layers").split(",") if name.strip()]
    if names == ["all"]:
        return list(known)
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        said = f"{', '.join(wrong)} is not known" if wrong else "no study is named"
        raise BadSpec(f"--study {study}: {said}. Type one of: {', '.join(known)}, all")
    return list(dict.fromkeys(names))


def _means(given: Path | None) -> "Any":
    """A store, or a file of moments."""
    if given is None:
        return None
    from clip_anatomy.split.moments import Moments
    from clip_anatomy.store.store import Store

    return Store.open(given) if given.is_dir() else Moments.load(given)


def _templates(given: list[str] | None) -> "list[str] | str | None":
    return given[0] if given and len(given) == 1 else given
