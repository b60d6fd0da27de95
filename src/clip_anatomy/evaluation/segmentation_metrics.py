"""Metrics of segmentation in streaming form: a confusion matrix that grows picture by picture, and average precision."""

from dataclasses import dataclass, replace
from math import isnan

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from clip_anatomy.data.masked import IGNORED
from clip_anatomy.errors import BadInput

__all__ = ["Confusion", "Mean", "average_precision", "pair_average_precision"]


@dataclass(frozen=True)
class Confusion:
    """How often each true class was predicted as each class, over all pixels seen so far.

    All figures are of the whole data set, not means over pictures: that is what published mIoU are.

    Attributes:
        counts: pixels, [true class, predicted class].

    Example:
        >>> seen = Confusion.empty(2).add(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> [round(float(v), 2) for v in seen.iou], round(seen.pixel_accuracy, 2)
        ([0.5, 0.5], 0.67)
    """

    counts: Int64[Tensor, "row col"]

    @classmethod
    def empty(cls, classes: int) -> "Confusion":
        """Nothing seen yet."""
        return cls(torch.zeros(classes, classes, dtype=torch.int64))

    def add(self, predicted: Int[Tensor, "..."], truth: Int[Tensor, "..."]) -> "Confusion":
        """With the pixels of one picture; those whose truth is IGNORED are left out.

        Args:
            predicted: classes, of any shape.
            truth: likewise.

        Raises:
            BadInput: shapes that differ, or classes that there are not.
        """
        if predicted.shape != truth.shape:
            raise BadInput(
                f"prediction {list(predicted.shape)} and truth {list(truth.shape)} differ in size. Type masks of one size"
            )
        classes = len(self.counts)
        counted = truth != IGNORED
        true, said = truth[counted].long(), predicted[counted].long()
        for name, ids in (("truth", true), ("prediction", said)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
                raise BadInput(
                    f"classes of the {name} run from {int(ids.min())} to {int(ids.max())}: 0..{classes - 1} were "
                    f"expected. Type {IGNORED} for pixels that do not count"
                )
        fresh = torch.bincount(true * classes + said, minlength=classes * classes).reshape(classes, classes)
        return replace(self, counts=self.counts + fresh.to(self.counts.device))

    def merge(self, other: "Confusion") -> "Confusion":
        """Both together."""
        return replace(self, counts=self.counts + other.counts)

    @property
    def iou(self) -> Float[Tensor, " row"]:
        """Intersection over union of each class; NaN for a class that is neither there nor predicted."""
        both = self.counts.diagonal().double()
        union = self.counts.sum(0).double() + self.counts.sum(1).double() - both
        return torch.where(union > 0, both / union, torch.nan)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that are there or predicted; NaN when nothing was seen."""
        return float(self.iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of right pixels; NaN when nothing was seen."""
        total = int(self.counts.sum())
        return int(self.counts.diagonal().sum()) / total if total else float("nan")

    @property
    def class_accuracy(self) -> Float[Tensor, " row"]:
        """Share of each class's pixels that are right; NaN for a class that is not there."""
        there = self.counts.sum(1).double()
        return torch.where(there > 0, self.counts.diagonal().double() / there, torch.nan)


@dataclass(frozen=True)
class Mean:
    """A mean over pictures, one at a time; NaN where a picture has no value is left out.

    Attributes:
        total: sum so far.
        count: pictures so far.
    """

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> "Mean":
        """With one more picture."""
        return self if isnan(value) else Mean(self.total + value, self.count + 1)

    @property
    def value(self) -> float:
        """The mean, NaN of nothing."""
        return self.total / self.count if self.count else float("nan")


def average_precision(scores: Float[Tensor, " entry"], truth: Bool[Tensor, " entry"]) -> float:
    """Area under the precision–recall steps: Σ (recall_k − recall_{k−1}) · precision_k, equal scores taken together.

    The definition of scikit-learn's `average_precision_score`, without interpolation.

    Args:
        scores: higher means more likely.
        truth: what is so.

    Returns:
        0..1; NaN where nothing is true.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, False, True]))
        0.8333333333333333
    """
    positives = int(truth.sum())
    if not positives:
        return float("nan")
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], truth[order].double().cumsum(0)
    last = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool, device=ranked.device)])
    hits, seen = hits[last], (last.nonzero().flatten() + 1).double()
    gained = torch.diff(hits, prepend=hits.new_zeros(1)) / positives
    return float((gained * hits / seen).sum())


def pair_average_precision(map_: Float[Tensor, "row col"], mask: Shaped[Tensor, "row col"]) -> float:
    """Average precision of background and foreground together, as in the ImageNet-Segmentation protocol.

    The two maps [1 − map, map] are flattened into one ranking and compared with the mask's one-hot form
    (Chefer et al. 2021 and everyone since; field code of Gandelsman et al. 2024).

    Args:
        map_: 0..1.
        mask: 1 foreground, 0 background, IGNORED.

    Returns:
        0..1; NaN where no pixel counts.
    """
    counted = mask != IGNORED
    scores, there = map_[counted], mask[counted] == 1
    return average_precision(torch.cat([1 - scores, scores]), torch.cat([~there, there]))
