"""What ablating some parts is worth: accuracies of the test split before and after, and the edit that does it.

Nothing is printed. Only `measure_repair` reads the test split.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.split.means import Means
from clip_anatomy.store.store import Store
from clip_anatomy.studies.bootstrap import AccuracyChange, accuracy_changes
from clip_anatomy.studies.cue_scores import AblatedLogits, Score, right, score
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair_ablations import PartAblation, ablation_of, answers, checked_parts, means_of
from clip_anatomy.studies.repair_task import RepairTask
from clip_anatomy.studies.rerun_embeddings import rerun_embeddings, written_means
from clip_anatomy.studies.store_columns import few

__all__ = ["RepairEffect", "best_rerun", "effect_of", "measure_repair", "repair_edit", "validation_score"]

CHOSEN_ON = 600  # validation images on which candidates are run again, at most
FEW = 10  # test images in a group: fewer say little


@dataclass(frozen=True)
class RepairEffect:
    """What ablating some parts does to the test split. Accuracies are 0–1, intervals 95 %.

    Attributes:
        ablation: what was ablated.
        average: of the task, over all test images it is asked of.
        worst: of the worst group (before and after may be two groups).
        mean: over groups.
        groups: of the task in each group.
        others: of the other tasks.
        cue_task: name of the other task that asks for the cue itself, "" if none does.
        predicted: class that each test image was given, before and after (places in the task's classes).
        notes: what a reader must know.
    """

    ablation: PartAblation
    average: AccuracyChange
    worst: AccuracyChange
    mean: AccuracyChange
    groups: tuple[AccuracyChange, ...]
    others: tuple[AccuracyChange, ...]
    cue_task: str
    predicted: Int64[Tensor, "2 image"] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        """The parts that were ablated."""
        return self.ablation.selection

    @property
    def worst_before(self) -> AccuracyChange:
        """The group that was worst before."""
        return min(self.groups, key=lambda one: one.before)

    @property
    def worst_after(self) -> AccuracyChange:
        """The group that is worst after."""
        return min(self.groups, key=lambda one: one.after)

    @property
    def all_tasks(self) -> tuple[float, float]:
        """Mean accuracy over the task and all others, before and after."""
        every = [self.average, *self.others]
        return sum(one.before for one in every) / len(every), sum(one.after for one in every) / len(every)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "ablated": self.ablation.spec,
            "along": self.ablation.along,
            "effect": self.ablation.effect,
            "selection": self.selection.to_dict(),
            "average": _plain(self.average),
            "worst_group": {
                **_plain(self.worst),
                "before_is": self.worst_before.name,
                "after_is": self.worst_after.name,
            },
            "mean_over_groups": _plain(self.mean),
            "groups": [_plain(one) for one in self.groups],
            "other_tasks": [_plain(one) for one in self.others],
            "all_tasks": dict(zip(("before", "after"), self.all_tasks, strict=True)),
            "cue_task": self.cue_task,
            "notes": list(self.notes),
        }


def measure_repair(
    store: Store, cue_search: CueSearch, what: PartAblation | Selection, *, seed: int = 0, clip: Clip | None = None
) -> RepairEffect:
    """Measure on the test split what ablating some parts does.

    Args:
        store: the store of `found`.
        cue_search: what `find_cue` found.
        what: parts to replace by their mean over the validation images; `found.best.ablation` is the suggestion.
        seed: of the bootstrap.
        clip: the model, for parts that are to be felt by later blocks: the pictures are read again.

    Raises:
        BadSpec: parts that the store does not hold.
        StoreError: MLPs that were not kept.
        BadInput: scores that are not numbers, no group with a test image.
    """
    ablation, task, rows = ablation_of(what), cue_search.task, cue_search.split.test
    return effect_of(store, task, ablation, rows, _logits(store, cue_search, ablation, rows, clip), seed=seed)


def effect_of(
    store: Store,
    task: RepairTask,
    ablation: PartAblation,
    rows: np.ndarray,
    logits: tuple[AblatedLogits, Float[Tensor, "image text"]],
    *,
    seed: int = 0,
) -> RepairEffect:
    """Compare the answers of some images before and after.

    Args:
        store: of the images.
        task: what is asked.
        ablation: what was ablated.
        rows: which images.
        logits: as they are (`base`), and with the parts ablated.
        seed: of the bootstrap.

    Raises:
        BadInput: no group with an image.
    """
    ablated, after = logits
    labels, groups = ablated.labels, ablated.groups
    has_label = labels[0] >= 0
    by_group = {
        name: _right(ablated, after, 0, has_label & (groups == at))
        for at, name in enumerate(task.group_names)
        if bool((has_label & (groups == at)).any())
    }
    if not by_group:
        raise BadInput("no test image is in any of the groups. Type group=COLUMN with another column, or split=COLUMN")
    each, worst, mean = accuracy_changes(by_group, seed=seed)
    of_tasks = [(one.column, _right(ablated, after, at, labels[at] >= 0)) for at, one in enumerate(task.tasks)]
    average, *others = (accuracy_changes({name: pair}, seed=seed)[0][0] for name, pair in of_tasks if len(pair[0]))
    notes = [f"no test image is in the group {name!r}" for name in task.group_names if name not in by_group]
    notes += [f"only {one.images} test images in {one.name!r}" for one in each if one.images < FEW]
    if unknown := task.unknown_classes(store, rows):
        notes.append(
            f"not asked of test images that are {few(unknown)}: no validation image is, so it is no class here"
        )
    outside = sum(bool(name) and name not in task.group_names for name in task.named_groups(store, rows, labels[0]))
    if outside:
        notes.append(
            f"{outside:,} test images are in groups that too few validation images are in: they count in the average only"
        )
    cue_task = task.tasks[task.cue_task].column if task.cue_task else ""
    predicted = torch.stack([logits[:, : task.ends[0]].argmax(1) for logits in (ablated.base, after)])
    return RepairEffect(ablation, average, worst, mean, each, tuple(others), cue_task, predicted, tuple(notes))


def validation_score(
    store: Store, cue_search: CueSearch, what: PartAblation | Selection, clip: Clip | None = None
) -> Score:
    """Measure the validation split with some parts ablated: what a person may look at while choosing.

    Raises:
        BadSpec: parts that the store does not hold.
        StoreError: MLPs that were not kept.
    """
    return score(*_logits(store, cue_search, ablation_of(what), cue_search.split.validation, clip))


def best_rerun(store: Store, clip: Clip, cue_search: CueSearch) -> PartAblation:
    """Choose the candidate of whole parts that is best when it is run again and felt along the classes; perhaps no part at all.

    On the validation images, evenly spread `CHOSEN_ON` of them at most.
    """
    rows, task = cue_search.split.validation, cue_search.task
    rows = rows[np.linspace(0, len(rows) - 1, min(CHOSEN_ON, len(rows))).astype(int)]
    whole = dict.fromkeys(one.ablation for one in cue_search.candidates if one.parts and not one.along_cue)
    tried = [replace(one, along="classes", effect="rerun") for one in whole]
    if not tried:
        return PartAblation(Selection(), effect="rerun")
    means = written_means(store, clip, rows)
    held = [repair_edit(store, clip, cue_search, one, means).replacements for one in tried]
    logits = rerun_embeddings(store, clip, [(), *held], rows) @ task.texts.float().T
    labels = task.labels(store, rows)
    ablated = AblatedLogits(
        logits[0], logits[1:] - logits[0], task.ends, labels, task.groups(store, rows, labels[0]), task.group_names, task.cue_task
    )  # fmt: skip
    scores = [score(ablated, one).objective for one in logits]
    return [PartAblation(Selection(), effect="rerun"), *tried][scores.index(max(scores))]


def repair_edit(
    store: Store, clip: Clip, cue_search: CueSearch, what: PartAblation | Selection, means: Means | None = None
) -> Edit:
    """Make the edit that replaces the parts by their means over the validation images, for any use of the model.

    Args:
        store: the store of `found`.
        clip: its model.
        cue_search: what `find_cue` found.
        what: the parts.
        means: of what the parts write, for a re-run; by default measured.
    """
    rows, ablation, task = cue_search.split.validation, ablation_of(what), cue_search.task
    parts, rerun = checked_parts(store, ablation), ablation.effect == "rerun"
    return Edit.of(
        clip,
        ablation.selection,
        (means or written_means(store, clip, rows)) if rerun else means_of(store, rows, parts),
        effect=ablation.effect,
        directions=dict.fromkeys(ablation.selection.heads, task.cue_frame) if ablation.along_cue else None,
        along=task.class_frame if ablation.along == "classes" else None,
        measured_on=f"{len(rows):,} images of {store.path.name}, the validation half",
        notes=f"{task.main.column}, cue: {', '.join(task.cue)}",
    )


def _logits(
    store: Store, cue_search: CueSearch, ablation: PartAblation, rows: np.ndarray, clip: Clip | None
) -> tuple[AblatedLogits, Float[Tensor, "image text"]]:
    """Compute logits of some images as they are, and with the parts at their means over the validation images."""
    task, parts = cue_search.task, checked_parts(store, ablation)
    labels = task.labels(store, rows)
    groups = task.groups(store, rows, labels[0])
    if ablation.effect == "rerun" and parts:
        assert clip is not None
        edit = repair_edit(store, clip, cue_search, ablation)
        before, after = rerun_embeddings(store, clip, [(), edit.replacements], rows) @ task.texts.float().T
    else:
        means = means_of(store, cue_search.split.validation, parts)
        before = answers(store, task, rows, (), means)
        after = answers(store, task, rows, parts, means, along_cue=ablation.along_cue)
    change = (after - before)[None]
    return AblatedLogits(before, change, task.ends, labels, groups, task.group_names, task.cue_task), after


def _right(
    ablated: AblatedLogits, after: Float[Tensor, "image text"], task: int, where: Bool[Tensor, " image"]
) -> tuple[Bool[np.ndarray, " asked"], Bool[np.ndarray, " asked"]]:
    """Tell which of some images are right before, and after."""
    was, now = right(ablated, ablated.base, task), right(ablated, after, task)
    return was[where].numpy(), now[where].numpy()


def _plain(change: AccuracyChange) -> dict[str, Any]:
    return {**asdict(change), "change": change.change}
