"""Mean average precision over classes where a picture may have several labels (COCO, NUS-WIDE)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.evaluation.segmentation_metrics import average_precision

__all__ = ["MultiLabel"]


@dataclass(frozen=True)
class MultiLabel:
    """Scores and labels so far. Average precision needs the whole ranking, so that they are kept: 4 bytes a class and picture.

    Attributes:
        scores: one row a picture.
        labels: likewise.

    Example:
        >>> seen = MultiLabel().add(torch.tensor([0.9, 0.2]), torch.tensor([True, False]))
        >>> seen.add(torch.tensor([0.1, 0.7]), torch.tensor([False, True])).mean_ap
        1.0
    """

    scores: tuple[Float[Tensor, " text"], ...] = ()
    labels: tuple[Bool[Tensor, " text"], ...] = ()

    def add(self, scores: Float[Tensor, " text"], labels: Bool[Tensor, " text"]) -> "MultiLabel":
        """With one more picture."""
        if scores.shape != labels.shape or (self.scores and scores.shape != self.scores[0].shape):
            raise BadInput(f"{len(scores)} scores and {len(labels)} labels do not match. Type one of each per class")
        return MultiLabel((*self.scores, scores.float().cpu()), (*self.labels, labels.cpu()))

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
