"""Twelve outlines as signed distances: negative inside, zero on the outline, in units of the object's radius.

Distances are exact or close to it near the outline, which is all that anti-aliasing and thin borders need.
Coordinates: x right, y down, the object fills about the unit disc.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from clip_anatomy.data.world.attribute_names import SHAPES

Plane = Float[np.ndarray, "image row col"]
PerImage = Float[np.ndarray, "image 1 1"]
Sdf = Callable[[Plane, Plane, PerImage], Plane]


def box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Return the distance to an upright rectangle around the origin."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[object, object]]) -> np.ndarray:
    """Return the distance to a convex polygon whose corners (numbers or [image, 1, 1]) run clockwise on screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = np.asarray(x1) - np.asarray(x0), np.asarray(y1) - np.asarray(y0)
        length = np.sqrt(dx * dx + dy * dy) + 1e-9
        sides.append((dy * (x - x0) - dx * (y - y0)) / length)
    return np.maximum.reduce(sides)


def segment(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Return the distance to a line segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - start[0] - along * dx, y - start[1] - along * dy)


def _swimmer(x: Plane, y: Plane, likeness: PerImage) -> Plane:
    """Bird (0) to fish (1): the wing sinks to a fin, the tail opens, the beak goes."""
    t = likeness
    body = (np.sqrt(((x - 0.05) / 0.66) ** 2 + ((y - 0.18) / (0.42 + 0.08 * t)) ** 2) - 1) * 0.48
    spread = 0.14 + 0.46 * t
    tail = polygon(x, y, [(-0.35, 0.18), (-1.0, 0.18 + spread), (-1.0, 0.18 - spread)])
    wing = polygon(x, y, [(-0.45, 0.1), (-0.30, -1.02 + 0.74 * t), (0.48, 0.1)])
    beak = polygon(x, y, [(0.55, -0.02), (1.08 - 0.45 * t, 0.16), (0.55, 0.34)])
    return np.minimum(np.minimum(body, tail), np.minimum(wing, beak))


def _fivefold(x: Plane, y: Plane, likeness: PerImage) -> Plane:
    """Star (0) to flower (1): pointed rays swell into round petals."""
    radius = np.hypot(x, y)
    phase = np.abs(np.mod(np.arctan2(x, -y) * (5 / (2 * np.pi)) + 0.5, 1) - 0.5) * 2  # 0 at a tip, 1 in a valley
    star = 0.42 + 0.63 * (1 - phase) ** 1.4
    flower = 0.58 + 0.42 * np.sqrt(np.maximum(1 - phase * phase, 0))
    return (radius - (star + likeness * (flower - star))) * 0.75


def _circle(x: Plane, y: Plane, _: PerImage) -> Plane:
    return np.hypot(x, y) - 0.95


def _square(x: Plane, y: Plane, _: PerImage) -> Plane:
    return box(x, y, 0.82, 0.82)


def _triangle(x: Plane, y: Plane, _: PerImage) -> Plane:
    return polygon(x, y, [(0.0, -1.0), (1.0, 0.75), (-1.0, 0.75)])


def _cross(x: Plane, y: Plane, _: PerImage) -> Plane:
    return np.minimum(box(x, y, 0.98, 0.29), box(x, y, 0.29, 0.98))


def _heart(x: Plane, y: Plane, _: PerImage) -> Plane:
    x = np.abs(x)
    lobe = np.hypot(x - 0.47, y + 0.38) - 0.52
    point = np.maximum((x * 0.75 + (y - 0.98) * 0.66), -(y + 0.38))
    return np.minimum(lobe, np.maximum(point, x * 0.0 - 1.0))


def _moon(x: Plane, y: Plane, _: PerImage) -> Plane:
    return np.maximum(np.hypot(x + 0.05, y) - 0.98, 0.78 - np.hypot(x - 0.48, y))


def _ring(x: Plane, y: Plane, _: PerImage) -> Plane:
    return np.abs(np.hypot(x, y) - 0.70) - 0.29


def _arrow(x: Plane, y: Plane, _: PerImage) -> Plane:
    head = polygon(x, y, [(0.0, -0.85), (1.02, 0.0), (0.0, 0.85)])
    return np.minimum(head, box(x + 0.5, y, 0.52, 0.32))


OUTLINES: dict[str, Sdf] = {
    "bird": _swimmer,
    "fish": _swimmer,
    "star": _fivefold,
    "flower": _fivefold,
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "arrow": _arrow,
}


# How far from its centre a shape draws: radius × the first number + rim × the second, since rims run out to a point at sharp
# corners. For the tilts and the likenesses of the world, and rims of up to a third of the radius (a test measures it).
REACH: dict[str, tuple[float, float]] = {
    "bird": (1.17, 2.9),
    "fish": (1.17, 2.9),
    "star": (1.06, 1.34),
    "flower": (1.06, 1.34),
    "circle": (0.96, 1.0),
    "square": (1.0, 1.24),
    "triangle": (1.16, 1.92),
    "cross": (1.03, 1.22),
    "heart": (1.26, 2.4),
    "moon": (1.03, 1.0),
    "ring": (1.0, 1.0),
    "arrow": (1.07, 1.6),
}


def outline(shape: int, x: Plane, y: Plane, likeness: PerImage) -> Plane:
    """Return the signed distance of one shape at the points (x, y), in radii.

    Args:
        shape: code into SHAPES.
        x: coordinates to the right, in radii.
        y: coordinates downwards, in radii.
        likeness: 0–1, read by the tied shapes only.
    """
    return OUTLINES[SHAPES[shape]](x, y, likeness)


# The four printed digits as strokes in a box of −1…1.
DIGITS: dict[int, list[tuple[tuple[float, float], tuple[float, float]]]] = {
    1: [((0.1, -1.0), (0.1, 1.0)), ((0.1, -1.0), (-0.5, -0.5))],
    2: [
        ((-0.6, -0.9), (0.5, -0.9)),
        ((0.5, -0.9), (0.5, -0.1)),
        ((0.5, -0.1), (-0.6, 0.9)),
        ((-0.6, 0.9), (0.65, 0.9)),
    ],
    3: [
        ((-0.6, -0.9), (0.55, -0.9)),
        ((-0.2, 0.0), (0.55, 0.0)),
        ((-0.6, 0.9), (0.55, 0.9)),
        ((0.55, -0.9), (0.55, 0.9)),
    ],
    4: [((0.35, -1.0), (0.35, 1.0)), ((-0.65, -1.0), (-0.65, 0.15)), ((-0.65, 0.15), (0.7, 0.15))],
}


def digit_strokes(digit: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a digit's strokes (unsigned)."""
    return np.minimum.reduce([segment(x, y, start, end) for start, end in DIGITS[digit]])
