"""Sliding windows: a large picture is looked at piece by piece, and maps are averaged where pieces overlap.

picture in patches   ┌───────────┐ a window sees what the model was trained to see: a picture of its own size
                     │ ┌───┐     │ windows begin every `stride`, and the last ones are moved back into the picture
                     └─┴───┴─────┘ so that every patch is looked at
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.argument_kinds import OWN_CHECK
from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid, window_starts

WindowSize = Annotated[int | tuple[int, int] | None, OWN_CHECK]
"""Pixels of a side, or (row, col)."""


@dataclass(frozen=True)
class Windows:
    """Hold how windows lie, (row, col) in patches.

    Attributes:
        window: patches of a window.
        stride: patches from one window to the next.
    """

    window: tuple[int, int]
    stride: tuple[int, int]

    @staticmethod
    def of(window: int | tuple[int, int], stride: int | tuple[int, int] | None, patch: tuple[int, int]) -> "Windows":
        """Count windows in patches from their pixels.

        Args:
            window: pixels of a window's side, or (row, col).
            stride: pixels from one to the next; None for half a window.
            patch: (row, col) pixels of a patch.

        Raises:
            BadSpec: no whole patches, or gaps between windows; says what fits.

        Example:
            >>> Windows.of(224, 112, (16, 16))
            Windows(window=(14, 14), stride=(7, 7))
        """
        sides = _whole("window", window, patch)
        if stride is None:
            return Windows(sides, (max(1, sides[0] // 2), max(1, sides[1] // 2)))
        steps = _whole("stride", stride, patch)
        if steps[0] > sides[0] or steps[1] > sides[1]:
            raise BadSpec(
                f"windows of {window} pixels {stride} apart leave gaps. Type: stride={sides[0] // 2 * patch[0]}"
            )
        return Windows(sides, steps)

    def places(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
        """List where windows begin, (row, col) in patches.

        Example:
            >>> Windows((4, 4), (3, 3)).places((4, 8))
            [(0, 0), (0, 3), (0, 4)]
        """
        rows, cols = (window_starts(*each) for each in zip(grid, self.window, self.stride, strict=True))
        return [(row, col) for row in rows for col in cols]


def slid(
    pixels: Float[Tensor, "image 3 row col"],
    windows: Windows,
    patch: tuple[int, int],
    draw: Callable[[Tensor, list[int]], Tensor],
    batch: int,
) -> Float[Tensor, "image text _row _col"]:
    """Average maps of windows into maps of whole pictures.

    Args:
        pixels: preprocessed, in whole patches.
        windows: how they lie; one that is larger than the picture is cut to it.
        patch: (row, col) pixels of a patch.
        draw: (pixels of windows [image, 3, row, col], which image each is of) → their maps [image, text, row, col].
        batch: windows at a time.

    Returns:
        Maps at patch resolution, the mean over the windows that a patch lies in.
    """
    grid = patch_grid(pixels.shape, patch)
    side = min(windows.window[0], grid[0]), min(windows.window[1], grid[1])
    jobs = [(image, row, col) for image in range(len(pixels)) for row, col in windows.places(grid)]
    total: Tensor | None = None
    coverage = torch.zeros(grid, device=pixels.device)
    for row, col in windows.places(grid):
        coverage[row : row + side[0], col : col + side[1]] += 1
    for first in range(0, len(jobs), batch):
        some = jobs[first : first + batch]
        pieces = [
            pixels[i, :, row * patch[0] : (row + side[0]) * patch[0], col * patch[1] : (col + side[1]) * patch[1]]
            for i, row, col in some
        ]
        maps = draw(torch.stack(pieces), [i for i, _, _ in some])
        if total is None:
            total = maps.new_zeros(len(pixels), maps.shape[1], *grid)
        for (image, row, col), values in zip(some, maps, strict=True):
            total[image, :, row : row + side[0], col : col + side[1]] += values
    assert total is not None
    return total / coverage


def _whole(name: str, pixels: int | tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    try:
        sides = tuple(index(side) for side in (pixels if isinstance(pixels, tuple | list) else (pixels, pixels)))
    except TypeError as error:
        raise BadSpec(f"{name}={pixels!r}: pixels were expected. Type: {name}={14 * patch[0]}") from error
    if len(sides) != 2 or any(side < 1 or side % each for side, each in zip(sides, patch, strict=True)):
        fits = [
            max(1, round(side / each)) * each for side, each in zip((*sides, *sides)[:2] or patch, patch, strict=True)
        ]
        fitting = fits[0] if isinstance(pixels, int) and fits[0] == fits[1] else tuple(fits)
        raise BadSpec(
            f"{name}={pixels!r} is no whole number of patches of {patch[0]} × {patch[1]} pixels. Type: {name}={fitting}"
        )
    return patch_grid(sides, patch)
