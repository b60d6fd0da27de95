"""A linear classifier as a value, and least squares on one-hot targets from sums that add up over any number of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput

__all__ = ["Batch", "LinearProbe", "Sums"]

Batch = tuple[Tensor, Tensor]
"""Features [image, embed] and classes [image]. Without shapes in the type: batches of one stream may differ in length."""


@dataclass(frozen=True)
class LinearProbe:
    """A trained linear classifier on features as they come.

    Attributes:
        weight: one row a class.
        bias: one number a class; −∞ for classes that training never saw.
        method: how it was trained.
        strength: of the regularisation that was chosen: C, alpha or lambda.
        held: accuracy on the held-out images that it was chosen on.
        converged: whether training came to its end.
    """

    weight: Float64[Tensor, "text embed"]
    bias: Float64[Tensor, " text"]
    method: str
    strength: float
    held: float = float("nan")
    converged: bool = True

    def predict(self, features: Float[Tensor, "image embed"]) -> Int64[Tensor, " image"]:
        """The class of each image."""
        return (features.double() @ self.weight.T + self.bias).argmax(1)

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Share of images whose class is right; NaN without any."""
        right = seen = 0
        for features, labels in batches:
            right += int((self.predict(features) == labels).sum())
            seen += len(labels)
        return right / seen if seen else float("nan")


@dataclass(frozen=True)
class Sums:
    """What least squares needs of any number of images; sums of two sets are the sums of both.

    Attributes:
        shift: taken from every feature first, for accuracy; the same in all that are merged.
        per_class: images of each class.
        total: Σ x of each class.
        square: Σ x xᵀ.
    """

    shift: Float64[Tensor, " embed"]
    per_class: Float64[Tensor, " text"]
    total: Float64[Tensor, "text embed"]
    square: Float64[Tensor, "embed embed"]

    @staticmethod
    def of_batches(batches: Iterable[Batch], classes: int, shift: Float64[Tensor, " embed"] | None = None) -> "Sums":
        """Sums over batches.

        Args:
            batches: (features, classes) a batch at a time.
            classes: how many classes; labels are 0 … classes − 1.
            shift: taken from every feature; by default the mean of the first batch.

        Raises:
            BadInput: features that are not finite, labels beyond the classes.
        """
        per_class = torch.zeros(classes, dtype=torch.float64)
        total = square = torch.zeros(0, dtype=torch.float64)
        for features, labels in batches:
            if not bool(torch.isfinite(features).all()):
                raise BadInput("some features are not finite. Index again with a model in float32")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                low, high = int(labels.min()), int(labels.max())
                raise BadInput(f"labels {low}..{high} for {classes} classes: label images 0..{classes - 1}")
            shift = features.double().mean(0) if shift is None else shift
            if not len(total):
                total = torch.zeros(classes, len(shift), dtype=torch.float64)
                square = torch.zeros(len(shift), len(shift), dtype=torch.float64)
            x = features.double() - shift
            per_class += torch.bincount(labels, minlength=classes)
            total.index_add_(0, labels, x)
            square += x.T @ x
        if shift is None:
            raise BadInput("no images to train on: give at least one batch")
        if not len(total):
            total, square = torch.zeros(classes, len(shift)).double(), torch.zeros(len(shift), len(shift)).double()
        return Sums(shift, per_class, total, square)

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.per_class.sum())

    @property
    def present(self) -> tuple[int, ...]:
        """Classes that have images."""
        return tuple(torch.nonzero(self.per_class).flatten().tolist())

    @property
    def mean(self) -> Float64[Tensor, " embed"]:
        """Mean of the features."""
        return self.shift + self.total.sum(0) / max(self.count, 1)

    @property
    def covariance(self) -> Float64[Tensor, "embed embed"]:
        """Covariance of the features (over n)."""
        off = self.total.sum(0) / max(self.count, 1)
        return self.square / max(self.count, 1) - off[:, None] * off

    def merge(self, other: "Sums") -> "Sums":
        """Sums over both sets of images.

        Raises:
            BadInput: they were taken with different shifts.
        """
        if not torch.equal(self.shift, other.shift):
            raise BadInput("sums with different shifts do not merge. Take both with the same `shift`")
        return Sums(self.shift, self.per_class + other.per_class, self.total + other.total, self.square + other.square)

    def ridge(self, strengths: Sequence[float]) -> list[LinearProbe]:
        """Least squares on one-hot targets, for several strengths at the cost of one decomposition.

        Args:
            strengths: in units of the mean variance of a feature.

        Returns:
            One probe per strength.
        """
        n = self.count
        mean = self.total.sum(0) / n
        values, vectors = torch.linalg.eigh(self.covariance)
        towards = (self.total / n - (self.per_class / n)[:, None] * mean) @ vectors  # covariance of target and feature
        unit = values.clamp(min=0).mean().clamp(min=1e-300)
        found: list[LinearProbe] = []
        for strength in strengths:
            weight = (towards / (values.clamp(min=0) + strength * unit)) @ vectors.T
            bias = self.per_class / n - weight @ (mean + self.shift)
            bias = torch.where(self.per_class > 0, bias, torch.full_like(bias, -torch.inf))
            found.append(LinearProbe(weight, bias, "ridge", strength))
        return found
