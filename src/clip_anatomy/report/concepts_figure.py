"""Figure and folder of sparse concepts: each picture with bars of the texts that it is made of."""

from pathlib import Path
from typing import TYPE_CHECKING

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.naming.concepts import SCHEMA, Concepts
from clip_anatomy.report.figures import FAINT, Canvas, canvas, draw_text_bars, png
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.report.thumbnails import small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "figure", "html", "write"]

NUMBERS, FIGURE = "concepts.json", "concepts.png"
KIND = Kind("concepts", NUMBERS, SCHEMA, (NUMBERS, FIGURE))
ROWS, BARS, SIDE = 8, 8, 240  # rows and texts drawn; pixels of a picture
WIDE, ROW, HEAD = 9.0, 2.1, 0.9  # inches


def write(result: Concepts, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    output.write(FIGURE, png(figure(result)))
    output.write(NUMBERS, as_json(result.to_dict()))


def html(result: Concepts) -> str:
    """Return the figure above the table, for notebooks."""
    return notebook_figures([(png(figure(result)), "sparse concepts", result.summary())])


def figure(result: Concepts) -> "Figure":
    """Draw the first rows: the picture, and its texts by weight on one scale."""
    rows = range(min(ROWS, len(result)))
    most = max((weight for row in rows for _, weight in result.of(row)), default=1.0)
    with canvas(WIDE, HEAD + ROW * len(rows) + 0.2) as sheet:
        sheet.text(0.3, 0.38, "What it is made of, in texts", 13, weight="bold")
        chance = f"weights of a sparse non-negative sum; a random direction: {result.chance[0]:.0%} explained"
        sheet.text(0.3, 0.65, chance, 9, color=FAINT)
        for row in rows:
            _draw_row(sheet, result, row, HEAD + ROW * row, most)
    return sheet.figure


def _draw_row(sheet: Canvas, result: Concepts, row: int, top: float, most: float) -> None:
    if result.pictures is not None:
        view = sheet.axes(0.3, top, 1.6, 1.6)
        view.imshow(small(result.pictures[row].read(), SIDE))
        view.set_axis_off()
    name = shorten(Path(result.names[row]).name if result.pictures else result.names[row], 44)
    figures = f"{float(result.explained[row]):.0%} explained, cosine {float(result.cosine[row]):.2f}"
    sheet.text(2.2, top + 0.05, name, 9, weight="bold")
    sheet.text(5.9, top + 0.05, figures, 8.5, color=FAINT)
    draw_text_bars(sheet.axes(5.0, top + 0.15, 3.4, 1.55), result.of(row)[:BARS], BARS, most, 40)
