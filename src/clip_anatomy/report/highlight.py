"""Which patches made a picture match: those stay as they are, the others are dark, those that spoke against it are blue."""

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from clip_anatomy.report.html import data_uri, encoded
from clip_anatomy.report.palette import NO, limit_of

__all__ = ["highlight", "highlight_uri", "limits_of"]

SHADE = (14, 16, 20)
DARKEST = 0.6  # opacity over a patch that has no part in the match
BLUEST = 0.72  # and over the one that spoke most against it
OWN = 0.35  # a picture is lit by its own best patch, if that reaches this share of all pictures' limit


def limits_of(*maps: Float[Tensor, "_ _"] | None) -> list[float]:
    """Return the value that is fully lit in each map: its own largest one, so that the eye finds it; but weak maps stay dark.

    Example:
        >>> limits_of(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]]), torch.tensor([[0.1, 0.0]]), None)
        [1.0, 0.5, 0.35, 0.35]
    """
    known = [one for one in maps if one is not None]
    least = OWN * limit_of(*known) if known else 0.0
    return [round(max(least, 0.0 if one is None else float(one.max())), 12) for one in maps]


def highlight(values: Float[Tensor, "row col"], limit: float) -> UInt8[ndarray, "row col 4"]:
    """Return the shade over a picture as red, green, blue, opacity, one pixel a patch.

    Args:
        values: what each patch adds to the score.
        limit: the value that is left fully lit.
    """
    share = (values.double() / max(limit, 1e-30)).clamp(-1, 1)
    # The eye sees ratios of light: by the root, half of the best patch's share looks half as lit.
    lit, against = share.clamp_min(0).sqrt(), (-share).clamp_min(0)[..., None]
    shade, blue = torch.tensor(SHADE).double(), torch.tensor(NO).double()
    rgb = shade * (1 - against) + blue * against
    opacity = 255 * (DARKEST * (1 - lit) + (BLUEST - DARKEST) * against[..., 0])
    return torch.cat([rgb, opacity[..., None]], -1).round().to(torch.uint8).numpy()


def highlight_uri(values: Float[Tensor, "row col"], limit: float) -> str:
    """Return the shade as a tiny PNG that a page scales up."""
    return data_uri(encoded(Image.fromarray(highlight(values, limit))))
