"""`Plan`: what a repair asks of a store: the question, its groups, the suspected cue, and the questions that must be kept.

A `Plan` is made from the rows of the validation split alone; labels and groups of any rows are read with it afterwards.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.ground_truth import is_world
from clip_anatomy.store.store import Store
from clip_anatomy.studies.class_texts import WORLD
from clip_anatomy.studies.columns import class_named, codes_in, column_of, columns_of, few, listed, same
from clip_anatomy.studies.cue_question import Question, cue_texts, question_of

__all__ = ["Plan", "plan_of"]

FLAT = 1e-3  # of the largest: directions in which the cue's texts do not differ
FEW = 5  # images that a group made by crossing needs in the validation split
Rule = Literal["as they are", "agrees", "crossed", "guessed", "none"]


@dataclass(frozen=True)
class Plan:
    """What is asked, and how groups are told.

    Attributes:
        questions: the question of the repair, then those that must be kept.
        rule: how groups are made: the column "as they are"; whether a value that names a class "agrees" with the label; class and
            value "crossed"; class and the model's own "guessed" value of the cue; "none".
        column: the column of the groups, "" where they are guessed.
        names: the groups.
        cue: texts of the suspected cue, one a value; may be none.
        cue_texts: their unit embeddings.
        world: pictures of the demo world: those with two different objects are not asked.
        notes: what a reader must know.
    """

    questions: tuple[Question, ...]
    rule: Rule
    column: str
    names: tuple[str, ...]
    cue: tuple[str, ...]
    cue_texts: Float[Tensor, "text embed"]
    world: bool = False
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Question:
        """The question of the repair."""
        return self.questions[0]

    def cue_in_words(self, most: int = 6) -> str:
        """Return what may mislead the model: "sky, water", "the digit (1, 2, 3, 4)"; "" if it was not said in words."""
        named = ", ".join(self.cue[:most]) + (", …" if len(self.cue) > most else "")
        return f"the {self.column} ({named})" if named and self.rule in ("agrees", "crossed") else named

    @property
    def texts(self) -> Float[Tensor, "text embed"]:
        """The classes of all questions, side by side."""
        return torch.cat([one.texts for one in self.questions])

    @property
    def cue_frame(self) -> Float[Tensor, "direction embed"]:
        """An orthonormal basis of what tells the cue's texts apart: their span after their mean is taken off."""
        if len(self.cue) < 2:
            return self.cue_texts[:0]
        centred = self.cue_texts.double() - self.cue_texts.double().mean(0)
        _, size, rows = torch.linalg.svd(centred, full_matrices=False)
        return rows[size > FLAT * size[0]].float()

    @property
    def along_cue(self) -> Float[Tensor, "text embed"]:
        """`texts`, as much of them as lies in `cue_frame`."""
        return self.texts @ self.cue_frame.T @ self.cue_frame

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each question's classes end in `texts`."""
        return tuple(np.cumsum([len(one.classes) for one in self.questions]).tolist())

    @property
    def cue_question(self) -> int:
        """Which question asks for the cue itself; 0 if none does."""
        for at, one in enumerate(self.questions):
            if at and (one.column == self.column or (self.cue and {*map(same, self.cue)} <= {*map(same, one.classes)})):
                return at
        return 0

    def labels(self, store: Store, rows: np.ndarray) -> Int64[Tensor, "question image"]:
        """Right answers of some images, −1 where a question is not asked of them, or the label is no class (see `strangers`)."""
        found = torch.full((len(self.questions), len(rows)), -1)
        alone = (
            [value in (None, "") for value in column_of(store, "shape2", rows)] if self.world else [True] * len(rows)
        )
        for at, question in enumerate(self.questions):
            told = column_of(store, question.column, rows)
            found[at] = codes_in(told, question.classes, question.column, strict=False)
            if self.world and question.column != "digit":
                found[at][~torch.tensor(alone)] = -1
        return found

    def strangers(self, store: Store, rows: np.ndarray) -> tuple[str, ...]:
        """Labels of some images that are no class of the question, because no image that the plan was made of has them."""
        told = {str(value) for value in column_of(store, self.main.column, rows) if value not in (None, "")}
        known = {same(name) for name in self.main.classes}
        return tuple(sorted(value for value in told if same(value) not in known))

    def groups(self, store: Store, rows: np.ndarray, labels: Int64[Tensor, " image"]) -> Int64[Tensor, " image"]:
        """Groups of some images, as places in `names`; −1 for none.

        Args:
            store: the store.
            rows: which images.
            labels: their answers to the main question.
        """
        code = {name: at for at, name in enumerate(self.names)}
        return torch.tensor([code.get(name, -1) for name in _group_names(self, store, rows, labels)], dtype=torch.int64)

    def outside(self, store: Store, rows: np.ndarray, labels: Int64[Tensor, " image"]) -> int:
        """How many images are in a group that is none of `names`, because too few images that the plan was made of are."""
        return sum(name != "" and name not in self.names for name in _group_names(self, store, rows, labels))


