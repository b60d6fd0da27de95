"""A contact sheet: rows of small pictures with a heading each, as many sheets as it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw

from clip_anatomy.errors import visible
from clip_anatomy.images.fonts import Font, font_for

__all__ = ["Cell", "SheetRow", "colour_bar", "contact_sheets", "fit", "fitted", "write_line"]

SIDE, GAP, LINE = 216, 10, 18
MOST_ACROSS = 7
TALLEST = 6000  # pixels of one sheet
PAPER, INK, SOFT = (251, 250, 248), (29, 33, 38), (93, 102, 112)
BAR = 90  # pixels of a scale of colours

Legend = Sequence[tuple[Sequence[tuple[int, int, int]], str]]
"""Colours (one, or a scale of several) and what they say."""


@dataclass(frozen=True)
class Cell:
    """Hold one small picture and its caption."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class SheetRow:
    """Hold small pictures that belong together; too many for one line go on in the next."""

    heading: str
    cells: Sequence[Cell]


def contact_sheets(title: str, under: str, rows: Sequence[SheetRow], legend: Legend = ()) -> list[bytes]:
    """Draw rows of small pictures as one sheet or more.

    Args:
        title: above everything.
        under: one line below it.
        legend: what colours mean, in a line of its own.
        rows: in order; captions that are the same in every row stand above the first row only.

    Returns:
        One PNG or more.
    """
    rows = [SheetRow(row.heading, [Cell(fitted(cell.image), cell.caption) for cell in row.cells]) for row in rows]
    across = min(MOST_ACROSS, max((len(row.cells) for row in rows), default=1))
    longest = max((len(line) for row in rows for line in _lines(row, across)), default=1)
    wide = max(2, longest) * (SIDE + GAP) + GAP
    pages: list[bytes] = []
    waiting: list[tuple[SheetRow, int]] = []
    high = 0
    for row in rows:
        tall = _height(row, across)
        if waiting and high + tall > TALLEST:
            pages.append(_sheet(title, under, legend, waiting, across, wide))
            waiting, high = [], 0
        waiting.append((row, tall))
        high += tall
    if waiting:
        pages.append(_sheet(title, under, legend, waiting, across, wide))
    return pages


def fitted(image: Image.Image, side: int = SIDE, *, enlarge: bool = True) -> Image.Image:
    """Scale a picture so that its longer side is `side`; a tiny one is enlarged with square pixels.

    Args:
        image: the picture.
        side: in pixels; by default that of a cell.
        enlarge: whether smaller ones grow.
    """
    scale = side / max(image.size)
    if scale >= 1 and not enlarge:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1.5 else Image.Resampling.LANCZOS)


def _lines(row: SheetRow, across: int) -> list[Sequence[Cell]]:
    lines = -(-len(row.cells) // across)
    even = -(-len(row.cells) // lines)  # 8 cells in lines of 7 are 4 and 4, not 7 and 1
    return [row.cells[first : first + even] for first in range(0, len(row.cells), even)]


def _height(row: SheetRow, across: int) -> int:
    return LINE + 6 + sum(_tall(line) for line in _lines(row, across)) + GAP


def _tall(line: Sequence[Cell]) -> int:
    return max(cell.image.height for cell in line) + LINE + GAP


def _sheet(  # noqa: PLR0917
    title: str, under: str, legend: Legend, rows: Sequence[tuple[SheetRow, int]], across: int, wide: int
) -> bytes:
    top = 3 * GAP + (3 if legend else 2) * LINE
    sheet = Image.new("RGB", (wide, top + sum(tall for _, tall in rows) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, plain, fine = 19, 14, 12.5
    write_line(draw, (GAP, GAP), title, wide - 2 * GAP, INK, large)
    write_line(draw, (GAP, GAP + 24), under, wide - 2 * GAP, SOFT, fine)
    at = GAP
    for colours, caption in legend:
        bar = BAR if len(colours) > 1 else 12
        if at + bar + 60 > wide - GAP:
            break
        colour_bar(draw, (at, top - 24), (bar, 10), colours)
        long = write_line(draw, (at + bar + 6, top - 27), caption, wide - GAP - at - bar - 8, SOFT, fine)
        at += round(bar + 24 + long)
    for row, tall in rows:
        draw.line((GAP, top - 3, wide - GAP, top - 3), (227, 225, 220))
        write_line(draw, (GAP, top + 2), row.heading, wide - 2 * GAP, INK, plain)
        at = top + LINE + 6
        for line in _lines(row, across):
            for place, cell in enumerate(line):
                left = GAP + place * (SIDE + GAP)
                sheet.paste(cell.image, (left, at + LINE - 2))
                write_line(draw, (left, at - 2), cell.caption, SIDE, SOFT, fine)
            at += _tall(line)
        top += tall
    file = BytesIO()
    sheet.save(file, "PNG", compress_level=6)
    return file.getvalue()


def colour_bar(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    size: tuple[int, int],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Draw a scale of colours, (width, height) pixels large."""
    for x in range(size[0]):
        draw.line((at[0] + x, at[1], at[0] + x, at[1] + size[1]), _between(colours, x / max(1, size[0] - 1)))


def _between(colours: Sequence[tuple[int, int, int]], share: float) -> tuple[int, int, int]:
    place = share * (len(colours) - 1)
    first = min(int(place), max(0, len(colours) - 2))
    a, b = colours[first], colours[min(first + 1, len(colours) - 1)]
    red, green, blue = (round(x + (y - x) * (place - first)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def fit(draw: ImageDraw.ImageDraw, text: str, room: int | float, size: int | float) -> tuple[str, Font]:
    """Return as much of a text as fits, and a font that has its letters.

    Args:
        draw: where it will be written.
        text: any text.
        room: pixels across.
        size: of the font.
    """
    text = visible(" ".join(text.split())).translate(  # one line, whatever a text or a name of a file holds
        {0x2212: "-", 0x201C: '"', 0x201D: '"', 0x2026: "...", 0xD7: "x", 0xB7: "-", 0xA7: "section "}
    )
    text = text[: int(room / 3)]  # no letter but i and l is narrower: the rest is not measured
    font = font_for(size, "".join(sorted(set(text))))
    if draw.textlength(text, font) <= room:
        return text, font
    while text and draw.textlength(f"{text}...", font) > room:
        text = text[:-1]
    return f"{text.rstrip()}...", font


def write_line(  # noqa: PLR0917
    draw: ImageDraw.ImageDraw,
    at: tuple[int | float, int | float],
    text: str,
    room: int | float,
    colour: tuple[int, int, int],
    size: int | float,
) -> float:
    """Write one line, cut where the room ends; return how long it became."""
    line, font = fit(draw, text, room, size)
    draw.text(at, line, colour, font)
    return draw.textlength(line, font)
