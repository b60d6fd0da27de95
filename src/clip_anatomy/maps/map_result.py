"""`Maps`: one map per image and text, and where its cells lie in the original pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import Geometry


@dataclass(frozen=True)
class Maps:
    """One map per image and text.

    Pictures of different shapes (`heatmap(..., size=...)`) have grids of different shapes: the smaller ones stand in the upper
    left corner, and the cells beside them are NaN. `maps[i]` is one picture's own grid without them.

    Attributes:
        values: the method's own numbers, not stretched: cosines, shares of a cosine, or surgery's differences.
        method: which method made them.
        texts: what each map is about.
        geometries: where the cells of each image lie in the original picture; None for preprocessed tensors.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> maps = ca.heatmap(ca.load("demo"), examples()[:2], ["a bird", "the sky"])
        >>> maps.values.shape, maps["a bird"].values.shape, maps[0].on_picture().shape
        (torch.Size([2, 2, 8, 8]), torch.Size([2, 1, 8, 8]), torch.Size([2, 64, 64]))
    """

    values: Float[Tensor, "image text row col"]
    method: str
    texts: tuple[str, ...]
    geometries: tuple[Geometry, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse names or geometries that do not count as the values do."""
        images, texts = self.values.shape[:2]
        if len(self.texts) != texts or (self.geometries is not None and len(self.geometries) != images):
            count = None if self.geometries is None else len(self.geometries)
            raise BadSpec(
                f"maps [image text row col] are {list(self.values.shape)}, with {len(self.texts)} texts and {count} "
                "geometries. Type: one text per map, and one geometry per image or geometries=None"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.values)

    def __getitem__(self, wanted: int | slice | str) -> "Maps":
        """Return the maps of some images (a number or a slice; one image comes on its own grid), or of one text (its name)."""
        if isinstance(wanted, str):
            if wanted not in self.texts:
                raise BadSpec(f"there is no map of {wanted!r}. Type one of: {', '.join(map(repr, self.texts))}")
            at = self.texts.index(wanted)
            return replace(self, values=self.values[:, at : at + 1], texts=(wanted,))
        if not isinstance(wanted, slice):
            wanted = index(wanted)
            if not -len(self) <= wanted < len(self):
                raise IndexError(f"image {wanted} of {len(self)}")
            wanted = wanted % len(self)
            rows, cols = self.cells(wanted)
            known = None if self.geometries is None else (_cut(self.geometries[wanted], self._grid, (rows, cols)),)
            return replace(self, values=self.values[wanted : wanted + 1, :, :rows, :cols], geometries=known)
        known = None if self.geometries is None else self.geometries[wanted]
        return replace(self, values=self.values[wanted], geometries=known)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.values.shape[2], self.values.shape[3]

    def cells(self, image: int) -> tuple[int, int]:
        """(row, col) of one picture's own grid: smaller than that of `values` where pictures have different shapes."""
        empty = self.values[image].isnan().all(0)
        return int((~empty).any(1).sum()), int((~empty).any(0).sum())

    def stretched(self) -> "Float[Tensor, 'image text row col']":
        """Each map from 0 to 1 (maps of different texts are then not on one scale); all 0 where a map is flat."""
        low = self.values.nan_to_num(nan=torch.inf).amin((2, 3), keepdim=True)
        high = self.values.nan_to_num(nan=-torch.inf).amax((2, 3), keepdim=True)
        return (self.values - low) / (high - low).clamp_min(1e-12)

    def resized(self, size: tuple[int, int]) -> "Maps":
        """Bilinear to (row, col) pixels of the model's input: what it saw, not the picture (see `on_picture`).

        Raises:
            BadSpec: pictures of different shapes, whose padding would bleed into their maps.
        """
        if self.values.isnan().any():
            raise BadSpec(f"these pictures have grids of different shapes. Type: maps[0].resized({size}), one by one")
        values = F.interpolate(self.values, size, mode="bilinear", align_corners=False)
        return replace(self, values=values)

    def on_picture(self, image: int = 0) -> Float[Tensor, "text row col"]:
        """The maps of one image, pixel by pixel of the original picture.

        Bilinear between the middles of the cells, through the crop and the scaling backwards.

        Args:
            image: which.

        Returns:
            At the size of the picture as `read_image` returns it; NaN where the crop did not look.

        Raises:
            BadSpec: the images were preprocessed tensors, so that nobody knows the originals.
        """
        where = self._geometry(image)
        first, last = where.patches_in(where.box, self._grid)  # cells of padding hold nothing of the picture
        rows = _weights(where, self._grid, first, axis=0).to(self.values)
        cols = _weights(where, self._grid, last, axis=1).to(self.values)
        part = self.values[image][:, first.start : first.stop, last.start : last.stop]
        found = rows @ part @ cols.T
        return found.masked_fill(~self.seen(image), torch.nan)

    def seen(self, image: int = 0) -> Bool[Tensor, "row col"]:
        """Which pixels of the original picture the model looked at.

        Args:
            image: which.

        Raises:
            BadSpec: the images were preprocessed tensors.
        """
        where = self._geometry(image)
        inside = [
            (position >= 0) & (position < size)
            for position, size in zip((_positions(where, 0), _positions(where, 1)), where.size, strict=True)
        ]
        return (inside[0][:, None] & inside[1][None]).to(self.values.device)

    def _geometry(self, image: int) -> Geometry:
        if self.geometries is None:
            raise BadSpec(
                "these images were preprocessed tensors: where they lie in a picture is not known. "
                "Type: heatmap(clip, paths_or_pictures, ...), or maps.resized((rows, cols))"
            )
        return self.geometries[image]

    @staticmethod
    def joined(several: Sequence["Maps"]) -> "Maps":
        """Several maps of the same texts as one; grids of different shapes are padded with NaN."""
        rows, cols = (max(m.values.shape[axis] for m in several) for axis in (2, 3))
        values: list[Tensor] = []
        known: list[Geometry] = []
        for m in several:
            grid = m.values.shape[2], m.values.shape[3]
            values.append(F.pad(m.values, (0, cols - grid[1], 0, rows - grid[0]), value=torch.nan))
            known += [_cut(g, grid, (rows, cols)) for g in m.geometries or ()]
        whole = all(m.geometries is not None for m in several)
        return Maps(torch.cat(values), several[0].method, several[0].texts, tuple(known) if whole else None)


def _cut(where: Geometry, old: tuple[int, int], new: tuple[int, int]) -> Geometry:
    """The same place with cells added or taken away on the right and at the bottom."""
    size = where.size[0] * new[0] // old[0], where.size[1] * new[1] // old[1]
    return where if size == where.size else replace(where, size=size)


def _positions(where: Geometry, axis: int) -> Tensor:
    """Where the middles of the original's pixels lie in the model's input, along one axis."""
    middles = torch.arange(where.picture[axis], dtype=torch.float64) + 0.5
    return middles * where.resized[axis] / where.picture[axis] - where.offset[axis]


def _weights(where: Geometry, grid: tuple[int, int], cells: range, *, axis: int) -> Float[Tensor, "row col"]:
    """Share of every cell in every pixel, along one axis: a pixel lies between the middles of two cells."""
    at = _positions(where, axis) * grid[axis] / where.size[axis] - 0.5 - cells.start
    at = at.clamp(0, len(cells) - 1)
    return (1 - (at[:, None] - torch.arange(len(cells), dtype=torch.float64)).abs()).clamp_min(0)
