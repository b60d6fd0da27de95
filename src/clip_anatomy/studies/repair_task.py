"""`RepairTask`: the task to repair, its groups, the suspected cue, and the other tasks that must keep their accuracy.

It is made from the rows of the validation split alone; labels and groups of any rows are read with it afterwards.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.ground_truth import is_world
from clip_anatomy.store.store import Store
from clip_anatomy.studies.store_columns import columns_of, comparable, few, listed, matching_class, text_column
from clip_anatomy.studies.zero_shot_task import WORLD, ZeroShotTask, class_texts, values_of, zero_shot_task

__all__ = ["RepairTask", "TaskSettings", "repair_task"]

FLAT = 1e-3  # of the largest: directions in which the cue's texts do not differ
FEW = 5  # images that a group made by crossing needs in the validation split
FILLERS = ("on", "in", "with", "at", "and", "the", "a", "an", "of")
Rule = Literal["as they are", "agrees", "crossed", "guessed"]


@dataclass(frozen=True)
class TaskSettings:
    """What is asked of a store, and which of its columns hold it.

    Attributes:
        label: column of the right answers.
        classes: names of the classes, "a, b, c", or a text file of one a line; by default the values of the column.
        group: column of the groups, or of the cue; by default "group" where it is filled.
        cue: what is suspected, in words: texts, or "sky, water"; by default the words of the groups.
        also: columns of other tasks that must be kept; by default, for the demo world, all that it knows.
        templates: prompts to average; by default "a photo of a {}.", for the demo world its own.
    """

    label: str = "label"
    classes: Sequence[str] | str | None = None
    group: str | None = None
    cue: Sequence[str] | str | None = None
    also: Sequence[str] | str | None = None
    templates: Sequence[str] | str | None = None


DEFAULTS = TaskSettings()


@dataclass(frozen=True)
class RepairTask:
    """What is asked of the images, and how they are grouped.

    Attributes:
        tasks: the task to repair, then those that must be kept.
        rule: how groups are made: the column "as they are"; whether a value that names a class "agrees" with the label; class and
            value "crossed"; class and the model's own "guessed" value of the cue.
        column: the column of the groups, "" where they are guessed.
        group_names: the groups.
        cue: texts of the suspected cue, one a value; may be none.
        cue_texts: their unit embeddings.
        notes: what a reader must know.
    """

    tasks: tuple[ZeroShotTask, ...]
    rule: Rule
    column: str
    group_names: tuple[str, ...]
    cue: tuple[str, ...]
    cue_texts: Float[Tensor, "text embed"]
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> ZeroShotTask:
        """The task to repair."""
        return self.tasks[0]

    def cue_in_words(self, most: int = 6) -> str:
        """Return what may mislead the model: "sky, water", "the digit (1, 2, 3, 4)"; "" if it is not known in words."""
        listing = ", ".join(self.cue[:most]) + (", …" if len(self.cue) > most else "")
        return f"the {self.column} ({listing})" if listing and self.rule in ("agrees", "crossed") else listing

    @property
    def texts(self) -> Float[Tensor, "text embed"]:
        """The classes of all tasks, side by side."""
        return torch.cat([one.texts for one in self.tasks])

    @property
    def cue_frame(self) -> Float[Tensor, "direction embed"]:
        """An orthonormal basis of what tells the cue's texts apart: their span after their mean is taken off."""
        return _differences(self.cue_texts) if len(self.cue) > 1 else self.cue_texts[:0]

    @property
    def class_frame(self) -> Float[Tensor, "direction embed"]:
        """The same of the classes of the task to repair: the answer to its question depends on nothing else of an embedding."""
        return _differences(self.main.texts)

    @property
    def along_cue(self) -> Float[Tensor, "text embed"]:
        """`texts`, as much of them as lies in `cue_frame`."""
        return self.texts @ self.cue_frame.T @ self.cue_frame

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each task's classes end in `texts`."""
        return tuple(np.cumsum([len(one.classes) for one in self.tasks]).tolist())

    @property
    def cue_task(self) -> int:
        """Which task asks for the cue itself; 0 if none does."""
        cue = {comparable(text) for text in self.cue}
        for at, one in enumerate(self.tasks[1:], 1):
            if one.column == self.column or (cue and cue <= {comparable(name) for name in one.classes}):
                return at
        return 0

    def labels(self, store: Store, rows: np.ndarray) -> Int64[Tensor, "task image"]:
        """Read the right answers of some images; −1 where a task is not asked of them, or the label is none of its classes."""
        return torch.stack([one.labels_of(store, rows) for one in self.tasks])

    def groups(self, store: Store, rows: np.ndarray, labels: Int64[Tensor, " image"]) -> Int64[Tensor, " image"]:
        """Read the groups of some images, as places in `group_names`; −1 for none.

        Args:
            store: the store.
            rows: which images.
            labels: their classes in the task to repair.
        """
        place = {name: at for at, name in enumerate(self.group_names)}
        return torch.tensor([place.get(name, -1) for name in self.named_groups(store, rows, labels)], dtype=torch.int64)

    def unknown_classes(self, store: Store, rows: np.ndarray) -> tuple[str, ...]:
        """Name the labels of some images that are no class of the task, since no validation image has them."""
        known = {comparable(name) for name in self.main.classes}
        labels = {label for label in text_column(store, self.main.column, rows) if label}
        return tuple(sorted(label for label in labels if comparable(label) not in known))

    def named_groups(self, store: Store, rows: np.ndarray, labels: Int64[Tensor, " image"]) -> list[str]:
        """Name the group of each image, be it one of `group_names` or not; "" for none."""
        if self.rule == "guessed":
            nearest = (store.embeddings(rows, unit=True) @ self.cue_texts.T).argmax(1).tolist()
            values = [self.cue[at] for at in nearest]
        else:
            values = text_column(store, self.column, rows)
        return [
            "" if label < 0 else self._group(value, label) for value, label in zip(values, labels.tolist(), strict=True)
        ]

    def _group(self, value: str, label: int) -> str:
        if self.rule == "as they are":
            return value
        if self.rule == "agrees":
            agrees = "agrees" if matching_class(value, self.main.classes) == label else "disagrees"
            return f"{self.column} {agrees}" if value else f"no {self.column}"
        return f"{self.main.classes[label]}, {value}" if value else ""


