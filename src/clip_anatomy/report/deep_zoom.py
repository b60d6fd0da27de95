"""An image pyramid as Deep Zoom tiles: a `.dzi` file and a folder of JPEGs, which OpenSeadragon, QuPath, libvips and others read.

Level n has sides of ⌈side / 2^(top − n)⌉. A tile is made of the four below it, depth first: a few tiles are held at a time, however large
the picture is.
"""

from collections.abc import Callable
from itertools import count
from math import ceil, log2
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

__all__ = ["TILE", "Draw", "overview", "write_pyramid"]

TILE = 256
SCHEMA = "http://schemas.microsoft.com/deepzoom/2008"
Draw = Callable[[slice, slice], UInt8[ndarray, "row col 3"]]
"""Rows and columns of the picture → its pixels there."""


def write_pyramid(file: Path, size: tuple[int, int], draw: Draw, progress: Callable[[int], None] | None = None) -> None:
    """Write a pyramid.

    Args:
        file: `NAME.dzi`; tiles lie in `NAME_files/LEVEL/COL_ROW.jpg`.
        size: (rows, cols) of the finest level.
        draw: asked for each tile of the finest level once.
        told: how many of them are drawn.
    """
    top = ceil(log2(max(size)))
    folder = file.with_name(f"{file.stem}_files")
    for level in range(top + 1):
        (folder / str(level)).mkdir(parents=True)
    done = count(1)

    def tile(level: int, row: int, col: int) -> Image.Image | None:
        """Make one tile and all below it; None beyond the picture."""
        high, wide = (-(-side // 2 ** (top - level)) for side in size)
        if row * TILE >= high or col * TILE >= wide:
            return None
        if level == top:
            pixels = draw(
                slice(row * TILE, min((row + 1) * TILE, high)), slice(col * TILE, min((col + 1) * TILE, wide))
            )
            image = Image.fromarray(pixels)
            if progress is not None:
                progress(next(done))
        else:
            image = _halved([tile(level + 1, 2 * row + i, 2 * col + j) for i in (0, 1) for j in (0, 1)])
        image.save(folder / str(level) / f"{col}_{row}.jpg", quality=90)
        return image

    tile(0, 0, 0)
    about = f'<Image xmlns="{SCHEMA}" Format="jpg" Overlap="0" TileSize="{TILE}"><Size Height="{size[0]}" Width="{size[1]}"/></Image>\n'
    file.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{about}', encoding="utf-8")


def overview(file: Path, side: int = 1024) -> Image.Image:
    """Put the finest level whose longer side is at most `side` together again."""
    levels = sorted(file.with_name(f"{file.stem}_files").iterdir(), key=lambda folder: int(folder.name))
    chosen = levels[min(len(levels) - 1, int(log2(side)))]
    tiles = {tuple(map(int, path.stem.split("_"))): Image.open(path) for path in chosen.iterdir()}
    wide = sum(image.width for (_, row), image in tiles.items() if not row)
    whole = Image.new("RGB", (wide, sum(image.height for (col, _), image in tiles.items() if not col)))
    for (col, row), image in tiles.items():
        with image:
            whole.paste(image, (col * TILE, row * TILE))
    return whole


def _halved(four: list[Image.Image | None]) -> Image.Image:
    """Put four tiles together (upper left, upper right, lower left, lower right), and take the mean of two by two pixels."""
    first, right, below = four[0], four[1], four[2]
    assert first is not None
    wide, high = first.width + (right.width if right else 0), first.height + (below.height if below else 0)
    whole = Image.new("RGB", (wide, high))
    for at, one in enumerate(four):
        if one is not None:
            whole.paste(one, (first.width * (at % 2), first.height * (at // 2)))
    return whole.reduce(2) if max(wide, high) > 1 else whole
