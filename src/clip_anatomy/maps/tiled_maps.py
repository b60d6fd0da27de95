"""`tiled_maps`: maps of a picture that fits into no memory, tile by tile, blended where tiles overlap, kept on disk.

    source[top:bottom, left:right] ─▶ tiles ─▶ heatmap ─▶ weighed by a pyramid ─▶ a band of rows ─▶ maps.npy, as soon as they are final

What is held is one row of tiles and one band of maps, however tall the picture is. A source is anything that gives pixels for two
slices: a memory-mapped array, a zarr array (tifffile opens geo-TIFF and slides as one), an adapter of three lines over OpenSlide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clip_anatomy.data.tile_source import Slide, TileSource, open_slide
from clip_anatomy.errors import BadImage, BadSpec, reading
from clip_anatomy.files import mapped_array, written_whole
from clip_anatomy.images.geometry import window_starts
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.maps.automatic import AUTO
from clip_anatomy.maps.heatmap import BATCH, heatmap
from clip_anatomy.maps.map_result import MapRun
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.windows import Windows
from clip_anatomy.number_ranges import whole
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["SCHEMA", "TiledMaps", "tiled_maps"]

SCHEMA = "clip-anatomy/tiles/1"
SAMPLE = 2**22  # numbers of maps from which a scale and a level are taken
BAND = 256  # rows of maps held at once where all are gone through


@public
@dataclass(frozen=True, repr=False)
class TiledMaps(Result):
    """Maps of one large picture, on disk.

    Attributes:
        values: at patch resolution, memory-mapped.
        texts: what each map is called.
        patch: (row, col) pixels of the picture that a value stands for: value [t, i, j] is of the pixels from (i · row, j · col) on.
        method: of `heatmap`.
        file: where they lie, for `numpy.load(file, mmap_mode="r")`.
        source: the picture, read again to be drawn.
        run: what the maps were made with.
        subtracted: what was subtracted from every text, in words.
    """

    values: Shaped[np.ndarray, "text row col"] = field(repr=False)
    texts: tuple[str, ...]
    patch: tuple[int, int]
    method: str
    file: Path
    source: TileSource
    run: MapRun
    subtracted: str = ""
    presenter: ClassVar[str] = "tiles_folder"

    @property
    def size(self) -> tuple[int, int]:
        """(rows, cols) of the pixels that the maps cover: whole patches."""
        return self.values.shape[1] * self.patch[0], self.values.shape[2] * self.patch[1]

    def level(self, number: int) -> Float[np.ndarray, "text row col"]:
        """Return a level of the image pyramid: 0 is the maps, each next one half as large, the mean of two by two."""
        maps, step = self.values, 2 ** whole("number", number, 0, 60)
        rows, cols = (max(1, side // step) for side in maps.shape[1:])
        reach = min(step, *maps.shape[1:])
        small = np.empty((len(maps), rows, cols), np.float32)
        for row in range(rows):  # a band at a time: the maps may be larger than memory
            band = np.asarray(maps[:, row * reach : (row + 1) * reach, : cols * reach], np.float32)
            small[:, row] = band.mean(1).reshape(len(maps), cols, reach).mean(2)
        return small

    def at(self, rows: slice, cols: slice, texts: slice = slice(None)) -> Float[Tensor, "_ row col"]:
        """Return the maps of some texts at a rectangle of pixels, bilinear between the middles of the patches."""
        places = [_between(span, of, cells) for span, of, cells in zip((rows, cols), self.patch, self.values.shape[1:], strict=True)]  # fmt: skip
        (top, bottom, down), (left, right, across) = places
        part = torch.from_numpy(np.array(self.values[texts, top:bottom, left:right]))
        return down @ part @ across.T

    def sample(self) -> Float[Tensor, "text row col"]:
        """Return maps at places spread evenly over the picture: what a scale of colours or a level is taken from."""
        step = int(np.ceil((self.values.size / SAMPLE) ** 0.5))
        return torch.from_numpy(np.array(self.values[:, ::step, ::step]))

    def to_dict(self) -> dict[str, Any]:
        """Return what the maps are of, and each text's lowest and highest value with its place; the numbers are in `file`."""
        maps = [self._ends(k) for k in range(len(self.texts))]
        slide = self.source if isinstance(self.source, Slide) else None
        return {
            "schema": SCHEMA,
            "model": self.run.model,
            "method": self.method,
            "subtracted": self.subtracted,
            "options": {**self.run.options},
            "image": "" if slide is None else slide.name,
            "level": 0 if slide is None else slide.level,
            "transform": None if slide is None or slide.transform is None else list(slide.transform),
            "height": self.source.shape[0],
            "width": self.source.shape[1],
            "patch": list(self.patch),
            "maps": maps,
        }

    def _ends(self, text: int) -> dict[str, Any]:
        """Return one text's lowest and highest value; of the highest the middle of its patch in pixels, and in coordinates if there are any."""
        low, high, place = np.inf, -np.inf, (0, 0)
        for first in range(0, self.values.shape[1], BAND):
            band = np.asarray(self.values[text, first : first + BAND])
            row, col = divmod(int(band.argmax()), band.shape[1])
            low = min(low, float(band.min()))
            if band[row, col] > high:
                high, place = float(band[row, col]), (first + row, col)
        x, y = (place[1] + 0.5) * self.patch[1], (place[0] + 0.5) * self.patch[0]
        world = self.source.place(x, y) if isinstance(self.source, Slide) else None
        ends = {"text": self.texts[text], "lowest": round(low, 6), "highest": round(high, 6), "peak": [x, y]}
        return ends if world is None else {**ends, "peak_in_coordinates": list(world)}

    def summary(self) -> str:
        """Return how large the picture is, and the range of each text."""
        lines = [f"{self.method}: maps of {self.size[1]:,} × {self.size[0]:,} pixels, {self.values.shape[1]:,} × {self.values.shape[2]:,} patches"]  # fmt: skip
        for one in (self._ends(k) for k in range(len(self.texts))):
            x, y = one["peak"]
            world = "({:.8g}, {:.8g})".format(*one["peak_in_coordinates"]) if "peak_in_coordinates" in one else ""
            lines.append(
                f"  {one['text']!r}: {one['lowest']:+.4f} to {one['highest']:+.4f}, highest at x {x:,.0f}, y {y:,.0f} {world}".rstrip()
            )
        return "\n".join(lines)


