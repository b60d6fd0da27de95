"""Refinement: maps that follow the edges of the picture. Off by default, and named wherever it was used.

`pamr` is written from the formula of its paper: the fully connected CRF that papers use instead has no maintained package with
wheels (its two packages build from source only), and PAMR is a page of arithmetic.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

__all__ = ["DILATIONS", "LARGEST", "REFINERS", "pamr", "refined"]

DILATIONS = (1, 2, 4, 8, 12, 24)
STEPS = 10
LARGEST = 2**20  # pixels: larger pictures are refined at this size, which takes 50 numbers a pixel
REFINERS = {
    "pamr": "pixel-adaptive refinement (Araslanov & Roth 2020, §3.3): 10 steps, neighbours 1 to 24 pixels away, at most a patch; written from the paper"
}


def refined(
    scores: Float[Tensor, "text row col"], picture: UInt8[ndarray, "row col 3"], *, patch: float = 24.0
) -> Float[Tensor, "text row col"]:
    """Refine maps at the size of their picture; what the model did not see (NaN) stays so and lends nothing.

    Args:
        scores: per pixel, any scale.
        picture: sRGB pixels of the original.
        patch: a patch's side in pixels of the picture. Neighbours further away are left out: within a patch the map knows
            nothing, beyond it it does (measured on the demo world, whose pictures are 8 patches wide: mIoU 0.89 instead of 0.85).

    Returns:
        Scores of the same size.
    """
    shape = scores.shape[-2:]
    unseen = scores[:1].isnan()
    levels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    # What was not seen is filled with the map's lowest value, so that it neither spreads nor makes NaN.
    low = scores.nan_to_num(nan=torch.inf).amin((1, 2), keepdim=True)
    maps = torch.where(scores.isnan(), low, scores)[None]
    if shape[0] * shape[1] > LARGEST:
        factor = (LARGEST / (shape[0] * shape[1])) ** 0.5
        small = max(1, int(shape[0] * factor)), max(1, int(shape[1] * factor))
        levels = F.interpolate(levels, small, mode="area")
        maps = F.interpolate(maps, small, mode="bilinear")
        patch *= factor
    smooth = pamr(maps[0], levels[0], dilations=tuple(d for d in DILATIONS if d <= max(1.0, patch)))
    if smooth.shape[-2:] != shape:
        smooth = F.interpolate(smooth[None], tuple(shape), mode="bilinear")[0]
    return smooth.masked_fill(unseen, torch.nan)


def pamr(
    scores: Float[Tensor, "text row col"],
    picture: Float[Tensor, "3 row col"],
    *,
    steps: int = STEPS,
    dilations: tuple[int, ...] = DILATIONS,
) -> Float[Tensor, "text row col"]:
    """Refine masks pixel by pixel (PAMR): every pixel takes the mean of pixels around it that look alike, several times.

    Source: Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels" (CVPR 2020), §3.3: the neighbours N(i) are
    the 8 around a pixel at each dilation; k(i, j) = −|I_i − I_j| / σ_i², σ_i the standard deviation of I over N(i), averaged
    over the colours; α(i, ·) = softmax of k over N(i); m_i ← Σ_j α(i, j) m_j.

    Args:
        scores: any numbers per pixel.
        picture: its colours, 0 to 1.
        steps: how often the mean is taken.
        dilations: distances of the neighbours in pixels.

    Returns:
        Scores of the same size; a convex mean of those given, so never beyond their range.

    Example:
        >>> flat = pamr(torch.rand(1, 8, 8), torch.zeros(3, 8, 8), steps=50, dilations=(1, 2))
        >>> bool(flat.std() < 0.1)
        True
    """
    reach = [d for d in dilations if d < max(picture.shape[1:])] or [1]
    places = [(r * d, c * d) for d in reach for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c]
    with torch.no_grad():
        margin = max(reach)
        weights = _affinity(picture, places, margin)
        smooth = scores
        for _ in range(steps):
            padded = _padded(smooth, margin)
            smooth = torch.zeros_like(smooth)
            for weight, place in zip(weights, places, strict=True):
                smooth.addcmul_(weight, _moved(padded, place, margin, scores.shape[1:]))
    return smooth


def _affinity(picture: Tensor, places: list[tuple[int, int]], margin: int) -> Float[Tensor, "token row col"]:
    padded = _padded(picture, margin)
    size = picture.shape[1:]
    total, square = torch.zeros_like(picture), torch.zeros_like(picture)
    for place in places:
        near = _moved(padded, place, margin, size)
        total += near
        square.addcmul_(near, near)
    count = len(places)
    variance = (square / count - (total / count) ** 2).clamp_min(0) + 1e-4  # a level of 2.5 of 255: flat parts are flat
    alike = [-((picture - _moved(padded, place, margin, size)).abs() / variance).mean(0) for place in places]
    return torch.stack(alike).softmax(0)


def _padded(x: Tensor, margin: int) -> Tensor:
    return F.pad(x[None], (margin,) * 4, mode="replicate")[0]


def _moved(padded: Tensor, place: tuple[int, int], margin: int, size: torch.Size) -> Tensor:
    row, col = margin + place[0], margin + place[1]
    return padded[:, row : row + size[0], col : col + size[1]]
