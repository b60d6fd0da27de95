"""A contact sheet: rows of small pictures with a heading each, as many sheets as it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Cell", "SheetRow", "contact_sheets", "fit", "fitted"]

SIDE, GAP, LINE = 216, 10, 18
MOST_ACROSS = 7
TALLEST = 6000  # pixels of one sheet
PAPER, INK, SOFT = (251, 250, 248), (29, 33, 38), (93, 102, 112)
BAR = 90  # pixels of a scale of colours

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
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
    large, plain, fine = (ImageFont.load_default(size) for size in (19, 14, 12.5))
    draw.text((GAP, GAP), fit(draw, title, wide - 2 * GAP, large), INK, large)
    draw.text((GAP, GAP + 24), fit(draw, under, wide - 2 * GAP, fine), SOFT, fine)
    at = GAP
    for colours, words in legend:
        bar = BAR if len(colours) > 1 else 12
        if at + bar + 60 > wide - GAP:
            break
        for x in range(bar):
            draw.line((at + x, top - 24, at + x, top - 14), _between(colours, x / max(1, bar - 1)))
        label = fit(draw, words, wide - GAP - at - bar - 8, fine)
        draw.text((at + bar + 6, top - 27), label, SOFT, fine)
        at += round(bar + 24 + draw.textlength(label, fine))
    for row, tall in rows:
        draw.line((GAP, top - 3, wide - GAP, top - 3), (227, 225, 220))
        draw.text((GAP, top + 2), fit(draw, row.heading, wide - 2 * GAP, plain), INK, plain)
        at = top + LINE + 6
        for line in _lines(row, across):
            for place, cell in enumerate(line):
                left = GAP + place * (SIDE + GAP)
                sheet.paste(cell.image, (left, at + LINE - 2))
                draw.text((left, at - 2), fit(draw, cell.caption, SIDE, fine), SOFT, fine)
            at += _tall(line)
        top += tall
    file = BytesIO()
    sheet.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _between(colours: Sequence[tuple[int, int, int]], share: float) -> tuple[int, int, int]:
    place = share * (len(colours) - 1)
    first = min(int(place), max(0, len(colours) - 2))
    a, b = colours[first], colours[min(first + 1, len(colours) - 1)]
    red, green, blue = (round(x + (y - x) * (place - first)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def fit(draw: ImageDraw.ImageDraw, text: str, room: int | float, font: Font) -> str:
    """Return as much of a text as fits, in letters that Pillow's own font has.

    Args:
        draw: where it will be written.
        text: any text.
        room: pixels across.
        font: its font.
    """
    text = text.translate(
        {0x2212: "-", 0x201C: '"', 0x201D: '"', 0x2026: "...", 0xD7: "x", 0xB7: "-", 0xA7: "section "}
    )
    text = text.encode("latin-1", "replace").decode("latin-1")
    if len(text) < room and draw.textlength(text, font) <= room:
        return text
    text = text[: int(room / 3)]  # no letter but i and l is narrower: the rest is not measured
    while text and draw.textlength(f"{text}...", font) > room:
        text = text[:-1]
    return f"{text.rstrip()}..."
