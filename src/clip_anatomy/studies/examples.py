"""Pictures that show a repair: those for which a part speaks up most, and those whose answer changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clip_anatomy.naming.top_images import rows_at
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store
from clip_anatomy.studies.ablated_answers import Part, contributions, texts_in
from clip_anatomy.studies.cue_result import Found
from clip_anatomy.studies.repair import Repaired

__all__ = ["Example", "Flip", "Flips", "examples", "flips"]


@dataclass(frozen=True)
class Example:
    """Pictures for which a part writes most toward one text of the cue."""

    part: Part
    text: str
    rows: tuple[ImageRow, ...]


@dataclass(frozen=True)
class Flip:
    """A test picture whose answer changed between right and wrong."""

    row: ImageRow
    group: str
    truth: str
    was: str
    now: str

    @property
    def mended(self) -> bool:
        """Whether it is right now."""
        return self.now == self.truth


@dataclass(frozen=True)
class Flips:
    """Answers that changed on the test split.

    Attributes:
        won: how many were wrong and are right.
        lost: how many were right and are wrong.
        shown: some of them, those that were won first.
    """

    won: int
    lost: int
    shown: tuple[Flip, ...]


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


def flips(store: Store, found: Found, told: Repaired, won: int = 7, lost: int = 2) -> Flips:
    """Some test pictures that were put right, and some that went wrong; from the groups that were worst before, in turn.

    Args:
        store: the store of `found`.
        found: what `find_cue` found.
        told: what `repair` measured.
        won: how many that were put right.
        lost: how many that went wrong.
    """
    plan, rows = found.plan, found.split.test
    labels = plan.labels(store, rows)[0]
    groups = plan.groups(store, rows, labels)
    before, after = told.answers
    order = [plan.names.index(one.name) for one in sorted(told.groups, key=lambda one: one.before)]
    picked: list[int] = []
    counts: list[int] = []
    was, now, asked = before == labels, after == labels, labels >= 0
    for wanted, where in ((won, asked & ~was & now), (lost, asked & was & ~now)):
        counts.append(int(where.sum()))
        queues = [torch.nonzero(where & (groups == group)).flatten().tolist() for group in (*order, -1)]
        longest = max(map(len, queues))
        picked += [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:wanted]
    known = rows_at(store, sorted(rows[picked].tolist()))
    names = plan.main.classes
    shown = [
        Flip(
            known[int(rows[at])], plan.names[int(groups[at])] if groups[at] >= 0 else "", names[int(labels[at])],
            names[int(before[at])], names[int(after[at])],
        )
        for at in picked
        if int(rows[at]) in known
    ]  # fmt: skip
    return Flips(counts[0], counts[1], tuple(shown))
