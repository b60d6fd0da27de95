"""Maps over pictures: one colour language for every method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.maps.layer_maps import cumulative
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_set import MapSet
from clip_anatomy.maps.registry import COSINES
from clip_anatomy.report.mask_files import pale
from clip_anatomy.report.palette import colour, limit_of

__all__ = [
    "ShadedSet",
    "Shades",
    "blended",
    "colour_range",
    "colours_of",
    "empty_maps",
    "least_share",
    "overlay",
    "shades_of",
]

WORDS = "words"  # a sentence, its words, and what is left, in this order
# From "nothing here" to "here": dark and see-through to bright.
HEAT = ((28, 22, 66, 0.62), (116, 28, 108, 0.60), (206, 62, 60, 0.58), (247, 141, 40, 0.60), (252, 226, 110, 0.66))


# Maps whose values stay far below these say nothing, and look empty.
LEAST_SHARE = 0.2  # of a cosine, spread evenly over the patches
LEAST_COSINE = 0.005  # of a patch with a text
# All others (gradients, attention) have units of their own: they are held against themselves and the rest of their page.
FLAT = 1e-3  # of its largest value: a map that varies by less points nowhere
FAINT = 0.05  # of the full colour: nobody sees less


@dataclass(frozen=True)
class Shades:
    """Hold maps of some pictures, ready to be coloured on one scale.

    Attributes:
        maps: with values so that 0 says neither yes nor no.
        limits: the value that gets the full colour, per text: one for all texts and pictures, except that the words of a
            sentence have another one than the sentence and what is left of it.
        ends: lowest and highest value of all that share a scale, per text.
        zero: what 0 is, in words.
    """

    maps: Maps
    limits: tuple[float, ...]
    ends: tuple[tuple[float, float], ...]
    zero: str

    def __getitem__(self, image: int) -> "Shades":
        """Return those of one picture, on its own grid and on the scale of all."""
        return replace(self, maps=self.maps[image])

    def says_nothing(self, text: int) -> bool:
        """Return whether one text's maps look empty on their scale."""
        known = self.maps.values[:, text].nan_to_num()
        return float(known.abs().max()) < FAINT * self.limits[text]

    def on_scale_of(self, others: Sequence["Shades"]) -> "Shades":
        """Return the same on the widest scale of several."""
        limit = max(limit for one in others for limit in one.limits)
        lows, highs = zip(*(pair for one in others for pair in one.ends), strict=True)
        count = len(self.limits)
        return replace(self, limits=(limit,) * count, ends=((min(lows), max(highs)),) * count)


def shades_of(maps: Maps) -> Shades:
    """Set the zero of maps, and one scale for all pictures and texts.

    Args:
        maps: of one picture or of all pictures of a page.
    """
    values, zero = maps.values, "0"
    if maps.method in COSINES:  # the zero of all others means something: shares of a cosine, attention
        values, zero = values - values.nanmean((2, 3), keepdim=True), "the picture's mean"
    least = _least(maps)
    if not least:
        values = _without_flat(values)
        least = 1e-30

    def scale(*texts: int) -> tuple[float, tuple[float, float]]:
        each = [one[~one.isnan()] for one in values[:, list(texts)].flatten(0, 1)]
        each = [one for one in each if len(one)] or [torch.zeros(1)]
        low, high = min(float(one.min()) for one in each), max(float(one.max()) for one in each)
        return max(least, *(limit_of(one) for one in each)), (low, max(high, low + least))

    count = values.shape[1]
    if maps.method == WORDS and count > 2:
        outer, inner = scale(0, count - 1), scale(*range(1, count - 1))
        scales = [outer, *[inner] * (count - 2), outer]
    else:
        scales = [scale(*range(count))] * count
    limits, ends = zip(*scales, strict=True)
    return Shades(replace(maps, values=values), limits, ends, zero)


def colour_range(shades: Shades, text: int, colours: str = "signed") -> str:
    """Return what the strongest colours stand for, in numbers.

    Args:
        shades: the maps.
        text: whose scale.
        colours: "signed" or "heat".
    """
    if colours == "signed":
        return f"±{shades.limits[text]:.2g}"
    low, high = shades.ends[text]
    return f"{low:+.2g} to {high:+.2g}".replace("-", "−")


def _least(maps: Maps) -> float:
    """Return the value below which no map of a method gets the full colour; 0 where its values have no unit that others share."""
    if maps.method in COSINES:
        return LEAST_COSINE
    shares = maps.method == WORDS or maps.method.startswith("decomposition")
    return least_share((maps.values.shape[2], maps.values.shape[3])) if shares else 0.0