def repair_task(
    store: Store,
    clip: Clip,
    rows: np.ndarray,
    settings: TaskSettings = DEFAULTS,
) -> RepairTask:
    """Work out what to ask of a store.

    Args:
        store: the store.
        clip: its model.
        rows: the images that may be looked at for it: the validation split.
        settings: what is asked, and which columns hold it.

    Raises:
        BadInput: labels that match no class, one class only, no groups and no cue, columns that are not there.
    """
    world, group, templates = is_world(store), settings.group, settings.templates
    if world and group is None and settings.label == "count":
        group = "digit"  # the flaw of its counts is the printed digit
    main = zero_shot_task(store, lambda: clip, settings.label, rows, classes=settings.classes, templates=templates)
    labelled = main.labels[main.labels >= 0]
    if len(set(labelled.tolist())) < 2:
        held = f"one class only ({main.classes[int(labelled[0])]})" if len(labelled) else "no class"
        raise BadInput(
            f"column {main.column!r} of the validation images holds {held}; two or more are needed. Type label=COLUMN, one of: "
            f"{columns_of(store)}"
        )
    values = text_column(store, group or "group", rows)
    task = _grouped(main, (group or "group") if any(values) or group else "", values, listed(settings.cue))
    every = settings.also is None and world
    others = [name for name in WORLD if name != main.column] if every else listed(settings.also)
    kept_tasks = [zero_shot_task(store, lambda: clip, name, rows, templates=templates) for name in others]
    task = replace(task, tasks=(main, *kept_tasks), cue_texts=_cue_texts(clip, task.cue, templates, world=world))
    if task.rule in ("crossed", "guessed"):
        task = _without_few(task, task.named_groups(store, rows, main.labels))
    groups = task.groups(store, rows, main.labels)
    counts = torch.bincount(groups[main.labels >= 0].clamp(min=0), minlength=len(task.group_names)).tolist()
    if len(task.group_names) < 2 or sum(count > 0 for count in counts) < 2:
        raise BadInput(
            f"the groups of the validation images are empty, or only one is not ({few(task.group_names)}), so that nothing can be found by "
            "comparing them. Type group=COLUMN with another column, or cue=WORDS, or index more pictures"
        )
    if empty := [name for name, count in zip(task.group_names, counts, strict=True) if not count]:
        note = f"no validation image is in {few(empty)}: they count in the test only"
        task = replace(task, notes=(*task.notes, note))
    return task


