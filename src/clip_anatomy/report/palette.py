"""The two colours of every figure: orange above zero, blue below, transparent at zero."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from clip_anatomy.report.html import data_uri, encoded

YES = (224, 90, 0)
NO = (24, 100, 200)
STRONGEST = 0.86  # opacity of the largest value


def colour(values: Float[Tensor, "row col"], limit: float) -> UInt8[ndarray, "row col 4"]:
    """Return signed values as red, green, blue, opacity: opacity grows with the value, zero is transparent.

    Args:
        values: signed numbers.
        limit: the absolute value that gets the full colour.
    """
    share = (values.double() / max(limit, 1e-30)).clamp(-1, 1).numpy()
    rgb = np.where((share >= 0)[..., None], np.array(YES), np.array(NO))
    return np.concatenate([rgb, np.rint(np.abs(share) * 255 * STRONGEST)[..., None]], -1).astype(np.uint8)


def limit_of(*values: Tensor) -> float:
    """Return one scale for several maps: the largest absolute value, or, where a few stand far out, the 99.5th percentile.

    Example:
        >>> limit_of(torch.tensor([0.5, -2.0]))
        2.0
    """
    flat = torch.cat([v.double().abs().flatten() for v in values])
    if not len(flat):
        return 0.0
    top, high = float(flat.max()), float(flat.quantile(0.995))
    return high if 0 < high < top / 2 else top


def ends_of(values: Tensor, limit: float) -> tuple[str, str]:
    """Return what stands at the two ends of a colour scale; ≤ and ≥ where values beyond it were cut to the full colour.

    Example:
        >>> ends_of(torch.tensor([1.0, -0.2]), 0.5)
        ('no ≤ −0.5000', 'yes ≥ +0.5000')
    """
    beyond = float(values.abs().max()) > limit * (1 + 1e-6)
    low, high = ("≤ ", "≥ ") if beyond else ("", "")
    return f"no {low}−{limit:.4f}", f"yes {high}+{limit:.4f}"


@dataclass(frozen=True)
class ValueGrid:
    """Hold signed numbers as a page shows them: an image of one pixel each that the page scales up, and the numbers themselves.

    Attributes:
        values: the numbers.
        limit: the absolute value that gets the full colour.
    """

    values: Float[Tensor, "row col"]
    limit: float

    @property
    def rows(self) -> int:
        """Return how many rows there are."""
        return self.values.shape[0]

    @property
    def cols(self) -> int:
        """Return how many columns there are."""
        return self.values.shape[1]

    @property
    def millionths(self) -> str:
        """Return the numbers in millionths, row by row, for the script that shows those under the pointer."""
        return " ".join(str(round(v * 1e6)) for v in self.values.flatten().tolist())

    @property
    def data_uri(self) -> str:
        """Return the image as an address that holds its bytes."""
        return data_uri(encoded(Image.fromarray(colour(self.values, self.limit))))
