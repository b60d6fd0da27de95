"""A legend under a saved map: the text, the method, and what its colours stand for in numbers."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from clip_anatomy.report.contact_sheet import INK, PAPER, SOFT, colour_bar, fitted, write_line
from clip_anatomy.report.map_overlay import HEAT, Shades
from clip_anatomy.report.palette import NO, YES

__all__ = ["PALE", "with_legend", "with_swatches"]

PALE = (232, 230, 226)  # the middle of the signed scale: nothing said
LEAST = 320  # pixels of the longer side of a saved map: smaller drawings are enlarged, a pixel to a square


def with_legend(drawn: Image.Image, shades: Shades, text: int, caption: str, colours: str) -> Image.Image:
    """Set a legend under one map.

    Args:
        drawn: the picture under its map; its pixels stay as they are.
        shades: the maps.
        text: which of them.
        caption: its text.
        colours: "signed" or "heat".

    Returns:
        RGB; the picture is its upper left corner.
    """
    drawn = _large_enough(drawn)
    size = max(13.0, drawn.width / 52)
    line, gap = round(1.5 * size), round(0.6 * size)
    wide = max(drawn.width, LEAST)
    sheet = Image.new("RGB", (wide, drawn.height + 2 * line + 2 * gap), PAPER)
    sheet.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(sheet)
    top = drawn.height + gap
    write_line(draw, (gap, top), caption, wide - 2 * gap, INK, size)
    low, high = _ends(shades, text, colours)
    at = gap + round(write_line(draw, (gap, top + line), low, wide / 4, SOFT, 0.8 * size)) + gap
    bar = round(wide / 5), round(0.7 * size)
    ramp = (NO, PALE, YES) if colours == "signed" else [stop[:3] for stop in HEAT]
    colour_bar(draw, (at, top + line + round(0.2 * size)), bar, ramp)
    at += bar[0] + gap
    at += round(write_line(draw, (at, top + line), high, wide / 4, SOFT, 0.8 * size)) + 2 * gap
    about = shades.maps.method if shades.zero == "0" else f"{shades.maps.method}, 0 is {shades.zero}"
    if shades.says_nothing(text):
        about = f"nothing to show on this scale ({about})"
    write_line(draw, (at, top + line), about, wide - gap - at, SOFT, 0.8 * size)
    return sheet


def with_swatches(painted: Image.Image, swatches: Sequence[tuple[tuple[int, int, int], str]]) -> Image.Image:
    """Set the texts and their colours under painted masks.

    Args:
        painted: the picture under its masks; its pixels stay as they are.
        swatches: colour and text.
    """
    painted = _large_enough(painted)
    size = max(13.0, painted.width / 52)
    line, gap = round(1.5 * size), round(0.6 * size)
    sheet = Image.new("RGB", (max(painted.width, LEAST), painted.height + len(swatches) * line + 2 * gap), PAPER)
    sheet.paste(painted, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for at, (colour, caption) in enumerate(swatches):
        top = painted.height + gap + at * line
        draw.rectangle((gap, top + 2, gap + round(size), top + 1 + round(size)), colour)
        write_line(draw, (2 * gap + size, top), caption, sheet.width - 3 * gap - size, INK, size)
    return sheet


def _large_enough(drawn: Image.Image) -> Image.Image:
    """Enlarge a small drawing, a pixel to a square."""
    longest = max(drawn.size)
    return drawn if longest >= LEAST else fitted(drawn, longest * -(-LEAST // longest))


def _ends(shades: Shades, text: int, colours: str) -> tuple[str, str]:
    low, high = (-shades.limits[text], shades.limits[text]) if colours == "signed" else shades.ends[text]
    return f"{low:+.2g}".replace("-", "−"), f"{high:+.2g}".replace("-", "−")
