"""Metrics of maps: IoU and accuracy over pixels, average precision, multi-label mAP, the pointing game (Zhang et al. 2016, §4.2)."""

from dataclasses import dataclass, replace
from math import isnan

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from clip_anatomy.data.masked import IGNORED
from clip_anatomy.errors import BadInput

__all__ = [
    "IGNORED",
    "Confusion",
    "Mean",
    "MultiLabel",
    "Pointing",
    "average_precision",
    "bootstrap_miou",
    "pair_average_precision",
    "points_at",
]

RESAMPLES = 1000  # of a bootstrap


@dataclass(frozen=True)
class Confusion:
    """How often each true class was predicted as each class, over all pixels seen so far.

    All figures are of the whole data set, not means over pictures: that is what published mIoU are.

    Attributes:
        counts: pixels, [true class, predicted class].

    Example:
        >>> result = Confusion.empty(2).add(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> [round(float(v), 2) for v in result.iou], round(result.pixel_accuracy, 2)
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
        true, predicted_class = truth[counted].long(), predicted[counted].long()
        for name, ids in (("truth", true), ("prediction", predicted_class)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
                raise BadInput(
                    f"classes of the {name} run from {int(ids.min())} to {int(ids.max())}: 0..{classes - 1} were "
                    f"expected. Type {IGNORED} for pixels that do not count"
                )
        fresh = torch.bincount(true * classes + predicted_class, minlength=classes * classes).reshape(classes, classes)
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


def bootstrap_miou(
    pictures: Shaped[Tensor, "image _ class"], draws: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Estimate the 95 % interval of the mean IoU over a data set by drawing its pictures anew, with replacement.

    Args:
        pictures: of each picture and class the pixels that are rightly said, said, and there.
        draws: how often.
        seed: of the draws.

    Returns:
        The 2.5 and 97.5 % points; NaN of fewer than two pictures.
    """
    if len(pictures) < 2:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    scores: list[float] = []
    flat = pictures.double().flatten(1)
    for _ in range(draws):
        times = torch.bincount(torch.randint(len(flat), (len(flat),), generator=generator), minlength=len(flat))
        both, predicted, there = (times.double() @ flat).view(3, -1)
        union = predicted + there - both
        scores.append(float(torch.where(union > 0, both / union, torch.nan).nanmean()))
    low, high = torch.tensor(scores).nanquantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


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

    def merge(self, other: "Mean") -> "Mean":
        """Both together."""
        return Mean(self.total + other.total, self.count + other.count)

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
    hits, retrieved = hits[last], (last.nonzero().flatten() + 1).double()
    gained = torch.diff(hits, prepend=hits.new_zeros(1)) / positives
    return float((gained * hits / retrieved).sum())


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


@dataclass(frozen=True)
class MultiLabel:
    """Scores and labels so far. Average precision needs the whole ranking, so that they are kept: 4 bytes a class and picture.

    Attributes:
        scores: one row a picture.
        labels: likewise.

    Example:
        >>> result = MultiLabel().add(torch.tensor([0.9, 0.2]), torch.tensor([True, False]))
        >>> result.add(torch.tensor([0.1, 0.7]), torch.tensor([False, True])).mean_ap
        1.0
    """

    scores: tuple[Float[Tensor, " text"], ...] = ()
    labels: tuple[Bool[Tensor, " text"], ...] = ()

    def add(self, scores: Float[Tensor, " text"], labels: Bool[Tensor, " text"]) -> "MultiLabel":
        """With one more picture."""
        if scores.shape != labels.shape or (self.scores and scores.shape != self.scores[0].shape):
            raise BadInput(f"{len(scores)} scores and {len(labels)} labels do not match. Type one of each per class")
        return MultiLabel((*self.scores, scores.float().cpu()), (*self.labels, labels.cpu()))

    def merge(self, other: "MultiLabel") -> "MultiLabel":
        """Both together, the other's pictures behind."""
        return MultiLabel((*self.scores, *other.scores), (*self.labels, *other.labels))

    @property
    def class_ap(self) -> Float[Tensor, " text"]:
        """Average precision of each class over the pictures; NaN for a class that no picture has."""
        if not self.scores:
            return torch.zeros(0)
        scores, labels = torch.stack(self.scores), torch.stack(self.labels)
        return torch.tensor([average_precision(s, t) for s, t in zip(scores.T, labels.T, strict=True)])

    @property
    def mean_ap(self) -> float:
        """Mean over the classes that some picture has."""
        return float(self.class_ap.nanmean())


@dataclass(frozen=True)
class Pointing:
    """Count the hits of the pointing game.

    Attributes:
        hits: maps whose highest pixel lies on the object.
        total: maps whose object is known.

    Example:
        >>> Pointing().add(True).add(False).rate
        0.5
    """

    hits: int = 0
    total: int = 0

    def add(self, hit: bool | None) -> "Pointing":
        """Return the counts with one more map; None where there was no object to point at."""
        return self if hit is None else Pointing(self.hits + hit, self.total + 1)

    @property
    def rate(self) -> float:
        """The share of hits, NaN of nothing."""
        return self.hits / self.total if self.total else float("nan")


def points_at(
    map_: Float[Tensor, "row col"], mask: Shaped[Tensor, "_row _col"], tolerance: float | int = 0
) -> bool | None:
    """Tell whether the highest value of a map lies on the object (the first one in reading order, where several are equal).

    Args:
        map_: any scale; NaN counts as lowest.
        mask: 1 on the object, anything else beside it; a pixel of the mask that is negative is not pointed at.
        tolerance: pixels beside the object that still count (15 in the original, for photographs of 500).

    Returns:
        The answer, or None where there is no object.

    Example:
        >>> points_at(torch.tensor([[0.1, 0.9], [0.2, 0.3]]), torch.tensor([[0, 1], [0, 0]]))
        True
    """
    if map_.shape != mask.shape:
        raise BadInput(f"map {list(map_.shape)} and mask {list(mask.shape)} differ in size. Type masks of one size")
    there = mask == 1
    if not bool(there.any()):
        return None
    values = (
        map_.nan_to_num(nan=float("-inf")).masked_fill(mask < 0, float("-inf")) if mask.dtype != torch.bool else map_
    )
    at = int(values.flatten().argmax())
    row, col = at // map_.shape[1], at % map_.shape[1]
    if tolerance <= 0:
        return bool(there[row, col])
    places = there.nonzero().double()
    return bool(((places[:, 0] - row) ** 2 + (places[:, 1] - col) ** 2).min() <= tolerance**2)
