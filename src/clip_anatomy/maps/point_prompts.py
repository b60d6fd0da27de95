"""From a map to the prompts of a promptable segmenter (SAM): positive points, negative points, boxes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip_anatomy.argument_kinds import described
from clip_anatomy.errors import BadInput
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.public_functions import public

__all__ = ["Prompts", "boxes", "combined_points", "components", "points", "prompts"]

Point = tuple[float, float]
Box4 = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompts:
    """Hold the prompts of one picture for SAM, in pixels of the original: (0, 0) is its upper left corner.

    Attributes:
        text: whose prompts they are; "a + b" where several texts are prompted together.
        points: (x, y) each.
        labels: 1 for a positive point, 0 for a negative one; as many as points.
        boxes: (left, top, right, bottom) each, the largest region first.
        picture: (row, col) pixels of the original.
    """

    text: str
    points: tuple[Point, ...]
    labels: tuple[int, ...]
    boxes: tuple[Box4, ...]
    picture: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, ready for JSON; `point_coords` and `point_labels` are what SAM's predictor calls them."""
        known = asdict(self)
        return {
            "text": self.text,
            "point_coords": [[round(x, 2), round(y, 2)] for x, y in self.points],
            "point_labels": list(self.labels),
            "boxes": [[round(edge, 2) for edge in box] for box in self.boxes],
            "width": known["picture"][1],
            "height": known["picture"][0],
        }


def points(
    map_: Float[Tensor, "row col"], size: tuple[int, int], *, threshold: float = 0.8
) -> tuple[Float[Tensor, "point 2"], Float[Tensor, "other 2"]]:
    """Choose point prompts for SAM from one map (Li et al. 2023, §3.5).

    The map is halved (bilinear) and stretched to 0..1; positives are the cells of at least `threshold`, at most half of all;
    negatives are as many of the lowest.

    Args:
        map_: similarities per patch.
        size: (row, col) of the picture in pixels.
        threshold: from 0 to 1.

    Returns:
        Positive and negative points as (x, y) pixels, each from the strongest: the highest, and the lowest.

    Example:
        >>> yes, no = points(torch.eye(4), (40, 40))
        >>> yes.tolist(), no.tolist()
        ([[10.0, 10.0], [30.0, 30.0]], [[10.0, 30.0], [30.0, 10.0]])
    """
    yes, no, _ = _strongest(map_, size, threshold)
    return yes, no


