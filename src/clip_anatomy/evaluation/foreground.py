"""Foreground against background as ImageNet-Segmentation is measured (Chefer et al. 2021; Gandelsman et al. 2024, §5).

class    the model's own prediction among a classifier's classes
map      what the heads of all layers read from each patch, toward that class minus the mean over the classes
picture  bilinear to the input's pixels, cut at 0 from below, stretched to 0..1
figures  pixels above the map's mean are foreground: pixel accuracy and mean IoU over the data set; average precision of the
         pair [1 − map, map], mean over pictures
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor

from clip_anatomy.data.masked import IGNORED
from clip_anatomy.evaluation.metrics import Confusion, Mean, pair_average_precision
from clip_anatomy.images.geometry import Geometry, patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.contrast import EACH_OTHER, NOTHING
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.registry import method_of
from clip_anatomy.split.tokens import TokenSource, token_contributions

__all__ = ["Foreground", "aligned_mask", "class_map", "misaligned_mask", "predicted_class", "stretched_map"]


@dataclass(frozen=True)
class Foreground:
    """The three figures so far.

    Attributes:
        confusion: of background and foreground.
        precision: average precision, mean over pictures.
    """

    confusion: Confusion
    precision: Mean

    @classmethod
    def empty(cls) -> "Foreground":
        """Nothing seen yet."""
        return cls(Confusion.empty(2), Mean())

    def add(self, map_: Float[Tensor, "row col"], mask: Shaped[Tensor, "row col"]) -> "Foreground":
        """With one more picture.

        Args:
            map_: 0..1, as `stretched_map` makes it.
            mask: 1, 0 or IGNORED.
        """
        above = (map_ > map_.mean()).long()
        return replace(
            self,
            confusion=self.confusion.add(above, mask.long()),
            precision=self.precision.add(pair_average_precision(map_, mask)),
        )

    def merge(self, other: "Foreground") -> "Foreground":
        """Both together."""
        return Foreground(self.confusion.merge(other.confusion), self.precision.merge(other.precision))


def predicted_class(clip: Clip, pixels: Float[Tensor, "1 3 row col"], classifier: Float[Tensor, "text embed"]) -> int:
    """Return the class that the model itself says, among a classifier's."""
    return int((clip.encode_image(pixels) @ classifier.to(clip.device).T).argmax())


def class_map(
    clip: Clip,
    pixels: Float[Tensor, "1 3 row col"],
    classifier: Float[Tensor, "text embed"],
    chosen: int,
    method: str = "decomposition",
) -> Float[Tensor, "_row _col"]:
    """Compute the map of one class minus the mean over the classes, at patch resolution.

    The difference is linear in the text, so it is the map of one direction, not of a thousand classes (`surgery` is not linear
    and gets them all). "decomposition" is the paper's: all layers, the official sharing of means and biases ("official"); on a
    CLIP-ResNet, where nothing is to be shared, that of `heatmap`.

    Args:
        clip: an opened model.
        pixels: one preprocessed picture.
        classifier: unit rows.
        chosen: which class.
        method: a method of `heatmap`.

    Returns:
        Values on a scale of their own.
    """
    direction = (classifier[chosen] - classifier.mean(0))[None].to(clip.device)
    if method == "decomposition" and clip.vision.ln_post is not None:
        shares, _ = token_contributions(TokenSource(clip.vision, pixels), direction, "official")
        return shares.sum((1, 2))[0, 1:, 0].unflatten(0, patch_grid(pixels.shape, clip.patch)).float()
    if method == "surgery":
        return heatmap(clip, pixels, classifier.to(clip.device), method=method, against=EACH_OTHER).values[0, chosen]
    against: dict[str, Any] = {"against": NOTHING} if method_of(clip, method).contrasts else {}
    return heatmap(clip, pixels, direction, method=method, **against).values[0, 0]


def stretched_map(values: Float[Tensor, "row col"], size: tuple[int, int]) -> Float[Tensor, "_row _col"]:
    """Bilinear to `size`, cut at 0 from below, stretched to 0..1; all 0 where nothing is above 0.

    In float64: in float32 1 − map rounds to ties that are worth 3e-5 of average precision.
    """
    large = F.interpolate(values[None, None].double(), size, mode="bilinear", align_corners=False)[0, 0].clamp_min(0)
    low, high = large.min(), large.max()
    return (large - low) / (high - low).clamp_min(1e-12)


def misaligned_mask(mask: "Int[np.ndarray, 'row col']", where: Geometry) -> Int[Tensor, "_row _col"]:
    """Return the mask squashed into the model's input (nearest), as the released code does: unless the picture is square it does not lie
    where the picture, which is cropped, shows its object."""
    size = (where.size[1], where.size[0])
    return torch.from_numpy(np.array(Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)))


def aligned_mask(mask: "Int[np.ndarray, 'row col']", where: Geometry) -> Int[Tensor, "_row _col"]:
    """Return the mask through the picture's own scaling and crop (nearest); IGNORED where the input is padding.

    Example:
        >>> where = Geometry(picture=(2, 4), resized=(2, 4), offset=(0, 1), size=(2, 2))
        >>> aligned_mask(np.array([[0, 1, 0, 0], [0, 1, 1, 0]]), where).tolist()
        [[1, 0], [1, 1]]
    """
    (rows, cols), (top, left) = where.resized, where.offset
    scaled = np.array(Image.fromarray(mask.astype(np.int32)).resize((cols, rows), Image.Resampling.NEAREST))
    labels = np.full(where.size, IGNORED)
    first = max(0, top), max(0, left)
    part = scaled[first[0] : top + where.size[0], first[1] : left + where.size[1]]
    labels[first[0] - top : first[0] - top + part.shape[0], first[1] - left : first[1] - left + part.shape[1]] = part
    return torch.from_numpy(labels.astype(np.int64))
