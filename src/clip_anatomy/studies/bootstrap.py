"""Accuracies before and after a change, with bootstrap intervals of both and of their difference.

Resampling n images with replacement, of which each is right or wrong before and after, draws four counts from a multinomial
distribution: the whole bootstrap of a group is one draw a resample, whatever the number of images. Images stay in their group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from clip_anatomy.errors import BadInput

__all__ = ["AccuracyChange", "accuracy_changes"]

RESAMPLES = 4000
LEVEL = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class AccuracyChange:
    """An accuracy, 0–1, before and after a change, with 95 % intervals (percentiles of the bootstrap).

    Attributes:
        name: of what.
        images: how many it is measured on.
        before: accuracy before.
        after: accuracy after.
        before_interval: interval of `before`.
        after_interval: interval of `after`.
        change_interval: interval of the difference, taken on the same resamples.
    """

    name: str
    images: int
    before: float
    after: float
    before_interval: Interval
    after_interval: Interval
    change_interval: Interval

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


def accuracy_changes(
    groups: Mapping[str, tuple[Bool[np.ndarray, " image"], Bool[np.ndarray, " image"]]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[tuple[AccuracyChange, ...], AccuracyChange, AccuracyChange]:
    """Compare answers before and after a change, group by group.

    Args:
        groups: name → which images were right before, and after. The same images in the same order.
        seed: of the resampling.
        resamples: how often.

    Returns:
        One change a group; that of the worst group; that of the mean over groups. The worst group before and the worst one after may
        be two groups: intervals are of these two, and hold for them, not for the search for the smallest.

    Raises:
        BadInput: no group, or an empty one.

    Example:
        >>> before, after = np.arange(100) < 20, np.arange(100) < 90
        >>> each, worst, mean = accuracy_changes({"a": (before, after), "b": (after, after)})
        >>> each[0].change, worst.before, worst.after, mean.after
        (0.7, 0.2, 0.9, 0.9)
        >>> bool(worst.before_interval[0] < 0.2 < worst.before_interval[1])
        True
    """
    if empty := [name for name, (before, _) in groups.items() if not len(before)]:
        raise BadInput(
            f"groups without a test image: {', '.join(empty[:5])}. Leave them out, or type group= with another column"
        )
    if not groups:
        raise BadInput("there is no group to measure. Type group=COLUMN")
    random = np.random.default_rng(seed)
    drawn = [_draws(before, after, random, resamples) for before, after in groups.values()]
    each = [
        _change(name, len(before), (before.mean(), after.mean()), draws)
        for (name, (before, after)), draws in zip(groups.items(), drawn, strict=True)
    ]
    low, high = (min(range(len(each)), key=lambda at: (each[at].before, each[at].after)[when]) for when in (0, 1))
    worst = _change(
        "worst group", each[low].images, (each[low].before, each[high].after), np.stack([drawn[low][0], drawn[high][1]])
    )
    total = sum(one.images for one in each)
    mean = _change(
        "mean over groups",
        total,
        (_mean([one.before for one in each]), _mean([one.after for one in each])),
        np.mean(drawn, axis=0),
    )
    return tuple(each), worst, mean


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _draws(
    before: Bool[np.ndarray, " image"], after: Bool[np.ndarray, " image"], random: np.random.Generator, resamples: int
) -> Float[np.ndarray, "2 resample"]:
    """Draw accuracies before and after of every resample."""
    n = len(before)
    counts = np.bincount(2 * before.astype(int) + after, minlength=4)
    cells = random.multinomial(n, counts / n, size=resamples)  # wrong-wrong, wrong-right, right-wrong, right-right
    return np.stack([(cells[:, 2] + cells[:, 3]) / n, (cells[:, 1] + cells[:, 3]) / n])


def _change(
    name: str, images: int, values: tuple[float, float], draws: Float[np.ndarray, "2 resample"]
) -> AccuracyChange:
    ends = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]

    def interval(values: np.ndarray) -> Interval:
        low, high = np.percentile(values, ends)
        return float(low), float(high)

    return AccuracyChange(
        name,
        images,
        float(values[0]),
        float(values[1]),
        interval(draws[0]),
        interval(draws[1]),
        interval(draws[1] - draws[0]),
    )
