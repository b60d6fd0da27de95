"""Eight procedural backgrounds at any size, each a function of random lattices, muted so that objects stand out."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from clip_anatomy.data.world.attribute_names import BACKGROUNDS
from clip_anatomy.data.world.random_numbers import PictureRandom

Plane = Float[np.ndarray, "image row col"]
Rgb = Float[np.ndarray, "image row col 3"]
LATTICE = 24  # random numbers a picture has in each direction; textures read what they need of them


@lru_cache(maxsize=64)
def _stretch(cells: int, size: int) -> Float[np.ndarray, "row cell"]:
    """Return the matrix that interpolates `cells` lattice values smoothly over `size` pixels."""
    at = (np.arange(size) + 0.5) / size * (cells - 1)
    left = np.minimum(at.astype(int), cells - 2)
    part = at - left
    part = part * part * (3 - 2 * part)
    matrix = np.zeros((size, cells), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - part
    matrix[np.arange(size), left + 1] = part
    return matrix


def _noise(lattice: np.ndarray, rows: int, cols: int, size: int, skip: int = 0) -> Plane:
    """Return smooth noise in 0–1 with rows × cols cells, from a corner of each picture's lattice."""
    values = lattice[:, skip : skip + rows, skip : skip + cols]
    return np.matmul(_stretch(rows, size), np.matmul(values, _stretch(cols, size).T))


def _mix(low: tuple[float, float, float], high: tuple[float, float, float], amount: Plane) -> Rgb:
    """Blend two colours by 0–1."""
    low_, high_ = np.array(low, np.float32), np.array(high, np.float32)
    return low_ + np.clip(amount, 0, 1)[..., None] * (high_ - low_)


def _over(under: Rgb, colour: tuple[float, float, float], amount: Plane) -> Rgb:
    """Paint a colour over a picture with 0–1 opacity."""
    return under + np.clip(amount, 0, 1)[..., None] * (np.array(colour, np.float32) - under)


def _axes(size: int) -> tuple[Float[np.ndarray, "1 1 col"], Float[np.ndarray, "1 row 1"]]:
    at = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return at[None, None, :], at[None, :, None]


def _sky(lattice: np.ndarray, size: int) -> Rgb:
    _, y = _axes(size)
    clouds = 0.65 * _noise(lattice, 7, 5, size) + 0.35 * _noise(lattice, 14, 10, size, 8)
    base = _mix((0.42, 0.68, 0.93), (0.74, 0.88, 0.98), y + 0 * clouds)
    return _over(base, (0.97, 0.98, 1.0), (clouds - 0.53) * 5)


def _water(lattice: np.ndarray, size: int) -> Rgb:
    _, y = _axes(size)
    bend = _noise(lattice, 6, 6, size)
    waves = np.sin(2 * np.pi * (8.5 * y + 1.6 * bend + lattice[:, -1:, -1:]))
    return _over(
        _mix((0.02, 0.28, 0.42), (0.08, 0.46, 0.56), 1 - y + 0 * bend), (0.50, 0.80, 0.82), (waves - 0.35) * 0.9
    )


def _night(lattice: np.ndarray, size: int) -> Rgb:
    x, y = _axes(size)
    base = _mix((0.04, 0.04, 0.13), (0.15, 0.12, 0.30), 0.8 * y + 0.4 * (_noise(lattice, 4, 4, size) - 0.5))
    # One faint dot in some cells of a 9 × 9 grid: far smaller than any object.
    cell_x, cell_y = np.floor(x[0] * 9).astype(int), np.floor(y[0] * 9).astype(int)
    at = lattice[:, cell_y, cell_x]
    off_x, off_y = lattice[:, cell_y + 9, cell_x], lattice[:, cell_y, cell_x + 9]
    away = np.hypot(x * 9 - cell_x - 0.2 - 0.6 * off_x, y * 9 - cell_y - 0.2 - 0.6 * off_y)
    return _over(base, (0.85, 0.85, 0.95), np.where(at > 0.62, 1.25 - away * 9, 0) * 0.75)


