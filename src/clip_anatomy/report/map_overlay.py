"""Maps over pictures: one colour language for every method."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.registry import COSINES
from clip_anatomy.report.mask_files import pale
from clip_anatomy.report.palette import colour, limit_of

__all__ = ["LOOKS", "Shades", "colours_of", "overlay", "shades_of"]

LOOKS = ("signed", "heat")
WORDS = "words"  # a sentence, its words, and what is left, in this order
# From "nothing here" to "here": dark and see-through to bright.
HEAT = ((28, 22, 66, 0.62), (116, 28, 108, 0.60), (206, 62, 60, 0.58), (247, 141, 40, 0.60), (252, 226, 110, 0.66))


@dataclass(frozen=True)
class Shades:
    """Hold the maps of one picture, ready to be coloured.

    Attributes:
        maps: with values so that 0 says neither yes nor no.
        limits: the value that gets the full colour, per text: one for all texts of the picture, except that the words of a
            sentence have another one than the sentence and what is left of it.
        zero: what 0 is, in words.
    """

    maps: Maps
    limits: tuple[float, ...]
    zero: str


def shades_of(maps: Maps) -> Shades:
    """Set the zero of one picture's maps.

    Args:
        maps: of one picture.
    """
    if maps.method in COSINES:  # the zero of all others means something: shares of a cosine, attention
        values = maps.values - maps.values.nanmean((2, 3), keepdim=True)
        limit = limit_of(values.nan_to_num())
        return Shades(replace(maps, values=values), (limit,) * len(maps.texts), "the picture's mean")
    values = maps.values[0].nan_to_num()
    if maps.method == WORDS and len(values) > 2:
        ends, inside = limit_of(values[0], values[-1]), limit_of(values[1:-1])
        return Shades(maps, (ends, *(inside for _ in values[1:-1]), ends), "0")
    return Shades(maps, (limit_of(values),) * len(values), "0")


def colours_of(values: Float[Tensor, "row col"], limit: float, look: str = "signed") -> UInt8[ndarray, "row col 4"]:
    """Return one map as red, green, blue and opacity; NaN is transparent.

    Args:
        values: any numbers.
        limit: for "signed", the value that gets the full colour.
        look: "signed" (orange above 0, blue below, nothing at 0) or "heat" (from the map's lowest value to its highest).
    """
    if look == "signed":
        return colour(values.nan_to_num().cpu(), limit)
    known = values[~values.isnan()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    share = ((values - low) / max(high - low, 1e-12)).nan_to_num().clamp(0, 1).cpu().numpy() * (len(HEAT) - 1)
    stops = np.array(HEAT) * np.array([1, 1, 1, 255])
    first = np.minimum(share.astype(int), len(HEAT) - 2)
    part = (share - first)[..., None]
    return np.rint(stops[first] * (1 - part) + stops[first + 1] * part).astype(np.uint8)


def overlay(picture: Image.Image, shades: Shades, text: int, look: str = "signed", longest: int = 2048) -> Image.Image:
    """Draw one map over its picture, pixel on pixel; what the model did not see is white.

    Args:
        picture: the original, in RGB.
        shades: maps of this picture.
        text: which of them.
        look: see `colours_of`.
        longest: larger pictures are scaled down to this side.

    Returns:
        RGB, of the picture's size.
    """
    scale = min(1.0, longest / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    shown = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
    one = replace(shades.maps, values=shades.maps.values[:1, text : text + 1], texts=shades.maps.texts[text : text + 1])
    assert one.geometries is not None
    # The same place in a picture of another size: a geometry knows its picture by its size alone.
    one = replace(one, geometries=(replace(one.geometries[0], picture=(size[1], size[0])),))
    values = one.on_picture()[0].cpu()
    rgba = colours_of(values, shades.limits[text], look).astype(np.float32)
    base = np.asarray(shown.convert("RGB"), dtype=np.float32)
    if look == "signed":
        base = pale(base)
    share = rgba[..., 3:] / 255
    out = base * (1 - share) + rgba[..., :3] * share
    unseen = values.isnan().numpy()
    out[unseen] = 0.22 * base[unseen] + 0.78 * 255
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))
