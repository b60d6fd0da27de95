"""Words printed over pictures, as a sticker or a marker would: the attack to which a model that reads falls.

Style, size, place and colours are drawn from a seed. Letters are Pillow's own (for other scripts an installed font's) in five styles, with a plate
behind them or an edge around them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from clip_anatomy.files import random_number
from clip_anatomy.images.fonts import font_for
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip

__all__ = ["STYLES", "print_word", "printed"]

STYLES = ("plain", "bold", "capitals", "slanted", "pixels")
INKS = (((20, 20, 25), (250, 250, 245)), ((250, 250, 245), (20, 20, 25)), ((190, 25, 30), (250, 250, 245)))
"""Colours of the letters, and of what is behind them."""
HEIGHTS = (0.16, 0.30)  # of the letters, as shares of the picture's shorter side
WIDEST = 0.96
DRAWN, SMALL = 48, 11  # pixels in which letters are drawn before they are scaled
LEAN = 0.25

Box = tuple[int, int, int, int]
Printer = Callable[[Image.Image, str, np.random.Generator], tuple[Image.Image, Box]]


def printed(
    clip: Clip,
    pixels: Float[Tensor, "image 3 row col"],
    words: Sequence[str],
    names: Sequence[str],
    seed: int = 0,
    *,
    draw: Printer | None = None,
) -> tuple[Float[Tensor, "image 3 row col"], Bool[Tensor, "image patch"]]:
    """Print one word over each of some pictures that are preprocessed already.

    Args:
        clip: its preprocessing says what the pixels are, its tower what a patch is.
        pixels: the pictures.
        words: one for each.
        names: of the pictures: a picture gets the same print whatever it stands beside.
        seed: of all that is drawn.
        draw: how a word is printed; by default `print_word`.

    Returns:
        The pictures with their prints, and which patches the prints touch.
    """
    patch = clip.vision.patch
    rows, cols = patch_grid(pixels.shape, patch)
    made: list[Tensor] = []
    where = torch.zeros(len(pixels), rows, cols, dtype=torch.bool)
    for at, (word, name) in enumerate(zip(words, names, strict=True)):
        levels = clip.preprocess.levels(pixels[at].float().cpu())
        random = np.random.default_rng(random_number(seed, name))
        image, (left, top, right, bottom) = (draw or print_word)(
            Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()), word, random
        )
        made.append(clip.preprocess.normalised(torch.from_numpy(np.array(image)).permute(2, 0, 1)))
        where[at, top // patch[0] : -(-bottom // patch[0]), left // patch[1] : -(-right // patch[1])] = True
    return torch.stack(made).to(pixels), where.flatten(1)


def print_word(image: Image.Image, word: str, random: np.random.Generator) -> tuple[Image.Image, Box]:
    """Print a word over a picture, somewhere within it.

    Args:
        image: in RGB; it is left as it is.
        word: what to print.
        random: style, size, place and colours are drawn from it.

    Returns:
        The picture with the print, and the box that it covers: left, top, right, bottom.

    Example:
        >>> picture = Image.new("RGB", (64, 64), "green")
        >>> image, (left, top, right, bottom) = print_word(picture, "fish", np.random.default_rng(0))
        >>> image.size, 0 <= left < right <= 64 and 0 <= top < bottom <= 64
        ((64, 64), True)
    """
    style, plate = STYLES[random.integers(len(STYLES))], bool(random.random() < 0.5)
    ink, behind = INKS[random.integers(len(INKS))]
    letters = _letters(word, style)
    high = max(5, round(random.uniform(*HEIGHTS) * min(image.size)))
    scale = min(high / letters.height, WIDEST * image.width / letters.width, WIDEST * image.height / letters.height)
    size = max(1, round(letters.width * scale)), max(1, round(letters.height * scale))
    letters = letters.resize(size, Image.Resampling.BOX if style == "pixels" else Image.Resampling.LANCZOS)
    left, top = (int(random.integers(0, max(1, room - side + 1))) for room, side in zip(image.size, size, strict=True))
    made, box = image.copy(), (left, top, left + size[0], top + size[1])
    if plate:
        made.paste(behind, box)
    else:  # an edge of the other colour, one pixel around the letters
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            made.paste(behind, (left + dx, top + dy), letters)
    made.paste(ink, (left, top), letters)
    return made, box


def _letters(word: str, style: str) -> Image.Image:
    """Draw a word in grey, with a little room around it: large, or (pixels) small and without smooth edges."""
    text, size = word.upper() if style == "capitals" else word, SMALL if style == "pixels" else DRAWN
    font, stroke, room = font_for(size, text), size // 16 if style == "bold" else 0, size // 8
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font, stroke_width=stroke)
    left, top, right, bottom = (round(end) for end in box)
    sheet = Image.new("L", (max(1, right - left) + 2 * room, max(1, bottom - top) + 2 * room))
    draw = ImageDraw.Draw(sheet)
    draw.fontmode = "1" if style == "pixels" else "L"
    draw.text((room - left, room - top), text, 255, font, stroke_width=stroke)
    if style != "slanted":
        return sheet
    wide = sheet.width + round(LEAN * sheet.height)
    return sheet.transform(
        (wide, sheet.height),
        Image.Transform.AFFINE,
        (1, LEAN, -LEAN * sheet.height, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