@public
def tiled_maps(
    clip: Clip | ModelSource,
    source: TileSource | str | Path,
    texts: Sequence[str] | Tensor | Texts,
    file: str | Path,
    method: str = AUTO,
    *,
    level: int = 0,
    window: int | None = None,
    stride: int | None = None,
    templates: Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> TiledMaps:
    """Draw maps of a picture of any size in constant memory.

    Args:
        clip: an opened model, or what `load` opens.
        source: a file (TIFF, whole slides, `.npy`, a zarr folder; see `open_slide`) or a `TileSource`; pixels that are no whole patch at the
            right and lower edge are left out.
        texts: as for `heatmap`.
        file: where the maps are written, a `.npy`.
        method: a name of METHODS.
        level: of a file's pyramid, 0 the finest: a coarser one shows more of the picture at once.
        window: pixels of a tile's side, whole patches; the model's own size by default.
        stride: pixels from one tile to the next; half a tile by default.
        templates: as for `heatmap`.
        progress: told how many rows of tiles are done.
        **options: of `heatmap` (against, registers, replace_sinks), and of the method.

    Returns:
        Maps on disk. Where tiles overlap they are averaged, each value weighed by how far it lies from its tile's edge. `save(folder)`
        draws them over the picture as image pyramids (Deep Zoom).

    Raises:
        BadImage: a source without pixels, of more than 8 bits a channel, or smaller than a patch.
        BadSpec: tiles that do not fit.

    Example:
        >>> import clip_anatomy as ca, numpy as np, tempfile
        >>> slide = np.zeros((200, 300, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tiled_maps("demo", slide, ["a bird"], f"{folder}/maps.npy").values.shape
        (1, 25, 37)
    """
    clip = as_clip(clip)
    pixels = open_slide(source, level) if isinstance(source, str | Path) else source
    grid, windows = _laid_out(clip, pixels, window, stride)
    tile = min(windows.window[0], grid[0]), min(windows.window[1], grid[1])
    wanted, path = Texts.of(clip, texts, templates), Path(file)
    if path.suffix != ".npy":
        raise BadSpec(f"{path} is no .npy file. Type: file='maps.npy'")
    rows, cols = (window_starts(*each) for each in zip(grid, tile, windows.stride, strict=True))
    blend = _blend(tile)
    total, weight, made = torch.zeros(len(wanted), tile[0], grid[1]), torch.zeros(tile[0], grid[1]), None
    tell = progress or silent
    with written_whole(path) as temporary:
        on_disk = mapped_array(temporary, np.float32, (len(wanted), *grid))
        for number, row in enumerate(rows):
            tell("looking at rows of tiles", number, len(rows))
            for first in range(0, len(cols), BATCH):
                some = cols[first : first + BATCH]
                tiles = torch.stack([_tile(clip, pixels, (row, col), tile) for col in some])
                made = heatmap(clip, clip.pixels(tiles), wanted, method, **options)
                for col, values in zip(some, made.values.cpu(), strict=True):
                    total[:, :, col : col + tile[1]] += values * blend
                    weight[:, col : col + tile[1]] += blend
            after = rows[number + 1] if number + 1 < len(rows) else row + tile[0]
            done = after - row  # these rows lie in no later tile
            on_disk[:, row:after] = (total[:, :done] / weight[:done]).numpy()
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
            weight = torch.cat([weight[done:], torch.zeros_like(weight[:done])])
        on_disk.flush()
    assert made is not None
    assert made.run is not None
    sides = {"window": windows.window[0] * clip.patch[0], "stride": windows.stride[0] * clip.patch[0]}
    run = replace(made.run, options={**sides, **made.run.options})
    return TiledMaps(
        np.load(path, mmap_mode="r"), wanted.names, clip.patch, made.method, path, pixels, run, made.subtracted
    )


def _laid_out(
    clip: Clip, source: TileSource, window: int | None, stride: int | None
) -> tuple[tuple[int, int], Windows]:
    """Return (row, col) patches of a picture, and how tiles lie in it."""
    shape, patch = tuple(getattr(source, "shape", ())), clip.patch
    if len(shape) != 3 or shape[2] < 3 or min(shape[0] // patch[0], shape[1] // patch[1]) < 1:
        raise BadImage(
            f"pixels of {list(shape)}: [row, col, 3] of a patch or more were expected. Type: source[..., :3]"
        )
    return (shape[0] // patch[0], shape[1] // patch[1]), Windows.of(window or max(clip.preprocess.size), stride, patch)


def _between(span: slice, of: int, cells: int) -> tuple[int, int, Float[Tensor, "pixel cell"]]:
    """Tell which cells some pixels lie between, along one axis, and the share of each cell in every pixel."""
    start, stop = span.start or 0, of * cells if span.stop is None else span.stop
    at = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) / of - 0.5).clamp(0, cells - 1)
    first, last = int(at[0]), min(int(at[-1]) + 2, cells)
    near = (at[:, None] - torch.arange(first, last, dtype=torch.float64)).abs()
    return first, last, (1 - near).clamp_min(0).float()


def _tile(clip: Clip, source: TileSource, place: tuple[int, int], tile: tuple[int, int]) -> Float[Tensor, "3 row col"]:
    spans = [slice(at * of, (at + count) * of) for at, count, of in zip(place, tile, clip.patch, strict=True)]
    where = " × ".join(f"{one.start}:{one.stop}" for one in spans)
    with reading(f"pixels {where} of the source", "Type a source that gives pixels for two slices", BadImage):
        levels = np.array(source[spans[0], spans[1]])[..., :3]
    if levels.shape != (*(one.stop - one.start for one in spans), 3):
        raise BadImage(
            f"pixels {where} of the source are {list(levels.shape)}. Type a source as large as its shape says"
        )
    if levels.dtype != np.uint8:
        raise BadImage(f"pixels of {levels.dtype}: 8 bits a channel were expected. Type: a source that gives uint8")
    return clip.preprocess.normalised(torch.from_numpy(levels).permute(2, 0, 1))


def _blend(tile: tuple[int, int]) -> Float[Tensor, "row col"]:
    """Weigh each place of a tile by its distance from the nearer edge, along rows and along columns."""
    sides = [torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).float() for n in tile]
    return sides[0][:, None] * sides[1][None]
