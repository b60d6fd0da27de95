"""Which parts carry a cue: accuracies with each of them ablated, and greedy selection of some. Pure: tensors in, numbers out.

Everything here sees one set of images only. A choice is made on a validation split; what it is worth is measured elsewhere.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput

__all__ = [
    "AblatedLogits", "Budget", "Score", "best_prefix", "greedy_selection", "right", "score", "scores_alone", "text_variance",
]  # fmt: skip

MOST = 10  # parts that a selection ablates, at most
COST = 0.02  # of accuracy: what the average, and each other task, may lose
CELLS = 1 << 23  # answers worked on at a time
LEAST = 0.005  # of the objective: what each ablated part must earn, or it is not worth its damage


@dataclass(frozen=True)
class Budget:
    """What a selection may cost, and must earn.

    Attributes:
        cost: accuracy that the average and each other task may lose, 0–1 (see `Score.within_budget`).
        most: parts, at most.
        least: what each part must earn of `Score.objective`.
    """

    cost: float = COST
    most: int = MOST
    least: float = LEAST

    def __post_init__(self) -> None:
        """Refuse what is no share, and no part at all."""
        if not 0 <= self.cost <= 1 or self.most < 1:
            raise BadInput(f"cost={100 * self.cost:g}, most={self.most!r}: type cost=2, most=10")


BUDGET = Budget()


@dataclass(frozen=True)
class AblatedLogits:
    """Cosines of some images with the class texts of some tasks, and what ablating each part adds to them.

    Tasks stand side by side on the text axis: task q has the columns `ends[q-1]` to `ends[q]`. The first one is the task to repair;
    the others are what must be kept.

    Attributes:
        base: cosines of the unedited images with the texts of all tasks.
        deltas: what is added to them when a part is replaced by its mean.
        ends: where each task's columns end.
        labels: class of each image in each task, −1 where it is not asked.
        groups: group of each image, −1 for none.
        group_names: names of the groups.
        cue_task: which of the other tasks asks for the cue itself (1 for the first of them), 0 for none.
    """

    base: Float[Tensor, "image text"]
    deltas: Float[Tensor, "part image text"]
    ends: tuple[int, ...]
    labels: Int64[Tensor, "task image"]
    groups: Int64[Tensor, " image"]
    group_names: tuple[str, ...]
    cue_task: int = 0

    def __post_init__(self) -> None:
        """Refuse scores that are not numbers, and images of which none has a label."""
        bad = ~torch.isfinite(self.base).all(1)
        bad |= ~torch.isfinite(self.deltas).all(2).all(0)
        if bool(bad.any()):
            raise BadInput(
                f"the scores of {int(bad.sum())} of {len(self.base)} images are NaN or infinite, so nothing can be ranked. Find the "
                "damage with: clip-anatomy verify STORE"
            )
        if not bool((self.labels[0] >= 0).any()):
            raise BadInput("no image has a label to be right about. Type label=COLUMN with a column that is filled")


@dataclass(frozen=True)
class Score:
    """Accuracies, 0–1.

    Attributes:
        average: of the task, over all images it is asked of.
        groups: of the task in each group; NaN for an empty one.
        others: of the other tasks.
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
    def objective(self) -> float:
        """What a selection maximises: half the worst group, half the mean of groups.

        The worst group alone says nothing as long as it stays at zero, and hangs on few images.
        """
        return (self.worst + self.mean) / 2

    def within_budget(self, before: "Score", cost: float, cue_task: int = 0) -> bool:
        """Say whether neither the average nor another task lost more than `cost`.

        Args:
            before: accuracies with nothing ablated.
            cost: what may be lost, 0–1.
            cue_task: the task of the cue itself (see `AblatedLogits`), which may lose anything: who ablates a cue wants it unseen.
        """
        lost = [
            then - now for then, now in zip((before.average, *before.others), (self.average, *self.others), strict=True)
        ]
        lost = [0.0 if math.isnan(loss) else loss for loss in lost]  # never asked, never lost
        each = [loss for at, loss in enumerate(lost) if not at or at != cue_task]
        return max(each) <= cost + 1e-9


def right(ablated: AblatedLogits, logits: Float[Tensor, "image text"], task: int = 0) -> Bool[Tensor, " image"]:
    """Find the images that are answered rightly; False where the task is not asked."""
    start = ablated.ends[task - 1] if task else 0
    return logits[:, start : ablated.ends[task]].argmax(1) == ablated.labels[task]


def score(ablated: AblatedLogits, logits: Float[Tensor, "image text"]) -> Score:
    """Measure the accuracies of some logits.

    Example:
        >>> labels, groups = torch.tensor([[0, 0]]), torch.tensor([0, 1])
        >>> ablated = AblatedLogits(torch.eye(2), torch.zeros(1, 2, 2), (2,), labels, groups, ("a", "b"))
        >>> result = score(ablated, ablated.base)
        >>> result.average, result.groups, result.worst, result.objective
        (0.5, (1.0, 0.0), 0.0, 0.25)
    """
    return _scores(ablated, logits[None])[0]