def _without_flat(values: Float[Tensor, "image text row col"]) -> Float[Tensor, "image text row col"]:
    """Set maps to 0 that are the same everywhere: they point to no place, whatever the value."""
    low, high = values.nan_to_num(torch.inf).amin((2, 3), True), values.nan_to_num(-torch.inf).amax((2, 3), True)
    flat = high - low <= FLAT * torch.maximum(low.abs(), high.abs())
    return torch.where(flat & ~values.isnan(), 0.0, values)


def least_share(grid: tuple[int, ...]) -> float:
    """Return the share of a cosine below which no patch gets the full colour."""
    return LEAST_SHARE / (grid[0] * grid[1])


@dataclass(frozen=True)
class ShadedSet:
    """Hold all maps of some pictures, ready to be coloured: one scale for each method, for each sentence's words, for layers and their sums.

    Attributes:
        methods: as `MapSet.methods`.
        words: as `MapSet.words`.
        layers: as `MapSet.layers`.
        sums: the sums up to each layer.
    """

    methods: tuple[Shades, ...]
    words: tuple[Shades, ...]
    layers: tuple[Shades, ...]
    sums: tuple[Shades, ...]

    @staticmethod
    def of(map_set: MapSet) -> "ShadedSet":
        """Shade all maps of a set."""
        layers = tuple(map(shades_of, map_set.layers))
        sums = tuple(map(shades_of, cumulative(map_set.layers))) if layers else ()
        return ShadedSet(
            tuple(map(shades_of, map_set.methods)),
            tuple(map(shades_of, map_set.words)),
            tuple(one.on_scale_of(layers) for one in layers),
            tuple(one.on_scale_of(sums) for one in sums),
        )

    def __getitem__(self, image: int) -> "ShadedSet":
        """Return those of one picture."""
        return ShadedSet(
            *(tuple(one[image] for one in some) for some in (self.methods, self.words, self.layers, self.sums))
        )


def empty_maps(map_set: MapSet) -> list[str]:
    """Name the maps that look empty on their scale, by method, text and picture."""
    return [
        f"{shades.maps.method} of “{shorten(text, 40)}” in {map_set.first.short_names[i]}"
        for shades in map(shades_of, map_set.methods)
        for i in range(len(map_set))
        for k, text in enumerate(shades.maps.texts)
        if shades[i].says_nothing(k)
    ]


def colours_of(
    values: Float[Tensor, "row col"], limit: float, colours: str = "signed", ends: tuple[float, float] | None = None
) -> UInt8[ndarray, "row col 4"]:
    """Return one map as red, green, blue and opacity; NaN is transparent.

    Args:
        values: any numbers.
        limit: for "signed", the value that gets the full colour.
        colours: "signed" (orange above 0, blue below, nothing at 0) or "heat" (from the lowest value to the highest).
        ends: these two values, for "heat"; by default the map's own.
    """
    if colours == "signed":
        return colour(values.nan_to_num().cpu(), limit)
    known = values[~values.isnan()]
    low, high = ends or ((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0))
    share = ((values - low) / max(high - low, 1e-12)).nan_to_num().clamp(0, 1).cpu().numpy() * (len(HEAT) - 1)
    stops = np.array(HEAT) * np.array([1, 1, 1, 255])
    first = np.minimum(share.astype(int), len(HEAT) - 2)
    part = (share - first)[..., None]
    return np.rint(stops[first] * (1 - part) + stops[first + 1] * part).astype(np.uint8)


def overlay(
    picture: Image.Image, shades: Shades, text: int, colours: str = "signed", longest: int = 2048
) -> Image.Image:
    """Draw one map over its picture, pixel on pixel; what the model did not see is white.

    Args:
        picture: the original, in RGB.
        shades: maps of this picture.
        text: which of them.
        colours: see `colours_of`.
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
    base = np.asarray(shown.convert("RGB"), dtype=np.float32)
    return Image.fromarray(blended(base, values, shades.limits[text], colours, shades.ends[text]))


def blended(
    picture: Float[ndarray, "row col 3"],
    values: Float[Tensor, "row col"],
    limit: float,
    colours: str = "signed",
    ends: tuple[float, float] | None = None,
    *,
    tones: tuple[float, float] | None = None,
) -> UInt8[ndarray, "row col 3"]:
    """Lay the colours of a map over pixels; where the map is NaN nobody looked, and it is white.

    Args:
        picture: the pixels.
        values: of each of them, 0 saying neither yes nor no.
        limit: see `colours_of`; `colours` and `ends` likewise.
        colours: "signed" or "heat".
        ends: lowest and highest value.
        tones: what is dark and light in the whole picture, where this is a piece of it; see `pale`.
    """
    rgba = colours_of(values, limit, colours, ends).astype(np.float32)
    base = pale(picture, tones) if colours == "signed" else picture
    share = rgba[..., 3:] / 255
    out = base * (1 - share) + rgba[..., :3] * share
    unseen = values.isnan().numpy()
    out[unseen] = 0.22 * base[unseen] + 0.78 * 255
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
