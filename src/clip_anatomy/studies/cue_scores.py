"""Which parts carry a cue: what each would change if it were silenced, and choosing some of them. Pure: tensors in, numbers out.

Everything here sees one set of images only. A choice is made on a validation split; what it is worth is measured elsewhere.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput

__all__ = ["Board", "Score", "alone", "climb", "first", "right", "score", "spread"]

MOST = 10  # parts that a choice silences, at most
COST = 0.02  # of accuracy: what the average, and each other question, may lose
CELLS = 1 << 23  # answers worked on at a time
LEAST = 0.005  # of the goal: what each silenced part must earn, or it is not worth its damage


@dataclass(frozen=True)
class Board:
    """Answers of some images to some questions, and what silencing each part would add to them.

    Questions stand side by side on the text axis: question q is answered by the columns `ends[q-1]` to `ends[q]`. The first one is
    the question of the repair; the others are what must be kept.

    Attributes:
        base: cosines of the unedited images with the texts of all questions.
        deltas: what is added to them when a part is replaced by its mean.
        ends: where each question's columns end.
        labels: right answer of each image to each question, −1 where it is not asked.
        groups: group of each image, −1 for none.
        names: names of the groups.
        cue: which of the other questions asks for the cue itself (1 for the first of them), 0 for none.
    """

    base: Float[Tensor, "image text"]
    deltas: Float[Tensor, "part image text"]
    ends: tuple[int, ...]
    labels: Int64[Tensor, "question image"]
    groups: Int64[Tensor, " image"]
    names: tuple[str, ...]
    cue: int = 0

    def __post_init__(self) -> None:
        """Refuse scores that are not numbers, and boards on which nothing can be told apart."""
        bad = ~torch.isfinite(self.base).all(1)
        bad |= ~torch.isfinite(self.deltas).all(2).all(0)
        if bool(bad.any()):
            raise BadInput(
                f"the scores of {int(bad.sum())} of {len(self.base)} images are NaN or infinite, so nothing can be ranked. Find the "
                "damage with: clip-anatomy verify STORE"
            )
        if not bool((self.labels[0] >= 0).any()):
            raise BadInput("no image has a label to be right about. Type --label COLUMN with a column that is filled")


@dataclass(frozen=True)
class Score:
    """Accuracies, 0–1.

    Attributes:
        average: of the question, over all images it is asked of.
        groups: of the question in each group; NaN for an empty one.
        others: of the other questions.
    """

    average: float
    groups: tuple[float, ...]
    others: tuple[float, ...] = ()

    @property
    def filled(self) -> tuple[float, ...]:
        """Groups that are not empty."""
        return tuple(value for value in self.groups if not math.isnan(value))

    @property
    def worst(self) -> float:
        """Accuracy of the worst group."""
        return min(self.filled, default=self.average)

    @property
    def mean(self) -> float:
        """Mean over groups."""
        return sum(self.filled) / len(self.filled) if self.filled else self.average

    @property
    def goal(self) -> float:
        """What a choice maximises: half the worst group, half the mean of groups.

        The worst group alone says nothing as long as it stays at zero, and hangs on few images.
        """
        return (self.worst + self.mean) / 2

    def bears(self, before: "Score", cost: float, cue: int = 0) -> bool:
        """Whether the rest bears it: neither the average nor another question lost more than `cost`.

        Args:
            before: accuracies with nothing silenced.
            cost: what may be lost, 0–1.
            cue: the question about the cue itself (see `Board`), which may lose anything: who silences a cue wants it unseen.
        """
        lost = [
            then - now for then, now in zip((before.average, *before.others), (self.average, *self.others), strict=True)
        ]
        lost = [0.0 if math.isnan(loss) else loss for loss in lost]  # never asked, never lost
        each = [loss for at, loss in enumerate(lost) if not at or at != cue]
        return max(each) <= cost + 1e-9


def right(board: Board, logits: Float[Tensor, "image text"], question: int = 0) -> Bool[Tensor, " image"]:
    """Which images are answered rightly, False where the question is not asked."""
    start = board.ends[question - 1] if question else 0
    return logits[:, start : board.ends[question]].argmax(1) == board.labels[question]


def score(board: Board, logits: Float[Tensor, "image text"]) -> Score:
    """Accuracies of some answers.

    Example:
        >>> board = Board(torch.eye(2), torch.zeros(1, 2, 2), (2,), torch.tensor([[0, 0]]), torch.tensor([0, 1]), ("a", "b"))
        >>> told = score(board, board.base)
        >>> told.average, told.groups, told.worst, told.goal
        (0.5, (1.0, 0.0), 0.0, 0.25)
    """
    return _scores(board, logits[None])[0]


def alone(board: Board, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[Score, ...]:
    """Accuracies with each part silenced alone: the third way to rank parts, by held-out group accuracy."""
    return tuple(_each(board, board.base, range(len(board.deltas)), progress))


def _each(
    board: Board,
    logits: Float[Tensor, "image text"],
    parts: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Score]:
    """Accuracies with each of these parts silenced on top of what is, some at a time."""
    found: list[Score] = []
    many = max(1, CELLS // logits.numel())
    for start in range(0, len(parts), many):
        found += _scores(board, logits + board.deltas[list(parts[start : start + many])])
        progress(len(found), len(parts))
    return found


def _scores(board: Board, logits: Float[Tensor, "part image text"]) -> list[Score]:
    def share(good: Bool[Tensor, "part image"], which: Bool[Tensor, " image"]) -> list[float]:
        here = good[:, which]
        return here.double().mean(1).tolist() if here.shape[1] else [math.nan] * len(here)

    starts = (0, *board.ends)
    good = [
        logits[:, :, start:end].argmax(2) == labels
        for start, end, labels in zip(starts, board.ends, board.labels, strict=False)
    ]
    asked = board.labels >= 0
    averages = share(good[0], asked[0])
    groups = [share(good[0], asked[0] & (board.groups == at)) for at in range(len(board.names))]
    others = [share(good[at], asked[at]) for at in range(1, len(board.ends))]
    return [
        Score(average, tuple(group[at] for group in groups), tuple(other[at] for other in others))
        for at, average in enumerate(averages)
    ]


def climb(
    board: Board, parts: Sequence[int] | None = None, *, cost: float = COST, most: int = MOST, least: float = LEAST
) -> tuple[int, ...]:
    """Silence one part after the other, each time the one that helps most and that the rest bears; then stop where it paid best.

    Args:
        board: answers of the validation images.
        parts: which may be chosen; all by default.
        cost: accuracy that the average and each other question may lose, 0–1 (see `Score.bears`).
        most: parts, at most.
        least: what each part must earn of `Score.goal`: the prefix is taken for which goal − least × parts is largest.

    Returns:
        The chosen parts in order, perhaps none.

    Example:
        >>> base = torch.tensor([[0.9, 0.8], [0.7, 0.9], [0.9, 0.8]])  # the third image is a 1 in the group of the cue
        >>> deltas = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [-0.3, 0.3]], [[-0.3, 0.3], [0.0, 0.0], [0.0, 0.0]]])
        >>> board = Board(base, deltas, (2,), torch.tensor([[0, 1, 1]]), torch.tensor([0, 0, 1]), ("easy", "hard"))
        >>> climb(board)
        (0,)
    """
    before = score(board, board.base)
    logits, chosen, seen = board.base, list[int](), [before]
    left = list(range(len(board.deltas)) if parts is None else parts)
    while left and len(chosen) < most:
        able = [
            (told.goal, -at, told)
            for at, told in enumerate(_each(board, logits, left))
            if told.bears(before, cost, board.cue)
        ]
        if not able:
            break
        _, at, told = max(able, key=lambda one: one[:2])
        chosen.append(left.pop(-at))
        logits = logits + board.deltas[chosen[-1]]
        seen.append(told)
    return tuple(chosen[: _best(seen, least)])


def first(
    board: Board, order: Iterable[int], *, cost: float = COST, most: int = MOST, least: float = LEAST
) -> tuple[int, ...]:
    """The first k parts of a ranking, with the k that pays best: how far to follow a ranking that was made without labels.

    Args:
        board: answers of the validation images.
        order: parts, the most suspected first.
        cost: as for `climb`.
        most: parts, at most.
        least: as for `climb`.

    Returns:
        A prefix of the ranking, perhaps none of it.
    """
    before = score(board, board.base)
    logits, taken, seen = board.base, list(order)[:most], [before]
    for part in taken:
        logits = logits + board.deltas[part]
        told = score(board, logits)
        seen.append(told if told.bears(before, cost, board.cue) else replace(told, average=math.nan))
    return tuple(taken[: _best(seen, least)])


def _best(seen: Sequence[Score], least: float) -> int:
    """How many parts pay best; scores without an average are not borne."""
    worth = [told.goal - least * count for count, told in enumerate(seen)]
    able = [count for count, told in enumerate(seen) if not math.isnan(told.average)]
    return max(able, key=lambda count: (worth[count], -count))


def spread(x: Float[Tensor, "image d"], texts: Float[Tensor, "text d"]) -> float:
    """How far a part tells some texts apart from image to image: Σ_j var(⟨x, t_j − t̄⟩) / n, in squared parts of a cosine.

    After the component ranking of vit-decompose (NeurIPS 2024), which compares the variance along the texts of a cue with that
    along the texts of the classes; here for centred texts and without their covariance.

    Args:
        x: contributions of the part.
        texts: the texts, in the same coordinates, two or more.
    """
    along = (x.double() - x.double().mean(0)) @ (texts.double() - texts.double().mean(0)).T
    return float(along.square().mean(0).sum() / len(texts))
