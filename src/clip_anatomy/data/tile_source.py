"""A picture that is read a rectangle at a time: `source[top:bottom, left:right]` → pixels [row, col, 3].

numpy's memory maps and zarr arrays are such sources as they are; geo-TIFF and slides are opened here (extra `slides`), one level of their
pyramid each; an adapter over OpenSlide or rasterio is a few lines (docs/maps.md).
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clip_anatomy.errors import BadImage, MissingExtra, reading
from clip_anatomy.files import path_of
from clip_anatomy.images.decode import read_image

__all__ = ["Slide", "TileSource", "open_slide"]

TIFFS = (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".btf", ".tf8", ".qptiff", ".gtiff")
PIXEL_SCALE, TIE_POINT, TRANSFORMATION = "ModelPixelScale", "ModelTiepoint", "ModelTransformation"


@runtime_checkable
class TileSource(Protocol):
    """Pixels [row, col, 3], 8 bits a channel, read a rectangle at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols, 3)."""
        ...

    def __getitem__(self, place: tuple[slice, slice]) -> Any:
        """Return the pixels of a rectangle."""
        ...


@dataclass(frozen=True, repr=False)
class Slide:
    """One level of a file's pyramid as a `TileSource`.

    Attributes:
        pixels: an array of any order of axes.
        axes: "YXS", "SYX" or "YX", as the file has them.
        name: of the file.
        level: of its pyramid, 0 the finest.
        transform: (a, b, c, d, e, f): pixel (x, y) of this level lies at (a·x + b·y + c, d·x + e·y + f) in the file's coordinates; None
            where it says nothing of them.
    """

    pixels: Any
    axes: str
    name: str
    level: int = 0
    transform: tuple[float, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols, channels)."""
        sides = self.pixels.shape
        return (*sides[:2], 3) if self.axes == "YX" else (*sides[1:], sides[0]) if self.axes == "SYX" else tuple(sides)

    def __getitem__(self, place: tuple[slice, slice]) -> Any:
        """Return the pixels of a rectangle: grey as three equal channels."""
        if self.axes == "SYX":
            return np.moveaxis(np.asarray(self.pixels[(slice(None), *place)]), 0, -1)
        levels = np.asarray(self.pixels[place])
        return np.repeat(levels[..., None], 3, axis=-1) if self.axes == "YX" else levels

    def place(self, x: int | float, y: int | float) -> tuple[float, float] | None:
        """Return where a pixel lies in the file's coordinates.

        Example:
            >>> Slide(np.zeros((4, 4, 3), np.uint8), "YXS", "a.tif", 0, (2.0, 0.0, 100.0, 0.0, -2.0, 50.0)).place(3, 1)
            (106.0, 48.0)
        """
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f


def open_slide(file: str | Path, level: int = 0) -> Slide:
    """Open a large picture without reading it.

    Args:
        file: TIFF of any kind that tifffile reads (geo-TIFF, whole slides), `.npy`, a zarr folder; any other picture is decoded whole.
        level: of its pyramid, 0 the finest.

    Raises:
        BadImage: it cannot be read, has no such level, or is no picture of three channels or of grey.
        MissingExtra: tifffile or zarr is not installed.
    """
    path = path_of(file)
    if not path.exists():
        raise BadImage(f"there is no file {path}. Type the path of a picture: slide.tif")
    with reading(path, "Type a whole copy, or save it as TIFF in tiles", BadImage):
        if path.suffix.lower() in TIFFS:
            return _tiff(path, level)
        if path.is_dir():
            return _zarr(path, level)
        if level:
            raise BadImage(f"{path.name} has level 0 alone, and no level {level}. Type 0")
        pixels = np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.asarray(read_image(path))
        return Slide(pixels, _axes(pixels.shape, path), path.name)


def _tiff(path: Path, level: int) -> Slide:
    tifffile, zarr = _libraries()
    with tifffile.TiffFile(path) as opened:
        levels = opened.series[0].levels
        if not 0 <= level < len(levels):
            raise BadImage(f"{path.name} has levels 0 to {len(levels) - 1}, and no level {level}. Type one of them")
        axes = levels[level].axes
        tags = getattr(opened.pages[0], "geotiff_tags", None) or {}
        full, here = levels[0].shape[axes.index("X")], levels[level].shape[axes.index("X")]
    if axes not in ("YXS", "SYX", "YX"):
        raise BadImage(
            f"{path.name} has axes {axes}. Type one picture of rows, columns and channels: save a page of it"
        )
    store = tifffile.imread(path, aszarr=True, series=0, level=level)
    slide = Slide(zarr.open(store, mode="r"), axes, path.name, level, _transform(tags, full / here))
    weakref.finalize(slide, store.close)
    return slide


def _zarr(path: Path, level: int) -> Slide:
    _, zarr = _libraries()
    opened = zarr.open(str(path), mode="r")
    if level and hasattr(opened, "shape"):
        raise BadImage(f"{path.name} has level 0 alone, and no level {level}. Type 0")
    pixels = opened if hasattr(opened, "shape") else opened[str(level)]
    return Slide(pixels, _axes(pixels.shape, path), path.name, level)


def _axes(shape: Sequence[int], path: Path) -> str:
    if len(shape) == 2:
        return "YX"
    if (len(shape) == 3 and 3 in (shape[0], shape[2])) or (len(shape) == 3 and shape[2] == 4):
        return "YXS" if shape[2] in (3, 4) else "SYX"
    raise BadImage(f"{path.name} is {list(shape)}: [row, col, 3] was expected. Type one picture of it: array[0]")


def _transform(tags: dict[str, Any], step: float) -> tuple[float, ...] | None:
    """Read where pixels lie (GeoTIFF 1.1, §7.1.2.4): a matrix, or a scale and one pixel whose place is known.

    Args:
        tags: of the finest level.
        step: its pixels in one of this level.
    """
    if TRANSFORMATION in tags:
        rows = np.reshape(tags[TRANSFORMATION], (4, 4))
        a, b, c, d, e, f = (*rows[0][[0, 1, 3]], *rows[1][[0, 1, 3]])
    elif PIXEL_SCALE in tags and TIE_POINT in tags:
        (wide, high), (i, j, _, x, y, _) = tags[PIXEL_SCALE][:2], tags[TIE_POINT][:6]
        a, b, c, d, e, f = wide, 0.0, x - i * wide, 0.0, -high, y + j * high
    else:
        return None
    return float(a * step), float(b * step), float(c), float(d * step), float(e * step), float(f)


def _libraries() -> tuple[Any, Any]:
    try:
        import tifffile
        import zarr
    except ImportError as error:
        raise MissingExtra("tifffile or zarr (large TIFF files)", "slides") from error
    return tifffile, zarr
