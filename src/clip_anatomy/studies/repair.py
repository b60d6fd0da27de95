"""What silencing some parts is worth: accuracies of the test split before and after, and the edit that does it.

The functions behind `clip-anatomy repair`: they print nothing, so that a page can call them too.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.store.store import Store
from clip_anatomy.studies.ablated_answers import Silence, answers, means_of, selects, silence_of
from clip_anatomy.studies.bootstrap import Move, moves
from clip_anatomy.studies.columns import few
from clip_anatomy.studies.cue_result import Found
from clip_anatomy.studies.cue_scores import Board, Score, right, score

__all__ = ["Repaired", "edit_of", "repair", "try_out"]

SCHEMA = "clip-anatomy/repair/1"


@dataclass(frozen=True)
class Repaired:
    """What silencing some parts does to the test split. Accuracies are 0–1, intervals 95 %.

    Attributes:
        silence: what was silenced.
        average: of the question, over all test images it is asked of.
        worst: of the worst group (before and after may be two groups).
        mean: over groups.
        groups: of the question in each group.
        others: of the other questions.
        cue: name of the other question that asks for the cue itself, "" if none does.
        answers: class that each test image was given, before and after (places in the question's classes).
        notes: what a reader must know.
    """

    silence: Silence
    average: Move
    worst: Move
    mean: Move
    groups: tuple[Move, ...]
    others: tuple[Move, ...]
    cue: str
    answers: Int64[Tensor, "2 image"] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        """The parts that were silenced."""
        return self.silence.selection

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
            "silenced": self.silence.told,
            "along_cue": self.silence.along,
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


def repair(store: Store, found: Found, what: Silence | Selection, *, seed: int = 0) -> Repaired:
    """Measure on the test split what silencing some parts does. Only here the test split is read.

    Args:
        store: the store of `found`.
        found: what `find_cue` found.
        what: parts to replace by their mean over the validation images; `found.best.silence` is the suggestion.
        seed: of the bootstrap.

    Raises:
        BadSpec: parts that the store does not hold.
        StoreError: MLPs that were not kept.
        BadInput: scores that are not numbers, no group with a test image.
    """
    silence = silence_of(what)
    parts, rows, plan = selects(store, silence), found.split.test, found.plan
    means = means_of(store, found.split.validation, parts)
    labels = plan.labels(store, rows)
    groups = plan.groups(store, rows, labels[0])
    before = answers(store, plan, rows, (), means)
    after = answers(store, plan, rows, parts, means, along=silence.along)
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
    if strange := plan.strangers(store, rows):
        notes.append(
            f"not asked of test images that are {few(strange)}: no validation image is, so it is no class here"
        )
    if outside := plan.outside(store, rows, labels[0]):
        notes.append(
            f"{outside:,} test images are in groups that too few validation images are in: they count in the average only"
        )
    said = torch.stack([x[:, : plan.ends[0]].argmax(1) for x in (before, after)])
    return Repaired(silence, average, worst, mean, each, others, cue, said, tuple(notes))


def try_out(store: Store, found: Found, what: Silence | Selection) -> Score:
    """Accuracies of the validation split with some parts silenced: what a person may look at while choosing.

    Raises:
        BadSpec: parts that the store does not hold.
        StoreError: MLPs that were not kept.
    """
    parts, rows, plan = selects(store, what), found.split.validation, found.plan
    after = answers(store, plan, rows, parts, means_of(store, rows, parts), along=silence_of(what).along)
    labels = plan.labels(store, rows)
    groups = plan.groups(store, rows, labels[0])
    return score(
        Board(after, torch.zeros(1, *after.shape), plan.ends, labels, groups, plan.names, plan.cue_question), after
    )


def edit_of(store: Store, clip: Clip, found: Found, what: Silence | Selection, notes: str = "") -> Edit:
    """The edit that replaces the parts by their means over the validation images, for any use of the model.

    Args:
        store: the store of `found`.
        clip: its model.
        found: what `find_cue` found.
        what: the parts.
        notes: anything to keep with it.
    """
    rows, silence = found.split.validation, silence_of(what)
    means = means_of(store, rows, selects(store, silence))
    told = f"{len(rows):,} images of {store.path.name}, the validation half"
    frames = dict.fromkeys(silence.selection.heads, found.plan.cue_frame) if silence.along else None
    return Edit.of(clip, silence.selection, means, directions=frames, measured_on=told, notes=notes)


def _pair(
    board: Board, after: Float[Tensor, "image text"], question: int, where: Bool[Tensor, " image"]
) -> tuple[Bool[np.ndarray, " asked"], Bool[np.ndarray, " asked"]]:
    was, now = right(board, board.base, question), right(board, after, question)
    return was[where].numpy(), now[where].numpy()


def _told(move: Move) -> dict[str, Any]:
    return {**asdict(move), "change": move.change}
