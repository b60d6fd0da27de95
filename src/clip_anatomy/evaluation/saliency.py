"""S-measure, E-measure, F-measure, weighted F-measure and mean absolute error of maps against masks.

    S-measure   ½ object similarity + ½ region similarity (SSIM of four quadrants around the object's centroid)    (Fan et al. 2017)
    E-measure   mean over pixels of (1 + alignment)² / 4 of the map at a threshold, both minus their means         (Fan et al. 2018)
    F-measure   (1 + β²) P R / (β² P + R), β² = 0.3, P and R at a threshold                                    (Achanta et al. 2009)
    weighted F  the same with β = 1 and errors that weigh by place: less inside the object's errors'
                neighbourhood, less far away from the object                                                  (Margolin et al. 2014)

Every map is rounded to 256 levels and stretched to 0..1 first, as the papers' own code does with PNG predictions. "mean" is over
the thresholds 0..255, "adaptive" at twice the mean of the map. Checked against `pysodmetrics` 1.6.2: see the figures in
`tests/test_metrics.py`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_anatomy.errors import BadInput, MissingExtra

__all__ = ["Saliency", "saliency_measures"]

EPS = float(np.spacing(1))  # MATLAB's eps, which the published formulas add to denominators
BETA_SQUARED = 0.3
FALLOFF, KERNEL, SIGMA = 5.0, 7, 5.0  # of the weighted F-measure: half the weight per 5 pixels, a Gaussian of 7 × 7


@dataclass(frozen=True)
class Saliency:
    """Measures of camouflaged and salient object detection, picture by picture.

    Attributes:
        pictures: what `saliency_measures` gave for each.

    Example:
        >>> mask = np.zeros((8, 8), dtype=bool)
        >>> mask[2:5, 2:5] = True
        >>> measured = Saliency().add(mask.astype(np.float32), mask)
        >>> round(measured.figures()["S-measure"], 3), measured.figures()["MAE"]
        (1.0, 0.0)
    """

    pictures: tuple[dict[str, float], ...] = field(default=(), repr=False)

    def add(self, map_: Float[np.ndarray, "row col"], mask: Bool[np.ndarray, "_row _col"]) -> "Saliency":
        """Return the measures with one more picture; arguments as of `saliency_measures`."""
        return Saliency((*self.pictures, saliency_measures(map_, mask)))

    def merge(self, other: "Saliency") -> "Saliency":
        """Both together, the other's pictures behind."""
        return Saliency((*self.pictures, *other.pictures))

    def figures(self) -> dict[str, float]:
        """Return the measures so far, means over pictures."""
        return {name: float(np.mean([one[name] for one in self.pictures])) for name in self.pictures[0]}


def saliency_measures(map_: Float[np.ndarray, "row col"], mask: Bool[np.ndarray, "_row _col"]) -> dict[str, float]:
    """Measure one picture.

    Args:
        map_: 0..1.
        mask: where the object is.

    Returns:
        Name → measure, 0..1.

    Raises:
        BadInput: sizes differ.
        MissingExtra: scipy is not installed.
    """
    if map_.shape != mask.shape:
        raise BadInput(f"map {map_.shape} and mask {mask.shape} differ in size. Type masks of one size")
    levels = np.clip(np.rint(map_ * 255), 0, 255).astype(np.float64) / 255
    low, high = levels.min(), levels.max()
    stretched = (levels - low) / (high - low) if high > low else levels
    hits, predicted = _at_thresholds(stretched, mask)
    binary = stretched >= min(2 * stretched.mean(), 1.0)
    hit, positive = np.count_nonzero(binary & mask), np.count_nonzero(binary)
    adaptive = np.array([hit]), np.array([positive])
    there, size = int(mask.sum()), mask.size
    return {
        "S-measure": s_measure(stretched, mask),
        "E-measure (mean)": float(e_measure(hits, predicted, there, size).mean()),
        "E-measure (adaptive)": float(e_measure(*adaptive, there, size)[0]),
        "F-measure (mean)": float(f_measure(hits, predicted, there).mean()),
        "F-measure (adaptive)": float(f_measure(*adaptive, there)[0]),
        "F-measure (weighted)": weighted_f_measure(stretched, mask),
        "MAE": float(np.abs(stretched - mask).mean()),
    }


