"""From maps to labels: the best text per pixel, where it lies above a threshold."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor

from clip_anatomy.errors import BadSpec

__all__ = ["NOTHING", "RULES", "UNSEEN", "checked_rule", "cut", "cut_chunks", "cut_strips", "labels_above", "level_of", "otsu"]  # fmt: skip

UNSEEN = -1
"""The label of pixels that the model's crop left out."""
NOTHING = 0
"""The label of pixels that belong to no text."""

RULES = {
    "otsu": "the cut that parts the map into two groups with the least spread in each (Otsu 1979), per picture",
    "mean": "the mean of the map, per picture (Gandelsman et al. 2024)",
    "lenient": "Otsu's cut, or one standard deviation above the mean where that is lower: Otsu's leaves out much of a small thing",
    "half": "half-way between the lowest and the highest value, per picture",
    "none": "no cut: every pixel gets the text (or the background text) that scores most",
}


def cut(
    scores: Float[Tensor, "text row col"], texts: int, threshold: str | float
) -> tuple[Int16[np.ndarray, "row col"], float]:
    """Label every pixel with its best text, where that is above the threshold.

    Args:
        scores: the texts' maps, then those of background texts; NaN where nothing was seen.
        texts: how many of them are no background texts.
        threshold: a rule of RULES, or a share of the range.

    Returns:
        Labels (k + 1 for text k, 0 for none, −1 unseen), and the threshold.
    """
    return cut_chunks([scores], texts, threshold)


Chunks = Iterable[Float[Tensor, "_ row col"]]
"""Maps of all texts, then of all background texts, a few at a time: many classes do not fit into memory together."""


def cut_chunks(chunks: Chunks, texts: int, threshold: str | float) -> tuple[Int16[np.ndarray, "row col"], float]:
    """Do the same for maps that come a few at a time."""
    answers = _answers(chunks, texts)
    level = answers.level(threshold)
    return answers.labels(level), level


def cut_strips(
    sample: Chunks, strips: Iterable[Chunks], texts: int, threshold: str | float
) -> tuple[Int16[np.ndarray, "row col"], float]:
    """Do the same for a picture that does not fit into memory: the level from some of its pixels, the labels a strip of rows at a time.

    Args:
        sample: the maps at pixels spread evenly over the picture.
        strips: the maps of its rows, from the first to the last.
        texts: how many are no background.
        threshold: as in `cut`.
    """
    level = _answers(sample, texts).level(threshold)
    return np.concatenate([_answers(strip, texts).labels(level) for strip in strips]), level


def level_of(sample: Float[Tensor, "text row col"], texts: int, threshold: str | float) -> float:
    """Find the threshold of a film or a slide from some of its maps, to be used on all of it by `labels_above`."""
    return _answers([sample], texts).level(threshold)


def labels_above(scores: Float[Tensor, "text row col"], texts: int, level: float) -> Int16[np.ndarray, "row col"]:
    """Label every pixel with its best text, where that is above a threshold that is known."""
    return _answers([scores], texts).labels(level)


@dataclass(frozen=True)
class _Answers:
    """What is answered most at each pixel: its score above the best background text, which text it is, where nobody looked."""

    best: Float[Tensor, "row col"]
    label: Int[Tensor, "row col"]
    unseen: Bool[Tensor, "row col"]
    rivals: bool

    def level(self, threshold: str | float) -> float:
        values = self.best[~self.unseen].double().cpu().numpy()
        return _level(values, threshold, rivals=self.rivals)

    def labels(self, level: float) -> Int16[np.ndarray, "row col"]:
        above = torch.where((self.best > level) & ~self.unseen, self.label + 1, NOTHING)
        return torch.where(self.unseen, UNSEEN, above).to(torch.int16).cpu().numpy()


def _answers(chunks: Chunks, texts: int) -> _Answers:
    best = label = rival = unseen = None
    first = 0
    for scores in chunks:
        if unseen is None:
            unseen = scores[0].isnan()
        own = scores[: max(0, texts - first)]
        if len(own):
            high, place = own.max(0)
            if best is None or label is None:
                best, label = high, place + first
            else:
                label = torch.where(high > best, place + first, label)
                best = torch.maximum(best, high)
        if len(own) < len(scores):
            high = scores[len(own) :].amax(0)
            rival = high if rival is None else torch.maximum(rival, high)
        first += len(scores)
    assert best is not None
    assert label is not None
    assert unseen is not None
    return _Answers(best if rival is None else best - rival, label, unseen, rival is not None)


def otsu(values: Float[np.ndarray, " value"]) -> float:
    """Find the threshold that leaves the least variance within two groups (Otsu 1979), exactly: over all places between sorted values.

    Example:
        >>> otsu(np.array([0.0, 0.1, 0.2, 5.0, 5.1]))
        2.6
    """
    ordered = np.sort(values.astype(np.float64))
    count = len(ordered)
    if count < 2 or ordered[0] == ordered[-1]:
        return float(ordered[-1]) if count else 0.0
    below = np.arange(1, count)
    sums = np.cumsum(ordered - ordered.mean())[:-1]
    between = sums**2 * (1.0 / below + 1.0 / (count - below))
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)


def _level(values: np.ndarray, threshold: str | float, *, rivals: bool) -> float:
    if not len(values):
        return 0.0
    low, high = float(values.min()), float(values.max())
    if threshold == "none":
        return 0.0 if rivals else -np.inf
    if threshold == "otsu":
        return otsu(values)
    if threshold == "lenient":
        return min(otsu(values), float(values.mean() + values.std())) if high > low else high
    if threshold == "mean":
        return float(values.mean())
    if threshold == 0:  # all of it, the lowest value too
        return -np.inf
    return low + (0.5 if isinstance(threshold, str) else threshold) * (high - low)


def checked_rule(threshold: str | float) -> str | float:
    """Check a rule of RULES, or a share from 0 to 1 (also as a string, from a command line).

    Raises:
        BadSpec: it is neither.
    """
    if isinstance(threshold, str) and threshold not in RULES:
        try:
            threshold = float(threshold)
        except ValueError as error:
            raise BadSpec(f"threshold {threshold!r} is not known. Type one of: {', '.join(RULES)}, or 0.4") from error
    if not isinstance(threshold, str) and not 0 <= threshold <= 1:
        raise BadSpec(f"threshold {threshold}: a share from 0 to 1 was expected. Type: threshold=0.4")
    return threshold
