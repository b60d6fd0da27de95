"""What silencing some parts is worth: accuracies of the test split before and after, examples, and the edit that does it.

The functions behind `clip-anatomy repair`: they print nothing, so that a page can call them too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.anatomy.cue import Board, Score, right, score
from clip_anatomy.anatomy.edit import Edit
from clip_anatomy.anatomy.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.library.evidence import rows_at
from clip_anatomy.library.rows import Row
from clip_anatomy.library.store import Store
from clip_anatomy.measure.bootstrap import Move, moves
from clip_anatomy.model.clip import Clip
from clip_anatomy.repairs.cue import Found
from clip_anatomy.repairs.silenced import Part, answers, contributions, means_of, selects, texts_in

__all__ = ["Example", "Repaired", "edit_of", "examples", "repair", "try_out"]

SCHEMA = "clip-anatomy/repair/1"


@dataclass(frozen=True)
class Repaired:
    """What silencing a selection does to the test split. Accuracies are 0–1, intervals 95 %.

    Attributes:
        selection: what was silenced.
        average: of the question, over all test images it is asked of.
        worst: of the worst group (before and after may be two groups).
        mean: over groups.
        groups: of the question in each group.
        others: of the other questions.
        cue: name of the other question that asks for the cue itself, "" if none does.
        notes: what a reader must know.
    """

    selection: Selection
    average: Move
    worst: Move
    mean: Move
    groups: tuple[Move, ...]
    others: tuple[Move, ...]
    cue: str
    notes: tuple[str, ...] = ()

    @property
    def worst_before(self) -> Move:
        """The group that was worst before."""
        return min(self.groups, key=lambda one: one.before)

    @property
    def worst_after(self) -> Move:
        """The group that is worst after."""
        return min(self.groups, key=lambda one: one.after)

    @property
    def all_questions(self) -> tuple[float, float]:
        """Mean accuracy over the question and all others, before and after."""
        every = [self.average, *self.others]
        return sum(one.before for one in every) / len(every), sum(one.after for one in every) / len(every)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "schema": SCHEMA,
            "silenced": self.selection.spec,
            "selection": self.selection.to_dict(),
            "average": _told(self.average),
            "worst_group": {
                **_told(self.worst),
                "before_is": self.worst_before.name,
                "after_is": self.worst_after.name,
            },
            "mean_over_groups": _told(self.mean),
            "groups": [_told(one) for one in self.groups],
            "other_questions": [_told(one) for one in self.others],
            "all_questions": dict(zip(("before", "after"), self.all_questions, strict=True)),
            "cue_question": self.cue,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Example:
    """Pictures for which a part writes most toward one text of the cue."""

    part: Part
    text: str
    rows: tuple[Row, ...]


def repair(store: Store, found: Found, selection: Selection, *, seed: int = 0) -> Repaired:
    """Measure on the test split what silencing some parts does. Only here the test split is read.

    Args:
        store: the store of `found`.
        found: what `find_cue` found.
        selection: parts to replace by their mean over the validation images.
        seed: of the bootstrap.

    Raises:
        BadSpec: parts that the store does not hold.
        StoreError: MLPs that were not kept.
        BadInput: scores that are not numbers, labels that are no class, no group with a test image.
    """
    parts, rows, plan = selects(store, selection), found.split.test, found.plan
    means = means_of(store, found.split.validation, parts)
    labels = plan.labels(store, rows)
    groups = plan.groups(store, rows, labels[0])
    before = answers(store, plan, rows, (), means)
    after = answers(store, plan, rows, parts, means)
    board = Board(before, (after - before)[None], plan.ends, labels, groups, plan.names, plan.cue_question)
    asked = labels[0] >= 0
    kept = [_pair(board, after, at, labels[at] >= 0) for at in range(1, len(plan.questions))]
    by_group = {
        name: _pair(board, after, 0, asked & (groups == at))
        for at, name in enumerate(plan.names)
        if bool((asked & (groups == at)).any())
    }
    if not by_group:
        raise BadInput(
            "no test image is in any of the groups. Type --group COLUMN with another column, or --split COLUMN"
        )
    each, worst, mean = moves(by_group, seed=seed)
    average = moves({plan.main.column: _pair(board, after, 0, asked)}, seed=seed)[0][0]
    others = tuple(
        moves({one.column: pair}, seed=seed)[0][0]
        for one, pair in zip(plan.questions[1:], kept, strict=True)
        if len(pair[0])
    )
    cue = plan.questions[plan.cue_question].column if plan.cue_question else ""
    notes = [f"no test image is in the group {name!r}" for name in plan.names if name not in by_group]
    notes += [f"only {one.images} test images in {one.name!r}" for one in each if one.images < 10]
    return Repaired(selection, average, worst, mean, each, others, cue, tuple(notes))


def try_out(store: Store, found: Found, selection: Selection) -> Score:
    """Accuracies of the validation split with some parts silenced: what a person may look at while choosing.

    Raises:
        BadSpec: parts that the store does not hold.
        StoreError: MLPs that were not kept.
    """
    parts, rows, plan = selects(store, selection), found.split.validation, found.plan
    after = answers(store, plan, rows, parts, means_of(store, rows, parts))
    labels = plan.labels(store, rows)
    groups = plan.groups(store, rows, labels[0])
    return score(
        Board(after, torch.zeros(1, *after.shape), plan.ends, labels, groups, plan.names, plan.cue_question), after
    )


def edit_of(store: Store, clip: Clip, found: Found, selection: Selection, notes: str = "") -> Edit:
    """The edit that replaces the selection by its means over the validation images, for any use of the model.

    Args:
        store: the store of `found`.
        clip: its model.
        found: what `find_cue` found.
        selection: the parts.
        notes: anything to keep with it.
    """
    rows = found.split.validation
    means = means_of(store, rows, selects(store, selection))
    told = f"{len(rows):,} images of {store.path.name}, the validation half"
    return Edit.of(clip, selection, means, measured_on=told, notes=notes)


def examples(store: Store, found: Found, parts: Sequence[Part], each: int = 3, texts: int = 2) -> tuple[Example, ...]:
    """Validation pictures for which each part writes most toward the cue's texts that it tells apart best.

    Args:
        store: the store of `found`.
        found: what `find_cue` found.
        parts: which parts.
        each: pictures of each text.
        texts: texts of each part.

    Returns:
        Examples; none without a cue in words.
    """
    if len(found.plan.cue) < 2:
        return ()
    rows = found.split.validation
    picked: list[tuple[Part, str, list[int]]] = []
    for part in parts:
        x, frame = contributions(store, part, rows)
        inside = texts_in(frame, found.plan.cue_texts)
        along = (x - x.mean(0)) @ (inside - inside.mean(0)).T
        for text in along.square().mean(0).argsort(descending=True)[:texts].tolist():
            best = along[:, text].argsort(descending=True, stable=True)[:each]
            picked.append((part, found.plan.cue[text], rows[best.numpy()].tolist()))
    known = rows_at(store, sorted({place for _, _, places in picked for place in places}))
    return tuple(Example(part, text, tuple(known[at] for at in places if at in known)) for part, text, places in picked)


def _pair(
    board: Board, after: Float[Tensor, "image text"], question: int, where: Bool[Tensor, " image"]
) -> tuple[Bool[np.ndarray, " asked"], Bool[np.ndarray, " asked"]]:
    was, now = right(board, board.base, question), right(board, after, question)
    return was[where].numpy(), now[where].numpy()


def _told(move: Move) -> dict[str, Any]:
    return {**asdict(move), "change": move.change}
