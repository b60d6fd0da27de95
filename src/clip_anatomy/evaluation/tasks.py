"""What is done with one picture of a protocol, and what is known after some: one class per kind of protocol.

Each holds the state of one run: `measure` a picture, ask for `figures` at any time.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.masked import LabelledPicture, MaskedPicture, check_sizes
from clip_anatomy.data.referring import ReferredPicture
from clip_anatomy.evaluation.foreground import (
    Foreground,
    aligned_mask,
    class_map,
    misaligned_mask,
    predicted_class,
    stretched_map,
)
from clip_anatomy.evaluation.metrics import MultiLabel
from clip_anatomy.evaluation.saliency import Saliency
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.clip_surgery import feature_surgery
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.registry import as_published

__all__ = ["ForegroundTask", "LabelTask", "ProtocolTask", "SaliencyTask"]


@runtime_checkable
class ProtocolTask(Protocol):
    """One run of one protocol.

    Attributes:
        measured: what is known so far; two of them merge.
    """

    measured: Any

    def measure(self, entry: MaskedPicture | LabelledPicture | ReferredPicture) -> None:
        """Measure one picture. Raises BadInput when it cannot be."""
        ...

    def blank(self) -> "ProtocolTask":
        """Return the same task with nothing measured."""
        ...

    def figures(self) -> dict[str, float]:
        """Return the headline figures so far."""
        ...

    def per_class(self) -> dict[str, float]:
        """Return a figure per class so far; empty where there are none."""
        ...


@dataclass
class ForegroundTask:
    """ImageNet-Segmentation.

    Attributes:
        clip: the model.
        classifier: unit rows, among which the model predicts.
        method: a method of `heatmap`.
        mask: "misaligned", as the released code has it, or "aligned".
    """

    clip: Clip
    classifier: Float[Tensor, "text embed"]
    method: str
    mask: Literal["misaligned", "aligned"]
    measured: Foreground = field(default_factory=Foreground.empty)

    def measure(self, entry: MaskedPicture | LabelledPicture | ReferredPicture) -> None:
        """Predict, map, compare."""
        assert isinstance(entry, MaskedPicture)
        image, mask = entry.picture(), entry.mask()
        check_sizes(image, mask)
        where = self.clip.preprocess.geometry(*image.size)
        truth = (misaligned_mask if self.mask == "misaligned" else aligned_mask)(mask, where)
        pixels = self.clip.preprocess(image)[None].to(self.clip.device, self.clip.vision.dtype)
        chosen = predicted_class(self.clip, pixels, self.classifier)
        values = class_map(self.clip, pixels, self.classifier, chosen, self.method).cpu()
        self.measured = self.measured.add(stretched_map(values, where.size), truth)

    def blank(self) -> "ForegroundTask":
        """Return the same task with nothing measured."""
        return replace(self, measured=Foreground.empty())

    def figures(self) -> dict[str, float]:
        """Pixel accuracy, mean IoU and mean average precision."""
        confusion = self.measured.confusion
        return {
            "mIoU": confusion.mean_iou,
            "pixel accuracy": confusion.pixel_accuracy,
            "mAP": self.measured.precision.value,
        }

    def per_class(self) -> dict[str, float]:
        """IoU of background and foreground."""
        return dict(zip(("background", "foreground"), self.measured.confusion.iou.tolist(), strict=True))


@dataclass
class LabelTask:
    """Several labels a picture.

    Attributes:
        clip: the model.
        classes: names.
        texts: unit rows.
        method: "embedding" (cosine of the picture), "surgery" (feature surgery on the class token), or a method of `heatmap`
            whose highest patch counts.
    """

    clip: Clip
    classes: tuple[str, ...]
    texts: Float[Tensor, "text embed"]
    method: str
    measured: MultiLabel = field(default_factory=MultiLabel)

    def measure(self, entry: MaskedPicture | LabelledPicture | ReferredPicture) -> None:
        """Score every class."""
        assert isinstance(entry, LabelledPicture)
        pixels = self.clip.preprocess(entry.picture())[None].to(self.clip.device, self.clip.vision.dtype)
        texts = self.texts.to(self.clip.device)
        if self.method in ("embedding", "surgery"):
            embedding = self.clip.encode_image(pixels)
            cosine = (F.normalize(embedding, dim=-1) @ texts.T)[0]
            scores = cosine if self.method == "embedding" else feature_surgery(embedding[:, None], texts)[0, 0]
        else:
            scores = (
                heatmap(self.clip, pixels, texts, self.method, **as_published(self.clip, self.method))
                .values[0]
                .amax((1, 2))
            )
        labels = torch.zeros(len(self.classes), dtype=torch.bool)
        labels[list(entry.labels)] = True
        self.measured = self.measured.add(scores.cpu(), labels)

    def blank(self) -> "LabelTask":
        """Return the same task with nothing measured."""
        return replace(self, measured=MultiLabel())

    def figures(self) -> dict[str, float]:
        """Return mean average precision over classes."""
        return {"mAP": self.measured.mean_ap}

    def per_class(self) -> dict[str, float]:
        """Average precision of each class."""
        return dict(zip(self.classes, self.measured.class_ap.tolist(), strict=True))


@dataclass
class SaliencyTask:
    """One object, found by a text.

    Attributes:
        clip: the model.
        texts: unit rows; the first is the object, others are contrast.
        method: a method of `heatmap`.
        size: pixels of a side to which pictures are squashed; None for the model's own.
    """

    clip: Clip
    texts: Float[Tensor, "text embed"]
    method: str
    size: int | None
    measured: Saliency = field(default_factory=Saliency)

    def measure(self, entry: MaskedPicture | LabelledPicture | ReferredPicture) -> None:
        """Draw the map, stretch it to 0..1, enlarge it to the mask."""
        assert isinstance(entry, MaskedPicture)
        image, mask = entry.picture(), entry.mask()
        check_sizes(image, mask)
        squash = self.clip.preprocess.squashed()
        pixels = (squash if self.size is None else squash.at(self.size))(image)[None]
        pixels = pixels.to(self.clip.device, self.clip.vision.dtype)
        values = (
            heatmap(
                self.clip, pixels, self.texts.to(self.clip.device), self.method, **as_published(self.clip, self.method)
            )
            .values[:, :1]
            .cpu()
        )
        low, high = values.min(), values.max()
        map_ = (values - low) / (high - low).clamp_min(1e-12)
        large = F.interpolate(map_, mask.shape, mode="bilinear", align_corners=False)[0, 0]
        self.measured = self.measured.add(large.numpy(), mask == 1)

    def blank(self) -> "SaliencyTask":
        """Return the same task with nothing measured."""
        return replace(self, measured=Saliency())

    def figures(self) -> dict[str, float]:
        """S-, E- and F-measures, mean absolute error."""
        return self.measured.figures()

    def per_class(self) -> dict[str, float]:
        """Nothing: there is one class."""
        return {}