def _grass(lattice: np.ndarray, size: int) -> Rgb:
    x, y = _axes(size)
    blades = np.sin(2 * np.pi * (15 * x + 1.8 * _noise(lattice, 7, 12, size)))
    patches = _noise(lattice, 5, 5, size, 12)
    base = _mix((0.20, 0.42, 0.13), (0.45, 0.62, 0.24), 0.35 * y + 0.65 * patches)
    return _over(base, (0.11, 0.29, 0.08), blades * 0.5 * (0.4 + y))


def _sand(lattice: np.ndarray, size: int) -> Rgb:
    x, y = _axes(size)
    dunes = np.sin(2 * np.pi * (2.5 * y + 1.0 * x + 1.2 * _noise(lattice, 4, 4, size)))
    base = _mix((0.78, 0.66, 0.44), (0.90, 0.80, 0.58), 0.5 + 0.5 * dunes)
    return _over(base, (0.60, 0.48, 0.30), (_noise(lattice, 24, 24, size) - 0.68) * 2.2)


def _brick(lattice: np.ndarray, size: int) -> Rgb:
    x, y = _axes(size)
    course = np.floor(y * 8 + lattice[:, :1, :1]).astype(int)
    along = x * 4 + 0.5 * (course % 2) + lattice[:, 1:2, :1]
    tint = np.take_along_axis(
        lattice.reshape(len(lattice), 1, -1),
        (course * 13 + np.floor(along).astype(int)).reshape(len(lattice), 1, -1),
        2,
    ).reshape(along.shape)
    base = _mix((0.44, 0.20, 0.15), (0.62, 0.33, 0.25), tint)
    in_y, in_x = np.mod(y * 8 + lattice[:, :1, :1], 1), np.mod(along, 1)
    edge = np.minimum(np.minimum(in_y, 1 - in_y) / 8, np.minimum(in_x, 1 - in_x) / 4)
    return _over(base, (0.76, 0.71, 0.66), 0.5 + (0.0105 - edge) * 64)


def _snow(lattice: np.ndarray, size: int) -> Rgb:
    _, y = _axes(size)
    drifts = np.sin(2 * np.pi * (1.7 * y + 1.3 * _noise(lattice, 4, 3, size)))
    base = _mix((0.80, 0.86, 0.94), (0.95, 0.96, 0.98), 0.55 + 0.5 * drifts)
    return _over(base, (0.66, 0.75, 0.88), (_noise(lattice, 9, 9, size, 12) - 0.72) * 2.5)


def _wood(lattice: np.ndarray, size: int) -> Rgb:
    x, _ = _axes(size)
    grain = np.sin(2 * np.pi * (3 * x + 4.5 * _noise(lattice, 3, 10, size)))
    at = x * 4 + lattice[:, :1, :1]
    plank = np.floor(at).astype(int)
    tint = np.take_along_axis(lattice[:, 2, :], plank[:, 0, :], 1)[:, None, :]
    base = _over(_mix((0.42, 0.27, 0.15), (0.58, 0.40, 0.24), tint + 0 * grain), (0.30, 0.18, 0.09), grain * 0.45)
    gap = np.mod(at, 1)
    return _over(base, (0.14, 0.08, 0.04), 0.5 + (0.012 - np.minimum(gap, 1 - gap) / 4) * 64 + 0 * grain)


PAINTERS: dict[str, Callable[[np.ndarray, int], Rgb]] = {
    "sky": _sky,
    "water": _water,
    "night": _night,
    "grass": _grass,
    "sand": _sand,
    "brick": _brick,
    "snow": _snow,
    "wood": _wood,
}


def paint(codes: np.ndarray, dice: PictureRandom, size: int) -> Rgb:
    """Paint the backgrounds of a batch.

    Args:
        codes: codes into BACKGROUNDS, [image].
        dice: the pictures' random numbers.
        size: rows and columns.

    Returns:
        sRGB in 0–1.
    """
    lattice = dice(LATTICE, LATTICE)
    brightness = (0.93 + 0.14 * dice())[:, None, None, None]
    canvas = np.empty((len(codes), size, size, 3), dtype=np.float32)
    for code, name in enumerate(BACKGROUNDS):
        rows = np.flatnonzero(codes == code)
        if len(rows):
            canvas[rows] = PAINTERS[name](lattice[rows], size)
    return np.clip(canvas * brightness, 0, 1)
