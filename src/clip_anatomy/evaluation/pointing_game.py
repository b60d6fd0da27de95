"""The pointing game (Zhang et al. 2016, §4.2): does the map's highest pixel lie on the object?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clip_anatomy.errors import BadInput

__all__ = ["Pointing", "points_at"]


@dataclass(frozen=True)
class Pointing:
    """Hits so far.

    Attributes:
        hits: maps whose highest pixel lies on the object.
        asked: maps.

    Example:
        >>> Pointing().add(True).add(False).rate
        0.5
    """

    hits: int = 0
    asked: int = 0

    def add(self, hit: bool | None) -> "Pointing":
        """With one more map; None where there was no object to point at."""
        return self if hit is None else Pointing(self.hits + hit, self.asked + 1)

    @property
    def rate(self) -> float:
        """Share of hits, NaN of nothing."""
        return self.hits / self.asked if self.asked else float("nan")


def points_at(
    map_: Float[Tensor, "row col"], mask: Shaped[Tensor, "_row _col"], tolerance: float | int = 0
) -> bool | None:
    """Whether the highest value of a map lies on the object (the first one in reading order, where several are equal).

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