def _at_thresholds(
    map_: Float[np.ndarray, "row col"], mask: Bool[np.ndarray, "row col"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels of the object, and pixels at all, that are at or above each of the thresholds 255, 254 … 0."""
    levels = (map_ * 255).astype(np.uint8)
    inside, everywhere = (np.bincount(x, minlength=256)[::-1].cumsum() for x in (levels[mask], levels.ravel()))
    return inside, everywhere


def f_measure(
    hits: Int[np.ndarray, " threshold"], predicted: Int[np.ndarray, " threshold"], there: int
) -> Float[np.ndarray, " threshold"]:
    """F-measure from counts: object pixels found, pixels found, object pixels."""
    precision, recall = hits / np.maximum(predicted, 1), hits / max(there, 1)
    return (1 + BETA_SQUARED) * precision * recall / np.where(hits > 0, BETA_SQUARED * precision + recall, 1)


def e_measure(
    hits: Int[np.ndarray, " threshold"], marked: Int[np.ndarray, " threshold"], there: int, size: int
) -> Float[np.ndarray, " threshold"]:
    """E-measure from the same counts and the number of pixels: a binary map has four kinds of pixels, each with one alignment."""
    if there == 0:
        total = (size - marked).astype(np.float64)
    elif there == size:
        total = marked.astype(np.float64)
    else:
        total = np.zeros(len(marked))
        kinds = ((1, 1, hits), (1, 0, marked - hits), (0, 1, there - hits), (0, 0, size - marked - there + hits))
        for predicted, true, count in kinds:
            a, b = predicted - marked / size, true - there / size
            total += count * (1 + 2 * a * b / (a**2 + b**2 + EPS)) ** 2 / 4
    return total / max(size - 1, 1)


def s_measure(map_: Float[np.ndarray, "row col"], mask: Bool[np.ndarray, "row col"]) -> float:
    """S-measure: likeness of structure, of objects and of regions alike."""
    share = float(mask.mean())
    if share in (0.0, 1.0):
        return float(map_.mean() if share else 1 - map_.mean())
    objects = share * _object_similarity(map_[mask]) + (1 - share) * _object_similarity(1 - map_[~mask])
    row, col = (int(place) + 1 for place in np.argwhere(mask).mean(0).round())
    quadrants = [
        (slice(rows[0], rows[1]), slice(cols[0], cols[1]))
        for rows in ((0, row), (row, mask.shape[0]))
        for cols in ((0, col), (col, mask.shape[1]))
    ]
    regions = sum(mask[q].size / mask.size * _similarity(map_[q], mask[q]) for q in quadrants if mask[q].size)
    return max(0.0, 0.5 * objects + 0.5 * regions)


def _object_similarity(values: Float[np.ndarray, " value"]) -> float:
    mean, deviation = float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + EPS)


def _similarity(map_: np.ndarray, mask: np.ndarray) -> float:
    """SSIM of one region, without its constants."""
    x, y, free = map_.mean(), mask.mean(), map_.size - 1 + EPS
    variance = (np.square(map_ - x).sum() + np.square(mask - y).sum()) / free
    above, below = 4 * x * y * ((map_ - x) * (mask - y)).sum() / free, (x**2 + y**2) * variance
    return float(above / (below + EPS)) if above else float(below == 0)


def weighted_f_measure(map_: Float[np.ndarray, "row col"], mask: Bool[np.ndarray, "row col"]) -> float:
    """Weighted F-measure: errors beside the object count by the distance to it, errors within it by their neighbourhood."""
    try:
        from scipy.ndimage import convolve, distance_transform_edt
    except ImportError as error:
        raise MissingExtra("scipy", "measure") from error
    if not mask.any():
        return 0.0
    distances: Any = distance_transform_edt(~mask, return_indices=True)
    distance, nearest = distances
    error = np.abs(map_ - mask)
    carried = error[nearest[0], nearest[1]]  # beside the object: the error of its nearest pixel
    square = np.square(np.arange(KERNEL) - KERNEL // 2)
    kernel = np.exp(-(square[:, None] + square) / (2 * SIGMA**2))
    smooth = convolve(carried, kernel / kernel.sum(), mode="constant")
    inside = np.minimum(error, smooth)[mask]
    outside = (error * (2 - np.exp(np.log(0.5) / FALLOFF * distance)))[~mask]
    right = mask.sum() - inside.sum()
    recall, precision = 1 - inside.mean(), right / (right + outside.sum() + EPS)
    return float(2 * recall * precision / (recall + precision + EPS))
