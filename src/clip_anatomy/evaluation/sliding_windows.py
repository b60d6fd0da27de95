"""Class scores of a whole picture by sliding windows, and the class of every original pixel.

The evaluation that the self–self family shares (SCLIP, ClearCLIP, NACLIP, ProxyCLIP, ResCLIP; field code on mmsegmentation),
without mmsegmentation:

    picture ─▶ short side to `side` (OpenCV's bilinear, long side at most 2048) ─▶ normalise
            ─▶ windows of `window`, `stride` apart, the last ones moved back into the picture
            ─▶ patch scores of each window, bilinear to its pixels, averaged where windows overlap
            ─▶ bilinear to the original size ─▶ × logit scale ─▶ softmax over texts ─▶ best text of each class
            ─▶ class of the highest probability; the background where that is below a threshold (and, in SCLIP's
               release, no class at all that has less than a share of what is not background)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import window_starts
from clip_anatomy.images.preprocess import Preprocess

__all__ = ["Sliding", "classes_of", "likeliest_classes", "scaled", "sliding_scores"]

LONGEST = 2048
BAND_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Sliding:
    """Pixels of the short side, of a window, and between windows."""

    side: int = 336
    window: int = 224
    stride: int = 112

    def check(self, patch: tuple[int, int]) -> None:
        """Refuse what cannot be cut into patches.

        Raises:
            BadSpec: the window is no multiple of the patch, or leaves gaps.
        """
        if self.side >= 1 and self.window == 0:  # the whole picture at once
            return
        if self.window < max(patch) or self.window % patch[0] or self.window % patch[1]:
            fits = max(1, self.window // max(patch)) * max(patch)
            raise BadSpec(f"windows of {self.window} pixels hold no whole patches of {patch[0]}. Type: window={fits}")
        if not 0 < self.stride <= self.window:
            raise BadSpec(
                f"windows of {self.window} pixels {self.stride} apart leave gaps. Type: stride={self.window // 2}"
            )
        if self.side < 1:
            raise BadSpec(f"a short side of {self.side} pixels is no picture. Type: side=336")


def scaled(image: Image.Image, side: int, preprocess: Preprocess) -> Float[Tensor, "3 row col"]:
    """Scale a picture to a short side of `side` (its long one at most 2048), normalised for the model; nothing is cropped.

    Bilinear between the nearest four pixels, rounded to levels: OpenCV's filter, which the papers' code uses. Pillow's averages
    over more of them when a picture shrinks.
    """
    cols, rows = image.size
    factor = min(LONGEST / max(rows, cols), side / min(rows, cols))
    size = max(1, int(rows * factor + 0.5)), max(1, int(cols * factor + 0.5))
    levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
    small = F.interpolate(levels, size, mode="bilinear", align_corners=False)[0].round()
    return preprocess.normalised(small)


def sliding_scores(
    pixels: Float[Tensor, "3 row col"],
    windows: Sliding,
    score: Callable[[Tensor], Tensor],
    batch: int = 8,
) -> Float[Tensor, "text row col"]:
    """Score every pixel for every text, averaged over the windows it lies in.

    Args:
        pixels: normalised.
        windows: sizes.
        score: windows [image, 3, row, col] → scores per patch [image, text, row, col].
        batch: windows at a time.

    Returns:
        Scores at the size of `pixels`.
    """
    rows, cols = pixels.shape[1:]
    # A picture narrower than a window is filled up with the mean colour (0 after normalising) and cut again.
    padded = F.pad(pixels, (0, max(0, windows.window - cols), 0, max(0, windows.window - rows)))
    height, width = padded.shape[1:]
    places = [
        (top, left)
        for top in window_starts(height, windows.window, windows.stride)
        for left in window_starts(width, windows.window, windows.stride)
    ]
    total: Tensor | None = None
    coverage = torch.zeros(height, width)
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        pieces = torch.stack([padded[:, t : t + windows.window, c : c + windows.window] for t, c in some])
        for (top, left), patches in zip(some, score(pieces), strict=True):
            here = F.interpolate(patches[None].float().cpu(), (windows.window, windows.window), mode="bilinear")[0]
            if total is None:
                total = torch.zeros(len(here), height, width)
            total[:, top : top + windows.window, left : left + windows.window] += here
            coverage[top : top + windows.window, left : left + windows.window] += 1
    assert total is not None  # there is always one window
    return (total / coverage)[:, :rows, :cols]


def classes_of(
    scores: Float[Tensor, "text row col"],
    size: tuple[int, int],
    owner: Sequence[int],
    *,
    logit_scale: float,
    threshold: float | None = None,
    area: float | None = None,
    background: int | None = None,
) -> Int[Tensor, "_row _col"]:
    """Return the class of every pixel of the original picture.

    Args:
        scores: of the scaled picture.
        size: (row, col) of the original.
        owner: which class each text belongs to.
        logit_scale: factor before the softmax.
        threshold: least probability; below it a pixel is background. None for none.
        area: least share of the pixels that are not background: a class with less is not there, and its pixels get their next
            best class. None for none.
        background: class number of the background, where there is one.

    Returns:
        Class numbers.

    Example:
        >>> scores = torch.tensor([[[0.9, 0.1]], [[0.1, 0.12]]])
        >>> classes_of(scores, (1, 2), [1, 2], logit_scale=10.0, threshold=0.6, background=0).tolist()
        [[1, 0]]
    """
    predicted, chance = likeliest_classes(
        scores, size, owner, logit_scale=logit_scale, area=area, background=background, whole=threshold is not None
    )
    if background is not None and threshold is not None:
        predicted = predicted.masked_fill(chance < threshold, background)
    return predicted


def likeliest_classes(
    scores: Float[Tensor, "text row col"],
    size: tuple[int, int],
    owner: Sequence[int],
    *,
    logit_scale: float,
    area: float | None = None,
    background: int | None = None,
    whole: bool = True,
) -> tuple[Int[Tensor, "_row _col"], Float[Tensor, "_row _col"]]:
    """Return the likeliest class of every pixel of the original picture, and (if `whole`) its probability. See `classes_of`."""
    numbers = torch.tensor(owner)
    there = torch.ones(len(numbers), dtype=torch.bool)
    if area is not None and background is not None:
        best, _, _ = _likeliest(scores, there, size, logit_scale)
        pixels = torch.bincount(numbers[best].flatten(), minlength=int(numbers.max()) + 1)
        pixels[background] = 0
        there = (pixels > area * pixels.sum())[numbers] | (numbers == background)
    best, logit, total = _likeliest(scores, there, size, logit_scale, whole=whole)
    predicted = numbers[best]  # a class is as likely as its likeliest text, so the best text's class is the best class
    if background is not None:
        predicted = predicted.masked_fill(logit.isneginf(), background)  # every class was too small
    return predicted, (logit - total).exp()


def _likeliest(
    scores: Float[Tensor, "text row col"],
    there: Bool[Tensor, " text"],
    size: tuple[int, int],
    logit_scale: float,
    *,
    whole: bool = False,
) -> tuple[Int[Tensor, "_row _col"], Float[Tensor, "_row _col"], Float[Tensor, "_row _col"]]:
    """Return the best text of each pixel among those that are there, its logit, and (if `whole`) the logarithm of the softmax's sum.

    Some texts at a time: of 171 classes a whole photograph would take 200 MB.
    """
    best, top = torch.zeros(size, dtype=torch.long), torch.full(size, -torch.inf)
    total = top.clone()
    step = max(1, BAND_BYTES // (4 * size[0] * size[1]))
    for first in range(0, len(scores), step):
        logits = F.interpolate(scores[None, first : first + step], size, mode="bilinear", align_corners=False)[0]
        logits *= logit_scale
        if whole:
            total = torch.logaddexp(total, logits.logsumexp(0))
        some = there[first : first + step]
        if bool(some.any()):
            high, at = logits[some].max(0)
            best = torch.where(high > top, some.nonzero()[:, 0][at] + first, best)
            top = torch.maximum(top, high)
    return best, top, total
