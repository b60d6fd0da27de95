"""`Maps`: one map per image and text, and where its cells lie in the original pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.data.picture_batches import Failed, NamedPicture
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip
from clip_anatomy.number_ranges import whole, within
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

DIGITS = 6  # significant digits of stored numbers


@dataclass(frozen=True)
class MapRun:
    """What maps were made with, and what could not be looked at.

    Attributes:
        clip: the model.
        size: see `Size`.
        options: window, stride and the options of the method, where they were given.
        failed: name and error of pictures that could not be used.
        notes: what else a reader must know, as what of a folder was passed over.
    """

    clip: Clip
    size: Size = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    failed: tuple[Failed, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> dict[str, Any]:
        """Name, digest and preprocessing of the model."""
        return {"name": self.clip.name, "digest": self.clip.digest, "preprocess": self.clip.preprocess.to_dict()}


@public
@dataclass(frozen=True, repr=False)
class Maps(Result):
    """One map per image and text.

    Pictures of different shapes (`heatmap(..., size=...)`) have grids of different shapes: the smaller ones stand in the upper
    left corner, and the cells beside them are NaN. `maps[i]` is one picture's own grid without them.

    Attributes:
        values: the method's own numbers, not stretched: cosines, shares of a cosine, or surgery's differences.
        method: which method made them.
        texts: what each map is about.
        geometries: where the cells of each image lie in the original picture; None for preprocessed tensors.
        pictures: the originals; None likewise.
        run: what the maps were made with; None for maps that were put together by hand.
        subtracted: what was subtracted from every text, in words; "" for nothing.

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
    pictures: tuple[NamedPicture, ...] | None = None
    run: MapRun | None = None
    subtracted: str = ""
    presenter: ClassVar[str] = "maps_folder"

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
            pictures = None if self.pictures is None else self.pictures[wanted : wanted + 1]
            values = self.values[wanted : wanted + 1, :, :rows, :cols]
            return replace(self, values=values, geometries=known, pictures=pictures)
        known, pictures = (None if one is None else one[wanted] for one in (self.geometries, self.pictures))
        return replace(self, values=self.values[wanted], geometries=known, pictures=pictures)  # pyright: ignore[reportArgumentType]

    @property
    def _grid(self) -> tuple[int, int]:
        return self.values.shape[2], self.values.shape[3]

    def cells(self, image: int) -> tuple[int, int]:
        """Return (row, col) of one picture's own grid: smaller than that of `values` where pictures have different shapes."""
        empty = self.values[within("image", image, len(self))].isnan().all(0)
        return int((~empty).any(1).sum()), int((~empty).any(0).sum())

    def stretched(self) -> "Float[Tensor, 'image text row col']":
        """Stretch each map from 0 to 1 (maps of different texts are then not on one scale); all 0 where a map is flat."""
        low = self.values.nan_to_num(nan=torch.inf).amin((2, 3), keepdim=True)
        high = self.values.nan_to_num(nan=-torch.inf).amax((2, 3), keepdim=True)
        return (self.values - low) / (high - low).clamp_min(1e-12)

    def resized(self, size: tuple[int, int]) -> "Maps":
        """Resize bilinearly to (row, col) pixels of the model's input: what it saw, not the picture (see `on_picture`).

        Raises:
            BadSpec: pictures of different shapes, whose padding would bleed into their maps.
        """
        if self.values.isnan().any():
            raise BadSpec(f"these pictures have grids of different shapes. Type: maps[0].resized({size}), one by one")
        for side in size:
            whole("size", side, 1, 100_000)
        values = F.interpolate(self.values, size, mode="bilinear", align_corners=False)
        return replace(self, values=values)

    def on_picture(
        self, image: int = 0, rows: slice = slice(None), cols: slice = slice(None)
    ) -> Float[Tensor, "text row col"]:
        """Lay the maps of one image on the pixels of the original picture.

        Bilinear between the middles of the cells, through the crop and the scaling backwards.

        Args:
            image: which.
            rows: of the picture; all by default. A large one is laid out a strip at a time.
            cols: likewise.

        Returns:
            At the size of the picture (or of that part) as `read_image` returns it; NaN where the crop did not look.

        Raises:
            BadSpec: the images were preprocessed tensors, so that nobody knows the originals.
        """
        where = self._geometry(image)
        first, last = where.patches_in(where.box, self._grid)  # cells of padding hold nothing of the picture
        across = _weights(where, self._grid, first, axis=0)[rows].to(self.values)
        down = _weights(where, self._grid, last, axis=1)[cols].to(self.values)
        part = self.values[image][:, first.start : first.stop, last.start : last.stop]
        return (across @ part @ down.T).masked_fill_(~self.visible(image, rows, cols), torch.nan)

    def visible(self, image: int = 0, rows: slice = slice(None), cols: slice = slice(None)) -> Bool[Tensor, "row col"]:
        """Mark the pixels of the original picture that the model looked at.

        Args:
            image: which.
            rows: of the picture; all by default.
            cols: likewise.

        Raises:
            BadSpec: the images were preprocessed tensors.
        """
        where = self._geometry(image)
        positions = _positions(where, 0)[rows], _positions(where, 1)[cols]
        inside = [(at >= 0) & (at < size) for at, size in zip(positions, where.size, strict=True)]
        return (inside[0][:, None] & inside[1][None]).to(self.values.device)

    def _geometry(self, image: int) -> Geometry:
        if self.geometries is None:
            raise BadSpec(
                "these images were preprocessed tensors: where they lie in a picture is not known. "
                "Type: heatmap(clip, paths_or_pictures, ...), or maps.resized((rows, cols))"
            )
        return self.geometries[within("image", image, len(self))]

    @staticmethod
    def joined(several: Sequence["Maps"]) -> "Maps":
        """Join several maps of the same texts; grids of different shapes are padded with NaN.

        Raises:
            BadInput: there are none.
        """
        if not several:
            raise BadInput("there are no maps to join. Type: Maps.joined([maps, more])")
        rows, cols = (max(m.values.shape[axis] for m in several) for axis in (2, 3))
        values: list[Tensor] = []
        known: list[Geometry] = []
        pictures: list[NamedPicture] = []
        for m in several:
            grid = m.values.shape[2], m.values.shape[3]
            values.append(F.pad(m.values, (0, cols - grid[1], 0, rows - grid[0]), value=torch.nan))
            known += [_cut(g, grid, (rows, cols)) for g in m.geometries or ()]
            pictures += m.pictures or ()
        whole = torch.cat(values)
        return replace(
            several[0],
            values=whole,
            geometries=tuple(known) if len(known) == len(whole) else None,
            pictures=tuple(pictures) if len(pictures) == len(whole) else None,
        )

    def in_order(self, places: Sequence[int]) -> "Maps":
        """Sort images by the numbers that they were handed in by."""
        if list(places) == sorted(places):
            return self
        order = sorted(range(len(places)), key=places.__getitem__)
        known, pictures = (
            None if one is None else tuple(one[i] for i in order) for one in (self.geometries, self.pictures)
        )
        return replace(self, values=self.values[order], geometries=known, pictures=pictures)  # pyright: ignore[reportArgumentType]

    def with_failed(self, failed: Sequence[Failed]) -> "Maps":
        """Return the same maps, with other notes of pictures that could not be used."""
        return self if self.run is None else replace(self, run=replace(self.run, failed=tuple(failed)))

    def peak(self, image: int, text: int) -> tuple[float, float]:
        """Find where one text is answered most: (x, y) in pixels of the original, the middle of the patch with the highest value."""
        at = within("image", image, len(self)), within("text", text, len(self.texts))
        values = self.values[at].nan_to_num(nan=-torch.inf)
        row, col = divmod(int(values.argmax()), values.shape[1])
        box = self._geometry(image).patch_box(row, col, self._grid)
        return (box.left + box.right) / 2, (box.top + box.bottom) / 2

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images."""
        known = self.pictures
        return tuple(f"image {i}" if known is None else known[i].name for i in range(len(self)))

    @property
    def short_names(self) -> tuple[str, ...]:
        """The same without folders; with as many of them as tell two pictures of one name apart."""
        parts = [(name.replace("\\", "/").rstrip("/") or name).split("/") for name in self.names]
        shown = [one[-1] for one in parts]
        for depth in range(2, max(map(len, parts), default=0) + 1):
            several = Counter(short for short, _ in {*zip(shown, self.names, strict=True)})
            if max(several.values()) == 1:
                break
            shown = [
                "/".join(one[-depth:]) if several[name] > 1 else name for one, name in zip(parts, shown, strict=True)
            ]
        return tuple(shown)

    def overlay(self, image: int = 0, text: int | str = 0) -> Any:
        """Draw one map over its picture, with its legend below: a Pillow image.

        Args:
            image: which picture.
            text: which text, by its place or its words.

        Raises:
            BadSpec: there is no such text.
            BadInput: the images were preprocessed tensors, which cannot be drawn.
        """
        selected = self[text] if isinstance(text, str) else self
        at = self.texts.index(selected.texts[0]) if isinstance(text, str) else within("text", text, len(self.texts))
        return self._drawn_by("overlaid", within("image", image, len(self)), at)

    def notes(self) -> list[str]:
        """Return the notes of the run, and name pictures smaller than one patch of the model: their maps say little about places."""
        if self.run is None:
            return []
        if self.geometries is None:
            return list(self.run.notes)
        row, col = self.run.clip.patch
        return [
            *self.run.notes,
            *(
                f"{name} is {where.picture[1]} × {where.picture[0]} pixels, less than one patch of the model ({col} × {row}): "
                "it was enlarged, and says little about places"
                for name, where in zip(self.names, self.geometries, strict=True)
                if where.picture[0] < row or where.picture[1] < col
            ),
        ]

    def place(self) -> dict[str, Any]:
        """Return name and size of the first image, and the rectangle of it that the model saw."""
        if self.geometries is None:
            return {"image": self.names[0]}
        where = self.geometries[0]
        visible = [round(edge, 3) for edge in where.visible]
        return {"image": self.names[0], "width": where.picture[1], "height": where.picture[0], "visible": visible}

    def to_dict(self) -> dict[str, Any]:
        """Return every map as plain numbers, per image."""
        images = [{**one.place(), "maps": one.numbers()} for one in (self[i] for i in range(len(self)))]
        return {"method": self.method, "subtracted": self.subtracted, "texts": list(self.texts), "images": images}

    def numbers(self) -> list[dict[str, Any]]:
        """Return the maps of the first image as plain numbers: one entry per text, with its range and its peak."""
        entries: list[dict[str, Any]] = []
        for k, (text, values) in enumerate(zip(self.texts, self.values[0], strict=True)):
            peak = None if self.geometries is None else [round(at, 2) for at in self.peak(0, k)]
            ends = {"lowest": _plain(float(values.min())), "highest": _plain(float(values.max())), "peak": peak}
            rows = [[_plain(v) for v in row] for row in values.tolist()]
            entries.append({"method": self.method, "text": text, "subtracted": self.subtracted, **ends, "values": rows})
        return entries

    def summary(self) -> str:
        """Return how many maps of which method there are, and the range of each text."""
        images, _, rows, cols = self.values.shape
        less = f"; subtracted: {self.subtracted}" if self.subtracted else ""
        lines = [f"{self.method}: maps of {images} image{'' if images == 1 else 's'}, {rows} × {cols} patches{less}"]
        for text, values in zip(self.texts, self.values.unbind(1), strict=True):
            known = values[~values.isnan()]
            lines.append(f"  {text!r}: {float(known.min()):+.4f} to {float(known.max()):+.4f}")
        return "\n".join(lines[:24])


def _plain(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _cut(where: Geometry, old: tuple[int, int], new: tuple[int, int]) -> Geometry:
    """Return the same place with cells added or taken away on the right and at the bottom."""
    size = where.size[0] * new[0] // old[0], where.size[1] * new[1] // old[1]
    return where if size == where.size else replace(where, size=size)


def _positions(where: Geometry, axis: int) -> Tensor:
    """Tell where the middles of the original's pixels lie in the model's input, along one axis."""
    middles = torch.arange(where.picture[axis], dtype=torch.float64) + 0.5
    return middles * where.resized[axis] / where.picture[axis] - where.offset[axis]


def _weights(where: Geometry, grid: tuple[int, int], cells: range, *, axis: int) -> Float[Tensor, "row col"]:
    """Share of every cell in every pixel, along one axis: a pixel lies between the middles of two cells."""
    at = _positions(where, axis) * grid[axis] / where.size[axis] - 0.5 - cells.start
    at = at.clamp(0, len(cells) - 1)
    return (1 - (at[:, None] - torch.arange(len(cells), dtype=torch.float64)).abs()).clamp_min(0)