def plan_of(
    store: Store,
    clip: Clip,
    rows: np.ndarray,
    *,
    label: str = "label",
    classes: Sequence[str] | str | None = None,
    group: str | None = None,
    cue: Sequence[str] | str | None = None,
    also: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> Plan:
    """Work out what to ask of a store.

    Args:
        store: the store.
        clip: its model.
        rows: the images that may be looked at for it: the validation split.
        label: column of the right answers.
        classes: names of the classes, "a, b, c", or a text file of one a line; by default the values of the column.
        group: column of the groups; by default "group" where it is filled.
        cue: what is suspected, in words: texts, or "sky, water"; by default the words of the groups.
        also: columns of other questions that must be kept; by default, for the demo world, all that it knows.
        templates: prompts to average; by default "a photo of a {}.", for the demo world its own.

    Raises:
        BadInput: labels that match no class, one class only, no groups and no cue, columns that are not there.
    """
    world = is_world(store)
    if world:  # its labels are shapes, and the flaw of its counts is the printed digit
        label = "shape" if label == "label" else label
        group = "digit" if group is None and label == "count" else group
    asked = question_of(store, clip, rows, label, classes=classes, templates=templates, world=world)
    labels = replace(_plain(asked), world=world).labels(store, rows)[0]
    if len(set(labels[labels >= 0].tolist())) < 2:
        said = "no class" if not bool((labels >= 0).any()) else f"one class only ({asked.classes[int(labels.max())]})"
        raise BadInput(
            f"column {label!r} of the validation images holds {said}; two or more are needed. Type --label COLUMN, one of: {columns_of(store)}"
        )
    column = "group" if group is None else group
    values = column_of(store, column, rows) if group is not None or any(column_of(store, "group", rows)) else []
    texts = listed(cue)
    plan = _grouped(asked, column if values else "", values, labels, texts)
    kept = [name for name in WORLD if name != label] if also is None and world else list(also or ())
    others = [question_of(store, clip, rows, name, templates=templates, world=world) for name in kept]
    words = cue_texts(clip, plan.cue, templates, world=world)
    plan = replace(plan, questions=(asked, *others), cue_texts=words, world=world)
    if plan.rule in ("crossed", "guessed"):
        plan = _without_few(plan, _group_names(plan, store, rows, labels))
    counts = torch.bincount(plan.groups(store, rows, labels)[labels >= 0].clamp(min=0), minlength=len(plan.names))
    if len(plan.names) < 2 or int((counts > 0).sum()) < 2:
        raise BadInput(
            f"the groups of the validation images are empty, or only one is not ({few(plan.names)}), so that nothing can be found by "
            "comparing them. Type --group COLUMN with another column, or --cue WORDS, or index more pictures"
        )
    empty = [name for name, count in zip(plan.names, counts.tolist(), strict=True) if not count]
    if empty:
        plan = replace(
            plan, notes=(*plan.notes, f"no validation image is in {few(empty)}: they count in the test only")
        )
    return plan


def _plain(question: Question) -> Plan:
    return Plan((question,), "none", "", (), (), question.texts[:0])


# ---- groups


def _grouped(
    asked: Question, column: str, values: Sequence[Any], labels: Int64[Tensor, " image"], cue: tuple[str, ...]
) -> Plan:
    """Decide how groups are told from a column, or from the words of a cue."""
    plan = _plain(asked)
    told = ["" if value is None else str(value) for value in values]
    kinds = (
        sorted({value for value, label in zip(told, labels.tolist(), strict=True) if value and label >= 0})
        if told
        else []
    )
    if not kinds:
        if len(cue) < 2:
            raise BadInput(
                "the images are in no groups, and no cue is suspected. Type --group COLUMN (where the cue is), or say what may mislead "
                "the model: --cue 'sky, water'"
            )
        note = "groups are class and cue, the cue as the model itself sees it by the words given"
        return replace(plan, rule="guessed", names=_crossed(asked.classes, cue), cue=cue, notes=(note,))
    named = [class_named(value, asked.classes) for value in kinds]
    if all(at >= 0 for at in named):
        names = (f"{column} agrees", f"{column} disagrees", f"no {column}")
        names = names if "" in told else names[:2]
        return replace(plan, rule="agrees", column=column, names=names, cue=cue or tuple(kinds))
    pairs = {(value, label) for value, label in zip(told, labels.tolist(), strict=True) if value and label >= 0}
    if len(pairs) == len(kinds):
        home = {value: asked.classes[label] for value, label in pairs}
        words = tuple(dict.fromkeys(filter(None, (_rest(value, home[value]) for value in kinds))))
        return replace(
            plan, rule="as they are", column=column, names=tuple(kinds), cue=cue or (words if len(words) > 1 else ())
        )
    names = _crossed(asked.classes, tuple(kinds))
    return replace(plan, rule="crossed", column=column, names=names, cue=cue or tuple(kinds))


def _group_names(plan: Plan, store: Store, rows: np.ndarray, labels: Int64[Tensor, " image"]) -> list[str]:
    classes = plan.main.classes
    if plan.rule == "guessed":
        seen = (store.embeddings(rows, unit=True) @ plan.cue_texts.T).argmax(1).tolist()
        told = [plan.cue[at] for at in seen]
    elif plan.rule == "none":
        return [""] * len(rows)
    else:
        told = ["" if value is None else str(value) for value in column_of(store, plan.column, rows)]
    found: list[str] = []
    for value, label in zip(told, labels.tolist(), strict=True):
        if label < 0:
            found.append("")
        elif plan.rule == "as they are":
            found.append(value)
        elif plan.rule == "agrees":
            agrees = "agrees" if class_named(value, classes) == label else "disagrees"
            found.append(f"{plan.column} {agrees}" if value else f"no {plan.column}")
        else:
            found.append(_cross(classes[label], value) if value else "")
    return found


def _without_few(plan: Plan, told: Sequence[str]) -> Plan:
    """Leave out crossed groups of too few validation images."""
    kept = tuple(name for name in plan.names if told.count(name) >= FEW)
    out = [name for name in plan.names if name not in kept and told.count(name)]
    note = f"groups of fewer than {FEW} validation images are left out: {few(out)}"
    return replace(plan, names=kept, notes=(*plan.notes, note) if out else plan.notes)


def _cross(name: str, value: str) -> str:
    return f"{name}, {value}"


def _crossed(classes: Sequence[str], values: Sequence[str]) -> tuple[str, ...]:
    return tuple(_cross(name, value) for name in classes for value in values)


def _rest(group: str, name: str) -> str:
    """The words of a group without those of its class: "bird on sky" of a bird → "sky"."""
    words = re.findall(r"\w+", group)
    left = [word for word in words if same(word) not in {same(one) for one in re.findall(r"\w+", name)}]
    while len(left) > 1 and left[0].lower() in ("on", "in", "with", "at", "and", "the", "a", "an", "of"):
        left = left[1:]
    return " ".join(left)
