"""Pictures that show a repair: those for which a part writes most toward the cue, and those whose answer changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clip_anatomy.naming.top_images import rows_at
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair_ablations import HeadOrMlp, contributions, texts_in
from clip_anatomy.studies.repair_effect import RepairEffect

__all__ = ["ChangedAnswer", "ChangedAnswers", "CueExamples", "changed_answers", "cue_examples"]


@dataclass(frozen=True)
class CueExamples:
    """Pictures for which a part writes most toward one text of the cue."""

    part: HeadOrMlp
    text: str
    rows: tuple[ImageRow, ...]


@dataclass(frozen=True)
class ChangedAnswer:
    """A test picture whose answer changed between right and wrong."""

    row: ImageRow
    group: str
    truth: str
    before: str
    after: str

    @property
    def corrected(self) -> bool:
        """Whether it is right now."""
        return self.after == self.truth


@dataclass(frozen=True)
class ChangedAnswers:
    """Answers that changed on the test split.

    Attributes:
        won: how many were wrong and are right.
        lost: how many were right and are wrong.
        shown: some of them, those that were won first.
    """

    won: int
    lost: int
    shown: tuple[ChangedAnswer, ...]


def cue_examples(
    store: Store, cue_search: CueSearch, parts: Sequence[HeadOrMlp], each: int = 3, texts: int = 2
) -> tuple[CueExamples, ...]:
    """Find validation pictures for which each part writes most toward the cue's texts that it tells apart best.

    Args:
        store: the store of `found`.
        cue_search: what `find_cue` found.
        parts: which parts.
        each: pictures of each text.
        texts: texts of each part.

    Returns:
        Examples; none without a cue in words.
    """
    task, rows = cue_search.task, cue_search.split.validation
    if len(task.cue) < 2:
        return ()
    picked: list[tuple[HeadOrMlp, str, list[int]]] = []
    for part in parts:
        x, frame = contributions(store, part, rows)
        of_cue = texts_in(frame, task.cue_texts)
        along = (x - x.mean(0)) @ (of_cue - of_cue.mean(0)).T
        for text in along.square().mean(0).argsort(descending=True)[:texts].tolist():
            best = along[:, text].argsort(descending=True, stable=True)[:each]
            picked.append((part, task.cue[text], rows[best.numpy()].tolist()))
    known = rows_at(store, sorted({place for _, _, places in picked for place in places}))
    return tuple(
        CueExamples(part, text, tuple(known[at] for at in places if at in known)) for part, text, places in picked
    )


def changed_answers(
    store: Store, cue_search: CueSearch, effect: RepairEffect, won: int = 7, lost: int = 2
) -> ChangedAnswers:
    """Find some test pictures that were put right, and some that went wrong; from the groups that were worst before, in turn.

    Args:
        store: the store of `found`.
        cue_search: what `find_cue` found.
        effect: what `measure_repair` measured.
        won: how many that were put right.
        lost: how many that went wrong.
    """
    task, rows = cue_search.task, cue_search.split.test
    labels = task.main.labels_of(store, rows)
    groups = task.groups(store, rows, labels)
    before, after = effect.predicted
    order = [task.group_names.index(one.name) for one in sorted(effect.groups, key=lambda one: one.before)]
    right_before, right_after, has_label = before == labels, after == labels, labels >= 0
    picked: list[int] = []
    counts: list[int] = []
    for wanted, where in (
        (won, has_label & ~right_before & right_after),
        (lost, has_label & right_before & ~right_after),
    ):
        counts.append(int(where.sum()))
        queues = [torch.nonzero(where & (groups == group)).flatten().tolist() for group in (*order, -1)]
        longest = max(map(len, queues))
        picked += [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:wanted]
    known = rows_at(store, sorted(rows[picked].tolist()))
    names = task.main.classes
    shown = [
        ChangedAnswer(
            known[int(rows[at])], task.group_names[int(groups[at])] if groups[at] >= 0 else "", names[int(labels[at])],
            names[int(before[at])], names[int(after[at])],
        )
        for at in picked
        if int(rows[at]) in known
    ]  # fmt: skip
    return ChangedAnswers(counts[0], counts[1], tuple(shown))
