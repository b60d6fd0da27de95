"""`repair`: find what misleads a model, ablate the parts that carry it, measure on images that had no part in the choice."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.edits.edit import TOWERS, Edit
from clip_anatomy.edits.replacement import EFFECTS, Effect
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.files import digest
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.store.index import index
from clip_anatomy.store.shards import is_store
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of, model_to_index
from clip_anatomy.studies.cue_scores import MOST, Budget, Score
from clip_anatomy.studies.find_cue import CueSearch, find_cue
from clip_anatomy.studies.find_typo import TYPO
from clip_anatomy.studies.image_split import halves_of
from clip_anatomy.studies.repair_ablations import Along, PartAblation, checked_parts
from clip_anatomy.studies.repair_effect import RepairEffect, best_rerun, measure_repair, repair_edit
from clip_anatomy.studies.repair_task import TaskSettings
from clip_anatomy.studies.text_repair import TextRepair, repair_text
from clip_anatomy.studies.typo_repair import TypoRepair, repair_typo
from clip_anatomy.studies.waterbirds_protocol import PROTOCOL_OUT, run_protocol
from clip_anatomy.studies.waterbirds_table import PaperTable

__all__ = ["RepairResult", "ablation_in", "repair"]

SCHEMA = "clip-anatomy/repair/2"
OUT = "clip-anatomy-repair"
IMAGES = 20_000


@public
@dataclass(frozen=True, repr=False)
class RepairResult(Result):
    """A repair: what was found on the validation images, what was ablated, and what that does to the test images.

    Attributes:
        store: of the images.
        clip: its model, unedited.
        cue: suspects, and the parts that each strategy selects.
        effect: accuracies of the test images before and after.
        alternatives: the same for the other strategies, by their names.
        edit: what does it, for any use of the model: `edit.save`, `EditedClip(clip, edit)`.
        select: the parts as they were asked for; None for those that are suggested.
    """

    presenter: ClassVar[str] = "repair_folder"
    store: Store
    clip: Clip
    cue: CueSearch
    effect: RepairEffect
    alternatives: tuple[tuple[str, RepairEffect], ...]
    edit: Edit = field(repr=False)
    select: str | None = None

    def selecting(self, select: str) -> "RepairResult":
        """Ablate other parts: "7.0,7.3+mlp=2", "role=background", "7.0,7.3 along cue". The search is not done again.

        Raises:
            BadSpec: parts that do not exist, or that cannot be ablated along a cue.
            BadInput: a cue that was not said in words.
            StoreError: MLPs that the store does not hold.
        """
        ablation = ablation_in(select, self.store, self.cue, self.effect.ablation.effect)
        return _repaired(self.store, self.clip, self.cue, ablation, select)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        return tuple(dict.fromkeys([*self.cue.notes, *self.effect.notes]))

    def summary(self) -> str:
        """Return what was ablated, and accuracies of the test images before and after."""
        task, effect = self.cue.task, self.effect
        lines = [
            f"Which {task.main.column}? {effect.ablation.spec} at their mean, on {effect.average.images:,} test images, "
            "percent right before and after (95 % interval of the change):"
        ]
        changes = (effect.worst, effect.mean, replace(effect.average, name="average"), *effect.others)
        width = max(len(one.name) for one in changes)
        for one in changes:
            low, high = (100 * end for end in one.change_interval)
            lines.append(
                f"  {one.name:<{width}}  {100 * one.before:5.1f} {100 * one.after:5.1f}  ({low:+.1f} to {high:+.1f})"
            )
        return "\n".join([*lines, *(f"note: {one}" for one in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        cue_search, task = self.cue, self.cue.task
        return {
            "schema": SCHEMA,
            **self.effect.to_dict(),
            "store": str(self.store.path),
            "model": self.store.manifest.model,
            "task": {"column": task.main.column, "classes": list(task.main.classes)},
            "cue": list(task.cue),
            "groups_by": task.rule,
            "split": {"source": cue_search.split.source, "validation": len(cue_search.split.validation), "test": len(cue_search.split.test)},
            "select": self.select,
            "validation_before": _plain(cue_search.before),
            "candidates": [
                {"strategy": one.strategy, "parts": [part.name for part in one.parts], "along_cue": one.along_cue,
                 "validation": _plain(one.score), "suggested": one is cue_search.best}
                for one in cue_search.candidates
            ],
            "alternatives": [{"strategy": strategy, **one.to_dict()} for strategy, one in self.alternatives],
            "suspects": [
                {**asdict(one), "part": one.part.name, "variance": one.variance, "ablated_alone": _plain(one.ablated_alone)}
                for one in cue_search.suspects
            ],
            "all_notes": list(self.notes),
        }  # fmt: skip


@public
def repair(
    source: "Store | str | Path",
    *,
    label: str = "label",
    classes: Sequence[str] | str | None = None,
    group: str | None = None,
    cue: Sequence[str] | str | None = None,
    also: Sequence[str] | str | None = None,
    templates: Sequence[str] | str | None = None,
    select: str | None = None,
    effect: str = "direct",
    registers: int = 0,
    split: str | None = None,
    seed: int = 0,
    images: int = IMAGES,
    heads_only: bool = False,
    cost: float = 2.0,
    most: int = MOST,
    tower: str = "image",
    atlas: "Atlas | str | Path | None" = None,
    protocol: str | None = None,
    out: str | Path | None = None,
    model: "Clip | str | None" = None,
    weights: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> RepairResult | TypoRepair | TextRepair | PaperTable:
    """Find the heads and MLPs that a wrong answer hangs on, ablate them, and measure what that is worth.

    Parts are chosen on validation images; accuracies are of test images that had no part in the choice. Nothing is trained.

    Args:
        source: a store (made with `keep="heads,mlps"` its MLPs can be ablated too); or a collection ("world:COUNT", a folder), which is indexed into
            `out` first.
        label: column of the right answers.
        classes: class names, "a, b, c", or a text file of one a line; by default the values of the column.
        group: column of the groups, or of what misleads; by default "group".
        cue: what may mislead the model, in words: "sky, water"; by default the words of the groups. "typo": writing in the picture; a wrong
            class is printed over each picture, and heads that look at prints are held inside the forward (`find_typo`).
        also: columns of other tasks that must be kept: "colour,size"; for the demo world, by default, all that it knows.
        templates: prompts with one {}; several are averaged.
        select: ablate these: "7.0,7.3", "role=background", "mlp=2", several joined by +. With " along cue" behind them, of heads only
            what they write along the cue's texts; with " along classes", of a re-run only what it changes along the class texts, so that
            other questions are answered as before. By default the parts that are found.
        effect: "direct": the parts' terms of the embedding are replaced. "rerun": they are held inside the forward and later blocks feel it:
            parts are found by direct effects, and chosen (along the classes) and measured by running the model again on the pictures. Always
            so for cue="typo".
        registers: for cue="typo": measure as well what so many test-time registers do, with nothing held (`registered`).
        split: column that says test for the images to report on; by default "split", else halves by id.
        seed: of these halves.
        images: images of each half, at most.
        heads_only: leave MLPs alone.
        cost: points that the average, and each other task, may lose on the validation images.
        most: parts to ablate, at most.
        tower: "image", or "text": heads of the text tower that put the cue into the class texts ("a bird in the sky"), whole or along the cue.
        atlas: names of the heads: an atlas, its JSON file, or its folder; by default made from the validation images.
        protocol: "paper": run the published Waterbirds table instead, on a folder with Waterbirds or a store of it.
        out: folder for the store of a world or of Waterbirds; by default clip-anatomy-repair.
        model: the store's model, or another name or path of it; by default as it was indexed.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.
        progress: told as it goes.

    Returns:
        RepairResult; for cue="typo" a TypoRepair; for tower="text" a TextRepair; with a protocol its PaperTable.

    Raises:
        BadInput: labels without classes, one class, empty groups, numbers that are not finite, settings that make no sense.
        BadSpec: parts that do not exist, an unknown protocol.
        StoreError: no store, a store of another model, or one made with --convention official.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(ca.load("demo"), "world:300:val:balanced", folder + "/store", keep="heads,mlps")
        ...     repaired = ca.repair(folder + "/store", also=[])
        ...     _ = repaired.edit.save(folder + "/edit.json")
        >>> repaired.effect.worst.after > repaired.effect.worst.before
        True
    """
    if protocol is not None:
        return run_protocol(
            source, protocol, model=model, weights=weights, device=device, out=out or PROTOCOL_OUT, progress=progress
        )
    if images < 1:
        raise BadInput(f"images={images!r} of each half: type images=20000")
    if effect not in EFFECTS:
        raise BadSpec(f"effect={effect!r} is not known. Type one of: {', '.join(map(repr, EFFECTS))}")
    budget = Budget(cost / 100, most)
    store, clip = _opened(
        source, Path(out or OUT), model, progress or silent, collection=cue == TYPO, weights=weights, device=device
    )
    settings = TaskSettings(label, classes, group, cue, also, templates)
    if tower not in TOWERS:
        raise BadSpec(f"tower={tower!r} is not known. Type one of: {', '.join(map(repr, TOWERS))}")
    if tower == "text":
        if cue == TYPO or effect != "direct" or registers:
            raise BadSpec(
                "heads of the text tower are ablated by direct effects, and no print is in a text. Type tower='text' with neither cue='typo' nor "
                "effect= nor registers="
            )
        halves = halves_of(store, split, seed, images)
        return repair_text(store, clip, settings, halves, budget=budget, select=select, progress=progress)
    if cue == TYPO:
        choice = {"select": select, "split": split, "images": images, "budget": budget}
        return repair_typo(store, clip, settings, seed=seed, registers=registers, progress=progress, **choice)
    if registers:
        raise BadSpec(
            f"registers={registers}: a repair measures them for writing in pictures. Type cue='typo', or registers=0"
        )
    store.manifest.need_heads("tower='text', for heads of the text tower; or probe(store)")
    if select is not None and "role=" not in select and "words=" not in select:
        ablation_in(select, store, effect=effect)  # refused before the search; names of heads are known only after it
    halves = halves_of(store, split, seed, images)
    cue_search = find_cue(
        store, clip, settings, halves, budget=budget, heads_only=heads_only, atlas=atlas, progress=progress
    )
    if select is not None:
        ablation = ablation_in(select, store, cue_search, effect)
    else:
        ablation = cue_search.best.ablation if effect == "direct" else best_rerun(store, clip, cue_search)
    return _repaired(store, clip, cue_search, ablation, select)


def ablation_in(
    select: str, store: Store, cue_search: CueSearch | None = None, effect: Effect = "direct"
) -> PartAblation:
    """Read what was typed as what to ablate: "7.0,7.3+mlp=2", "role=background", "7.0,7.3 along cue", "7.0 along classes".

    Args:
        select: as it was typed.
        store: that holds the parts.
        cue_search: the search, for names of heads and for the cue.
        effect: whether later blocks feel it.

    Raises:
        BadSpec: parts that do not exist, or that cannot be ablated along a cue.
        BadInput: a cue that was not said in words.
        StoreError: MLPs that the store does not hold.
    """
    spec = " ".join(select.split())
    typed, _, last = spec.rpartition(" along ")
    along: Along = "cue" if typed and last == "cue" else "classes" if typed and last == "classes" else ""
    if along == "cue" and cue_search is not None and len(cue_search.task.cue) < 2:
        raise BadInput(f"{select}: the cue is not known in words. Type cue='sky, water', or leave ' along cue' away")
    atlas = None if cue_search is None else cue_search.atlas
    parts = Selection.parse(typed if along else spec, store.manifest.layers, store.manifest.heads, atlas)
    ablation = PartAblation(parts, along, effect)
    checked_parts(store, ablation)
    return ablation


def _repaired(
    store: Store, clip: Clip, cue_search: CueSearch, ablation: PartAblation, select: str | None
) -> RepairResult:
    # Every re-run reads the pictures again: what is not asked for stands as it was found, by direct effects.
    others = [one for one in cue_search.candidates if one.parts and one.ablation != ablation]
    return RepairResult(
        store,
        clip,
        cue_search,
        measure_repair(store, cue_search, ablation, clip=clip),
        tuple((one.strategy, measure_repair(store, cue_search, one.ablation)) for one in others),
        repair_edit(store, clip, cue_search, ablation),
        select,
    )


def _opened(
    source: "Store | str | Path",
    out: Path,
    model: "Clip | str | None",
    progress: Progress,
    *,
    collection: bool,
    **options: Any,
) -> tuple[Store, Clip]:
    """Open the store and its model; a world is indexed first, and any collection where one may be given."""
    is_world = str(source).startswith("world:") and not Path(str(source)).is_dir()
    if isinstance(source, Store) or is_store(source) or not (is_world or collection):
        store = source if isinstance(source, Store) else Store.open(source)
        return store, model_of(store, model, **options)
    # A repair needs groups of some size: unseen pictures, where either background is as likely, if nothing else is said.
    spec = str(source)
    spec = f"{spec}:val:balanced" if is_world and spec.count(":") == 1 else spec
    pictures, place = open_dataset(spec), out / _store_name(spec, plain=is_world)
    clip = model_to_index(place, model, **options)
    index(clip, pictures, place, keep="heads,mlps", progress=progress)
    return Store.open(place, clip), clip


def _store_name(spec: str, *, plain: bool = False) -> str:
    """Name the store of a collection; a hash tells apart those whose names read alike.

    Example:
        >>> _store_name("world:4000:val:balanced", plain=True), _store_name("photos/a") == _store_name("photos-a")
        ('world-4000-val-balanced', False)
    """
    name = re.sub(r"[^\w.]+", "-", spec).strip("-.")[-80:]
    return name if plain else f"{name}-{digest(str(Path(spec)), size=4)}".strip("-")


def _plain(score: Score) -> dict[str, Any]:
    """Return a score for JSON: None for what was not measured."""
    numbers = {**asdict(score), "worst": score.worst, "mean": score.mean}
    return {
        name: [None if one != one else one for one in value] if isinstance(value, tuple) else value  # noqa: PLR0124
        for name, value in numbers.items()
    }
