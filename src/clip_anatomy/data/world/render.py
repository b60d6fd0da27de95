"""From facts to pixels: backgrounds, objects with outline and texture, the printed label, and each object's visible mask."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from clip_anatomy.data.world.attribute_names import PALETTE, SHAPES, TEXTURES
from clip_anatomy.data.world.attributes import LABEL, SceneAttributes
from clip_anatomy.data.world.backgrounds import paint
from clip_anatomy.data.world.random_numbers import PictureRandom
from clip_anatomy.data.world.shapes import REACH, box, digit_strokes, outline

HALO = 0.018  # light rim outside the outline, in picture widths
INK = 0.016  # dark line inside it
_DARK = np.array((0.08, 0.08, 0.12), np.float32)
_LIGHT = np.array((0.98, 0.98, 0.96), np.float32)


def render(
    facts: SceneAttributes, dice: PictureRandom, size: int
) -> tuple[UInt8[np.ndarray, "image row col 3"], Bool[np.ndarray, "image 4 row col"]]:
    """Draw the pictures of a batch.

    Args:
        facts: what is in each picture.
        dice: the pictures' random numbers, as `draw_attributes` left them.
        size: rows and columns.

    Returns:
        The pictures, and for each of up to four objects the pixels where it is seen (later objects hide earlier ones;
        the dark outline belongs to the object, the light rim does not).
    """
    pad = int(np.ceil(0.12 * size)) + 2
    canvas = np.zeros((len(facts), size + 2 * pad, size + 2 * pad, 3), dtype=np.float32)
    canvas[:, pad:-pad, pad:-pad] = paint(facts.background, dice, size)
    masks = np.zeros((len(facts), 4, size + 2 * pad, size + 2 * pad), dtype=bool)
    for slot in range(4):
        drawn = np.flatnonzero(facts.count > slot)
        kind = np.where(facts.mixed, min(slot, 1), 0)
        for shape in range(len(SHAPES)):
            of_shape = drawn[facts.shape[drawn, kind[drawn]] == shape]
            for rows in (of_shape[facts.size[of_shape] == 0], of_shape[facts.size[of_shape] == 1]):
                if len(rows):
                    _draw_objects(
                        canvas, masks, facts, rows, slot=slot, shape=shape, kind=kind[rows], size=size, pad=pad
                    )
    _draw_labels(canvas, facts.digit, facts.corner, pad)
    inner = slice(pad, -pad)
    return (canvas[:, inner, inner] * 255 + 0.5).astype(np.uint8), masks[:, :, inner, inner]


def _window(centre: np.ndarray, half: int, size: int, pad: int) -> tuple[np.ndarray, ...]:
    """Return row and column indices on the padded canvas and the coordinates there, around each centre."""
    corner = np.floor(centre * size).astype(np.int64) - half
    step = np.arange(2 * half + 1)
    cols, rows = corner[:, :1] + step, corner[:, 1:] + step
    x = ((cols + 0.5) / size - centre[:, :1]).astype(np.float32)
    y = ((rows + 0.5) / size - centre[:, 1:]).astype(np.float32)
    limit = size + 2 * pad - 1
    rows, cols = np.clip(rows + pad, 0, limit), np.clip(cols + pad, 0, limit)
    return rows[:, :, None], cols[:, None, :], x[:, None, :], y[:, :, None]


def _draw_objects(
    canvas: np.ndarray,
    masks: np.ndarray,
    facts: SceneAttributes,
    images: np.ndarray,
    *,
    slot: int,
    shape: int,
    kind: np.ndarray,
    size: int,
    pad: int,
) -> None:
    """Draw one object of one shape into each of some pictures."""
    radius = facts.radius[images, None, None]
    far, sharp = REACH[SHAPES[shape]]
    half = int(np.ceil((far * float(radius.max()) + sharp * (HALO + 0.5 / size)) * size)) + 1
    rows, cols, x, y = _window(facts.centre[images, slot], half, size, pad)
    angle = facts.angle[images, slot][:, None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    mirror = np.where(facts.flip[images, slot], -1.0, 1.0).astype(np.float32)[:, None, None]
    u, v = (cos * x + sin * y) * mirror, cos * y - sin * x
    distance = outline(shape, u / radius, v / radius, facts.likeness[images, None, None]) * radius

    tone = _texture(facts.texture[images, kind], x, y, size)
    colour = np.array(PALETTE, np.float32)[facts.colour[images, kind]][:, None, None]
    fill = colour * (1 - 0.68 * tone[..., None])
    body = np.clip(0.5 - (distance + INK) * size, 0, 1)[..., None]
    ink = np.clip(0.5 - distance * size, 0, 1)[..., None]
    rim = np.clip(0.5 - (distance - HALO) * size, 0, 1)[..., None] * 0.9
    at = images[:, None, None]
    under = canvas[at, rows, cols]
    under += rim * (_LIGHT - under)
    under += ink * (_DARK - under)
    under += body * (fill - under)
    canvas[at, rows, cols] = under
    covered = distance < 0
    for earlier in range(slot):
        masks[at, earlier, rows, cols] &= ~covered
    masks[at, slot, rows, cols] = covered


def _texture(codes: np.ndarray, x: np.ndarray, y: np.ndarray, size: int) -> Float[np.ndarray, "image row col"]:
    """Return how dark the second tone is at each point, 0–1.

    Textures are upright in the picture, however the object is turned; periods are in picture widths at every size.
    """
    tone = np.zeros(codes.shape + np.broadcast_shapes(x.shape, y.shape)[1:], dtype=np.float32)
    for code, name in enumerate(TEXTURES):
        rows = np.flatnonzero(codes == code)
        if not len(rows) or name == "solid":
            continue
        a, b = x[rows], y[rows]
        if name == "striped":
            period = 0.094
            wave = np.abs(np.mod(b / period, 1) - 0.5) * 2  # a triangle wave, slope 2 / period
            tone[rows] = np.clip(0.5 + (0.5 - wave) * (period / 2) * size, 0, 1)
        elif name == "dotted":
            period = 0.108
            near = np.hypot(np.mod(a / period, 1) - 0.5, np.mod(b / period, 1) - 0.5) * period
            tone[rows] = np.clip(0.5 + (0.036 - near) * size, 0, 1)
        else:
            period = 0.140
            wave = np.sin(2 * np.pi / period * a) * np.sin(2 * np.pi / period * b)
            tone[rows] = np.clip(0.5 + wave * period / (2 * np.pi) * size, 0, 1)
    return tone


def print_label(
    image: Image.Image, digit: str, random: np.random.Generator
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Print a digit over a picture as this world prints them: on a white label in one of the corners; the label alone for what is no digit.

    Returns:
        The picture with the label, and the box that it covers: left, top, right, bottom.
    """
    size, pad, corner = image.width, int(np.ceil(0.12 * image.width)) + 2, int(random.integers(4))
    canvas = np.pad(np.asarray(image, np.float32)[None] / 255, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    _draw_labels(canvas, np.array([int(digit) if digit.isdecimal() else -1]), np.array([corner]), pad)
    made = (canvas[0, pad:-pad, pad:-pad] * 255 + 0.5).astype(np.uint8)
    (left, top), wide, high = _label_centres(np.array([corner]))[0] * size, LABEL[0] / 2 * size, LABEL[1] / 2 * size
    box = int(left - wide), int(top - high), int(np.ceil(left + wide)), int(np.ceil(top + high))
    return Image.fromarray(made), (max(box[0], 0), max(box[1], 0), min(box[2], size), min(box[3], size))


def _label_centres(corner: np.ndarray) -> np.ndarray:
    """Return x and y of the labels' middles, in picture widths."""
    x0, y0 = 0.02 + LABEL[0] / 2, 0.02 + LABEL[1] / 2
    return np.stack([np.where(corner % 2 == 1, 1 - x0, x0), np.where(corner >= 2, 1 - y0, y0)], axis=1)


def _draw_labels(canvas: np.ndarray, digits: np.ndarray, corners: np.ndarray, pad: int) -> None:
    """Print the digits on white labels in their corners; −1 is a label without a digit, 0 none."""
    (width, height), size = LABEL, canvas.shape[1] - 2 * pad
    for digit in (-1, 1, 2, 3, 4):
        images = np.flatnonzero(digits == digit)
        if not len(images):
            continue
        rows, cols, x, y = _window(_label_centres(corners[images]), int(np.ceil(height / 2 * size)) + 1, size, pad)
        plate = np.clip(0.5 - box(x, y, width / 2, height / 2) * size, 0, 1)[..., None]
        at = images[:, None, None]
        under = canvas[at, rows, cols]
        under += plate * (_LIGHT - under)
        if digit > 0:
            glyph = digit_strokes(digit, x / (0.30 * width), y / (0.32 * height)) * 0.31 * width
            under += np.clip(0.5 - (glyph - 0.017) * size, 0, 1)[..., None] * (_DARK - under)
        canvas[at, rows, cols] = under