def _grouped(main: ZeroShotTask, column: str, values: Sequence[str], cue: tuple[str, ...]) -> RepairTask:
    """Decide how groups are told from a column, or from the words of a cue."""
    pairs = {(value, label) for value, label in zip(values, main.labels.tolist(), strict=True) if value and label >= 0}
    kinds = tuple(sorted({value for value, _ in pairs}))
    task = RepairTask((main,), "crossed", column, _crossed(main.classes, kinds), cue or kinds, main.texts[:0])
    if not kinds:
        if len(cue) < 2:
            raise BadInput(
                "the images are in no groups, and no cue is suspected. Type group=COLUMN (where the cue is), or say what may mislead "
                "the model: cue='sky, water'"
            )
        note = "groups are class and cue, the cue as the model itself sees it by the words given"
        return replace(task, rule="guessed", column="", group_names=_crossed(main.classes, cue), notes=(note,))
    if all(matching_class(value, main.classes) >= 0 for value in kinds):
        names = (f"{column} agrees", f"{column} disagrees", f"no {column}")
        return replace(task, rule="agrees", group_names=names if "" in values else names[:2])
    if len(pairs) == len(kinds):  # each value goes with one class: these are groups already
        class_of = {value: main.classes[label] for value, label in pairs}
        words = tuple(dict.fromkeys(filter(None, (_without_class(value, class_of[value]) for value in kinds))))
        return replace(task, rule="as they are", group_names=kinds, cue=cue or (words if len(words) > 1 else ()))
    return task


def _without_few(task: RepairTask, groups: Sequence[str]) -> RepairTask:
    """Leave out crossed groups of too few validation images."""
    names = tuple(name for name in task.group_names if groups.count(name) >= FEW)
    dropped = [name for name in task.group_names if name not in names and groups.count(name)]
    note = f"groups of fewer than {FEW} validation images are left out: {few(dropped)}"
    return replace(task, group_names=names, notes=(*task.notes, note) if dropped else task.notes)


def _differences(texts: Float[Tensor, "text embed"]) -> Float[Tensor, "direction embed"]:
    centred = texts.double() - texts.double().mean(0)
    _, size, rows = torch.linalg.svd(centred, full_matrices=False)
    return rows[size > FLAT * size[0]].float()


def _crossed(classes: Sequence[str], values: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}, {value}" for name in classes for value in values)


def _without_class(group: str, name: str) -> str:
    """Strip the words of a group of those of its class: "bird on sky" of a bird → "sky"."""
    of_class = {comparable(word) for word in re.findall(r"\w+", name)}
    words = [word for word in re.findall(r"\w+", group) if comparable(word) not in of_class]
    while len(words) > 1 and words[0].lower() in FILLERS:
        words = words[1:]
    return " ".join(words)


def _cue_texts(
    clip: Clip, cue: Sequence[str], templates: Sequence[str] | str | None, *, world: bool
) -> Float[Tensor, "text embed"]:
    """Return embeddings of a cue: words alone are put into prompts, longer texts and all of the demo world's are taken as they are."""
    if not cue:
        return torch.zeros(0, clip.text_tower.embed)
    attribute = next((one for one in WORLD if {*cue} <= {*values_of(one)}), "") if world and templates is None else ""
    are_words = all(len(text.split()) < 3 for text in cue) and not world
    return class_texts(clip, cue, templates if are_words else ("{}",), attribute)
