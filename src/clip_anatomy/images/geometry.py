"""Where the pixels and patches that a model sees lie in the original picture, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle in pixels of the original picture; pixel i covers i to i + 1, so edges may be fractions."""

    top: float
    left: float
    bottom: float
    right: float


def patch_grid(shape: Sequence[int], patch: tuple[int, int]) -> tuple[int, int]:
    """Count the patches of pictures that a model takes: (rows, columns) of every map of them.

    Args:
        shape: of the preprocessed pictures, or their size; its last two numbers are rows and columns of pixels.
        patch: pixels of one patch, (row, col), as `clip.patch`.

    Example:
        >>> patch_grid((1, 3, 224, 320), (32, 32))
        (7, 10)
    """
    return shape[-2] // patch[0], shape[-1] // patch[1]


def pixels_of_grid(grid: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Count the pixels of a grid of whole patches: (rows, columns), the inverse of `patch_grid`.

    Example:
        >>> pixels_of_grid((7, 10), (32, 32))
        (224, 320)
    """
    return grid[0] * patch[0], grid[1] * patch[1]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """List where windows begin along one side; the last one is moved back into the picture.

    Args:
        length: of the side.
        window: length of a window.
        stride: from one to the next.

    Example:
        >>> [window_starts(length, 224, 112) for length in (336, 448, 350, 100)]
        [[0, 112], [0, 112, 224], [0, 112, 126], [0]]
    """
    last = max(0, length - window)
    return [*range(0, last, stride), last]


@dataclass(frozen=True)
class Geometry:
    """How one picture was scaled and cropped (or padded) into a model's input.

    Positions are continuous: (0, 0) is the picture's upper left corner, (0.5, 0.5) the middle of its first pixel.
    All pairs are (row, col).

    Attributes:
        picture: size of the original in pixels, upright as `read_image` returns it.
        resized: its size after scaling.
        offset: first row and column of the scaled picture that the model sees; negative where it is padded.
        size: the model's input in pixels.

    Example:
        >>> result = Geometry(picture=(200, 300), resized=(224, 336), offset=(0, 56), size=(224, 224))
        >>> result.box  # the middle of a wide picture
        Box(top=0.0, left=50.0, bottom=200.0, right=250.0)
        >>> result.patch_at(0, 249, grid=(7, 7)), result.patch_at(0, 10, grid=(7, 7))
        ((0, 6), None)
    """

    picture: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Model pixels per original pixel."""
        return self.resized[0] / self.picture[0], self.resized[1] / self.picture[1]

    @property
    def box(self) -> Box:
        """The part of the original that the model sees."""
        return self.patch_box(0, 0, grid=(1, 1))

    @property
    def visible(self) -> Box:
        """The rectangle of the original that the model's input covers; beyond the picture's edges where it is padded."""
        return Box(*self.to_picture(0, 0), *self.to_picture(*self.size))

    def to_model(self, row: int | float, col: int | float) -> tuple[float, float]:
        """Position in the original → position in the model's input (outside 0..size where cropped away)."""
        return (
            row * self.resized[0] / self.picture[0] - self.offset[0],
            col * self.resized[1] / self.picture[1] - self.offset[1],
        )

    def to_picture(self, row: int | float, col: int | float) -> tuple[float, float]:
        """Position in the model's input → position in the original (outside the picture in the padding)."""
        return (
            (row + self.offset[0]) * self.picture[0] / self.resized[0],
            (col + self.offset[1]) * self.picture[1] / self.resized[1],
        )

    def patch_at(self, row: int, col: int, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Return the patch in which the middle of an original pixel lies.

        Args:
            row: of the pixel, counted from 0.
            col: of the pixel, counted from 0.
            grid: patches of the map, (row, col).

        Returns:
            (row, col) of the patch, or None for a pixel that was cropped away.
        """
        at = self.to_model(row + 0.5, col + 0.5)
        if not (0 <= at[0] < self.size[0] and 0 <= at[1] < self.size[1]):
            return None
        # Rounding may carry the last pixel's middle onto the edge itself.
        patch = int(at[0] * grid[0] / self.size[0]), int(at[1] * grid[1] / self.size[1])
        return min(patch[0], grid[0] - 1), min(patch[1], grid[1] - 1)

    def patch_box(self, row: int, col: int, grid: tuple[int, int]) -> Box:
        """Return the rectangle of the original that one patch covers, cut at the picture's edge (no area in the padding)."""
        cell = self.size[0] / grid[0], self.size[1] / grid[1]
        top, left = self.to_picture(row * cell[0], col * cell[1])
        bottom, right = self.to_picture((row + 1) * cell[0], (col + 1) * cell[1])
        rows, cols = self.picture
        return Box(_within(top, rows), _within(left, cols), _within(bottom, rows), _within(right, cols))

    def patches_in(self, box: Box, grid: tuple[int, int]) -> tuple[range, range]:
        """Return the patches that a rectangle of the original touches.

        Returns:
            Rows and columns of the map; empty ranges where all of the rectangle was cropped away.
        """
        first, last = self.to_model(box.top, box.left), self.to_model(box.bottom, box.right)
        spans = [(a * n / size, b * n / size) for a, b, n, size in zip(first, last, grid, self.size, strict=True)]
        # Rounding error of an edge that lies on a patch's edge must not add the neighbour.
        return (
            range(max(0, floor(spans[0][0] + 1e-9)), max(0, min(grid[0], ceil(spans[0][1] - 1e-9)))),
            range(max(0, floor(spans[1][0] + 1e-9)), max(0, min(grid[1], ceil(spans[1][1] - 1e-9)))),
        )


def _within(value: float, last: int) -> float:
    return min(max(value, 0.0), float(last))