def _strongest(map_: Tensor, size: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor, list[float]]:
    """Points as `points` gives them, and the stretched map at each positive one."""
    # A map of one patch a side cannot be halved.
    small = max(1, map_.shape[0] // 2), max(1, map_.shape[1] // 2)
    half = F.interpolate(map_[None, None].float(), small, mode="bilinear")[0, 0]
    flat = _stretched(half).flatten()
    order = flat.argsort(descending=True, stable=True)
    count = min(int((flat >= threshold).sum()), len(flat) // 2)
    cell = torch.tensor([size[1] / half.shape[1], size[0] / half.shape[0]])

    def centres(cells: Tensor) -> Tensor:
        return (torch.stack([cells % half.shape[1], cells // half.shape[1]], 1) + 0.5) * cell

    yes, no = order[:count], order[len(order) - count :].flip(0)
    return centres(yes.cpu()), centres(no.cpu()), flat[yes].tolist()


def combined_points(
    maps: Float[Tensor, "text row col"], size: tuple[int, int], *, threshold: float = 0.8
) -> tuple[Float[Tensor, "point 2"], Float[Tensor, "other 2"]]:
    """Choose points for several things at once ("a + b"): the positives of each map, the negatives of their mean.

    Source: the released demonstration of CLIP Surgery (Li et al. 2023): each map is stretched to 0..1 before the mean, so that
    no text is louder than another. Here a point that two maps share is named once, no point is both positive and negative, and
    the strongest come first.

    Args:
        maps: one map per text.
        size: (row, col) of the picture in pixels.
        threshold: from 0 to 1.

    Returns:
        Positive and negative points as (x, y) pixels.
    """
    each = [_strongest(map_, size, threshold) for map_ in maps]
    yes = [(value, point) for places, _, values in each for point, value in zip(places.tolist(), values, strict=True)]
    no = points(torch.stack([_stretched(map_) for map_ in maps]).mean(0), size, threshold=threshold)[1]
    wanted = list(dict.fromkeys(tuple(point) for _, point in sorted(yes, key=lambda one: -one[0])))
    refused = [point for point in map(tuple, no.tolist()) if point not in set(wanted)]
    return torch.tensor(wanted).reshape(-1, 2), torch.tensor(refused).reshape(-1, 2)


@public
def prompts(
    maps: Float[Tensor, "text row col"],
    texts: Sequence[str],
    geometry: Geometry,
    mask: Bool[np.ndarray, "_ _"] | None = None,
    *,
    threshold: float = 0.8,
) -> Prompts:
    """Return points and boxes for one picture in the coordinates of the original, through the model's resize and crop.

    Args:
        maps: the maps of the texts that are prompted together; one for a single text.
        texts: their words.
        geometry: how the picture was scaled and cropped.
        mask: where the things are, in pixels of the original (its regions become boxes) or in cells of the maps. Positive points
            lie inside it, one at least, negative ones outside. None for points by the maps alone, and no boxes.
        threshold: for the points, from 0 to 1.

    Returns:
        Prompts.

    Raises:
        BadInput: as many maps as texts were expected, or a map holds NaN.
    """
    if len(maps) != len(texts) or not texts:
        raise BadInput(f"{len(maps)} maps for {len(texts)} texts. Type: prompts(maps.values[0], maps.texts, geometry)")
    if maps.isnan().any():
        raise BadInput(
            "these maps hold NaN: padding beside a picture of another shape. Type: prompts(maps[0].values[0], maps.texts, "
            "maps[0].geometries[0])"
        )
    both = points(maps[0], geometry.size, threshold=threshold) if len(texts) == 1 else None
    yes, no = both or combined_points(maps, geometry.size, threshold=threshold)
    wanted, refused = (
        [at for point in some.tolist() if (at := _in_picture(point, geometry)) is not None] for some in (yes, no)
    )
    if mask is not None:
        if mask.dtype != bool or mask.shape not in (geometry.picture, geometry.size, tuple(maps.shape[1:])):
            raise BadInput(
                f"mask is {described(mask)}; True and False of {list(geometry.picture)} pixels or {list(maps.shape[1:])} cells were expected. Type: "
                "mask=masks.labels[i] == k"
            )
        wanted = [at for at in wanted if _inside(mask, at, geometry)] or _strongest_place(maps, mask, geometry)
        refused = [at for at in refused if not _inside(mask, at, geometry)]
    regions = boxes(mask) if mask is not None and mask.shape == geometry.picture else ()
    labels = (1,) * len(wanted) + (0,) * len(refused)
    return Prompts(" + ".join(texts), (*wanted, *refused), labels, regions, geometry.picture)


def _inside(mask: Bool[np.ndarray, "row col"], point: Point, geometry: Geometry) -> bool:
    """Whether a point of the original lies in a mask of its pixels, or of cells of the model's input."""
    row, col = point[1], point[0]
    if mask.shape != geometry.picture:
        at = geometry.to_model(row, col)
        row, col = (x * cells / side for x, cells, side in zip(at, mask.shape, geometry.size, strict=True))
    inside = 0 <= row < mask.shape[0] and 0 <= col < mask.shape[1]
    return inside and bool(mask[int(row), int(col)])


def _strongest_place(maps: Tensor, mask: Bool[np.ndarray, "row col"], geometry: Geometry) -> list[Point]:
    """Find the place of a mask in the cell that scores most of those that it touches, as near to the cell's middle as it reaches."""
    values = torch.stack([_stretched(map_) for map_ in maps]).amax(0)
    grid = values.shape[0], values.shape[1]
    for cell in values.flatten().argsort(descending=True, stable=True).tolist():
        row, col = divmod(cell, grid[1])
        box = geometry.patch_box(row, col, grid)
        if mask.shape != geometry.picture:
            if mask[row, col] and box.bottom > box.top and box.right > box.left:
                return [((box.left + box.right) / 2, (box.top + box.bottom) / 2)]
            continue
        top, left = int(box.top), int(box.left)
        rows, cols = np.nonzero(mask[top : ceil(box.bottom), left : ceil(box.right)])
        if len(rows):
            y, x = rows + top + 0.5, cols + left + 0.5
            nearest = np.argmin((y - (box.top + box.bottom) / 2) ** 2 + (x - (box.left + box.right) / 2) ** 2)
            return [(float(x[nearest]), float(y[nearest]))]
    return []


def boxes(mask: Bool[np.ndarray, "row col"], *, smallest: float = 0.02, most: int = 10) -> tuple[Box4, ...]:
    """Draw rectangles around the connected regions of a mask, the largest region first.

    Args:
        mask: where something is.
        smallest: regions below this share of the largest are left out: crumbs of a threshold.
        most: how many boxes at most.

    Returns:
        (left, top, right, bottom) in pixels; pixel i covers i to i + 1.

    Example:
        >>> mask = np.zeros((4, 6), dtype=bool)
        >>> mask[1:3, 2:5] = True
        >>> boxes(mask)
        ((2.0, 1.0, 5.0, 3.0),)
    """
    regions = components(mask)
    areas = np.bincount(regions.ravel())[1:]
    if not len(areas):
        return ()
    corners: list[Box4] = []
    for region in np.argsort(-areas, kind="stable")[:most]:
        if areas[region] < smallest * areas.max():
            break
        rows, cols = (np.flatnonzero((regions == region + 1).any(axis)) for axis in (1, 0))
        corners.append((float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)))
    return tuple(corners)


def components(mask: Bool[np.ndarray, "row col"]) -> Int[np.ndarray, "row col"]:
    """Return number the regions of a mask; pixels that touch by an edge or a corner are of one region.

    Runs of each row are joined with the runs above that they touch (union–find), so the work grows with the outline.

    Args:
        mask: where something is.

    Returns:
        0 outside, 1, 2, ... in the regions, in the order of their first pixel.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(height + 1))
    for row in range(1, height):
        above, here = int(first[row - 1]), int(first[row])
        while above < first[row] and here < first[row + 1]:
            if starts[above] <= stops[here] and starts[here] <= stops[above]:  # corners touch too
                a, b = root(above), root(here)
                parent[max(a, b)] = min(a, b)
            if stops[above] < stops[here]:
                above += 1
            else:
                here += 1
    numbered = np.zeros((height, width), dtype=np.int32)
    names: dict[int, int] = {}
    for run in range(len(rows)):
        number = names.setdefault(root(run), len(names) + 1)
        numbered[rows[run], starts[run] : stops[run]] = number
    return numbered


def _stretched(map_: Tensor) -> Tensor:
    low, high = map_.min(), map_.max()
    return (map_ - low) / (high - low).clamp_min(1e-12)


def _in_picture(point: Sequence[float], geometry: Geometry) -> Point | None:
    """Return a point of the model's input in the original, or None in the padding."""
    row, col = geometry.to_picture(point[1], point[0])
    inside = 0 <= row < geometry.picture[0] and 0 <= col < geometry.picture[1]
    return (col, row) if inside else None
