"""`tiled_maps`: maps of a picture that fits into no memory, tile by tile, blended where tiles overlap, kept on disk.

    source[top:bottom, left:right] ─▶ tiles ─▶ heatmap ─▶ weighed by a pyramid ─▶ a band of rows ─▶ maps.npy, as soon as they are final

What is held is one row of tiles and one band of maps, however tall the picture is. A source is anything that gives pixels for two
slices: a memory-mapped array, a zarr array (tifffile opens geo-TIFF and slides as one), an adapter of three lines over OpenSlide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clip_anatomy.errors import BadImage, BadSpec, reading
from clip_anatomy.files import mapped_array, written_whole
from clip_anatomy.images.geometry import window_starts
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.maps.automatic import AUTO
from clip_anatomy.maps.heatmap import BATCH, heatmap
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.windows import Windows
from clip_anatomy.number_ranges import whole
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact

__all__ = ["TileSource", "TiledMaps", "tiled_maps"]


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


@public
@dataclass(frozen=True, repr=False)
class TiledMaps(Compact):
    """Maps of one large picture, on disk.

    Attributes:
        values: at patch resolution, memory-mapped.
        texts: what each map is called.
        patch: (row, col) pixels of the picture that a value stands for: value [t, i, j] is of the pixels from (i · row, j · col) on.
        method: of `heatmap`.
        file: where they lie, for `numpy.load(file, mmap_mode="r")`.
    """

    values: Shaped[np.ndarray, "text row col"] = field(repr=False)
    texts: tuple[str, ...]
    patch: tuple[int, int]
    method: str
    file: Path

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


@public
def tiled_maps(
    clip: Clip | ModelSource,
    source: TileSource,
    texts: Sequence[str] | Tensor | Texts,
    file: str | Path,
    method: str = AUTO,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> TiledMaps:
    """Draw maps of a picture of any size in constant memory.

    Args:
        clip: an opened model, or what `load` opens.
        source: see `TileSource`; pixels that are no whole patch at the right and lower edge are left out.
        texts: as for `heatmap`.
        file: where the maps are written, a `.npy`.
        method: a name of METHODS.
        window: pixels of a tile's side, whole patches; the model's own size by default.
        stride: pixels from one tile to the next; half a tile by default.
        progress: told how many rows of tiles are done.
        **options: of the method.

    Returns:
        Maps on disk. Where tiles overlap they are averaged, each value weighed by how far it lies from its tile's edge.

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
    shape, patch = tuple(getattr(source, "shape", ())), clip.patch
    if len(shape) != 3 or shape[2] < 3 or min(shape[0] // patch[0], shape[1] // patch[1]) < 1:
        raise BadImage(
            f"pixels of {list(shape)}: [row, col, 3] of a patch or more were expected. Type: source[..., :3]"
        )
    side = window or max(clip.preprocess.size)
    windows = Windows.of(side, stride, patch)
    grid = shape[0] // patch[0], shape[1] // patch[1]
    tile = min(windows.window[0], grid[0]), min(windows.window[1], grid[1])
    wanted, path = Texts.of(clip, texts), Path(file)
    if path.suffix != ".npy":
        raise BadSpec(f"{path} is no .npy file. Type: file='maps.npy'")
    rows, cols = (window_starts(*each) for each in zip(grid, tile, windows.stride, strict=True))
    blend = _blend(tile)
    total, weight, name = torch.zeros(len(wanted), tile[0], grid[1]), torch.zeros(tile[0], grid[1]), method
    tell = progress or silent
    with written_whole(path) as temporary:
        on_disk = mapped_array(temporary, np.float32, (len(wanted), *grid))
        for number, row in enumerate(rows):
            tell("looking at rows of tiles", number, len(rows))
            for first in range(0, len(cols), BATCH):
                some = cols[first : first + BATCH]
                pixels = torch.stack([_tile(clip, source, (row, col), tile) for col in some])
                maps = heatmap(clip, clip.pixels(pixels), wanted, method, **options)
                name = maps.method
                for col, values in zip(some, maps.values.cpu(), strict=True):
                    total[:, :, col : col + tile[1]] += values * blend
                    weight[:, col : col + tile[1]] += blend
            after = rows[number + 1] if number + 1 < len(rows) else row + tile[0]
            done = after - row  # these rows lie in no later tile
            on_disk[:, row:after] = (total[:, :done] / weight[:done]).numpy()
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
            weight = torch.cat([weight[done:], torch.zeros_like(weight[:done])])
        on_disk.flush()
    return TiledMaps(np.load(path, mmap_mode="r"), wanted.names, patch, name, path)


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