def scores_alone(ablated: AblatedLogits) -> tuple[Score, ...]:
    """Measure the accuracies with each part ablated alone: parts are ranked by them too."""
    return tuple(_each(ablated, ablated.base, range(len(ablated.deltas))))


def _each(ablated: AblatedLogits, logits: Float[Tensor, "image text"], parts: Sequence[int]) -> list[Score]:
    """Compute accuracies with each of these parts ablated on top of what is, some at a time."""
    many = max(1, CELLS // logits.numel())
    starts = range(0, len(parts), many)
    return [one for at in starts for one in _scores(ablated, logits + ablated.deltas[list(parts[at : at + many])])]


def _scores(ablated: AblatedLogits, logits: Float[Tensor, "part image text"]) -> list[Score]:
    def share(good: Bool[Tensor, "part image"], which: Bool[Tensor, " image"]) -> list[float]:
        here = good[:, which]
        return here.double().mean(1).tolist() if here.shape[1] else [math.nan] * len(here)

    starts = (0, *ablated.ends)
    good = [
        logits[:, :, start:end].argmax(2) == labels
        for start, end, labels in zip(starts, ablated.ends, ablated.labels, strict=False)
    ]
    has_label = ablated.labels >= 0
    averages = share(good[0], has_label[0])
    groups = [share(good[0], has_label[0] & (ablated.groups == at)) for at in range(len(ablated.group_names))]
    others = [share(good[at], has_label[at]) for at in range(1, len(ablated.ends))]
    return [
        Score(average, tuple(group[at] for group in groups), tuple(other[at] for other in others))
        for at, average in enumerate(averages)
    ]


def greedy_selection(ablated: AblatedLogits, budget: Budget = BUDGET) -> tuple[int, ...]:
    """Ablate one part after the other, each time the one that helps most within the budget; then stop where it paid best.

    Args:
        ablated: of the validation images.
        budget: the prefix is taken for which objective − least × parts is largest.

    Returns:
        The chosen parts in order, perhaps none.

    Example:
        >>> base = torch.tensor([[0.9, 0.8], [0.7, 0.9], [0.9, 0.8]])  # the third image is a 1 in the group of the cue
        >>> deltas = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [-0.3, 0.3]], [[-0.3, 0.3], [0.0, 0.0], [0.0, 0.0]]])
        >>> ablated = AblatedLogits(base, deltas, (2,), torch.tensor([[0, 1, 1]]), torch.tensor([0, 0, 1]), ("easy", "hard"))
        >>> greedy_selection(ablated)
        (0,)
    """
    before = score(ablated, ablated.base)
    logits, chosen, scores = ablated.base, list[int](), [before]
    left = list(range(len(ablated.deltas)))
    while left and len(chosen) < budget.most:
        able = [
            (now.objective, -at, now)
            for at, now in enumerate(_each(ablated, logits, left))
            if now.within_budget(before, budget.cost, ablated.cue_task)
        ]
        if not able:
            break
        _, at, now = max(able, key=lambda one: one[:2])
        chosen.append(left.pop(-at))
        logits = logits + ablated.deltas[chosen[-1]]
        scores.append(now)
    return tuple(chosen[: _most_worth(scores, budget.least)])


def best_prefix(ablated: AblatedLogits, order: Iterable[int], budget: Budget = BUDGET) -> tuple[int, ...]:
    """Choose the first k parts of a ranking, with the k that pays best: how far to follow a ranking that was made without labels.

    Args:
        ablated: of the validation images.
        order: parts, the most suspected first.
        budget: as for `greedy_selection`.

    Returns:
        A prefix of the ranking, perhaps none of it.
    """
    before = score(ablated, ablated.base)
    logits, taken, scores = ablated.base, list(order)[: budget.most], [before]
    for part in taken:
        logits = logits + ablated.deltas[part]
        now = score(ablated, logits)
        scores.append(
            now if now.within_budget(before, budget.cost, ablated.cue_task) else replace(now, average=math.nan)
        )
    return tuple(taken[: _most_worth(scores, budget.least)])


def _most_worth(scores: Sequence[Score], least: float) -> int:
    """Tell how many parts pay best; scores without an average are over the budget."""
    able = [count for count, one in enumerate(scores) if not math.isnan(one.average)]
    return max(able, key=lambda count: (scores[count].objective - least * count, -count))


def text_variance(x: Float[Tensor, "image d"], texts: Float[Tensor, "text d"]) -> float:
    """Measure the variance of a part along some texts: Σ_j var(⟨x, t_j − t̄⟩) / n, in squared parts of a cosine.

    After the component ranking of vit-decompose (NeurIPS 2024), which compares the variance along the texts of a cue with that
    along the texts of the classes; here for centred texts and without their covariance.

    Args:
        x: contributions of the part.
        texts: the texts, in the same coordinates, two or more.
    """
    along = (x.double() - x.double().mean(0)) @ (texts.double() - texts.double().mean(0)).T
    return float(along.square().mean(0).sum() / len(texts))
