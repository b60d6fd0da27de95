"""Figure and folder of second-order paths: a source, the later heads that it goes through, and what arrives in the embedding."""

from typing import TYPE_CHECKING

import torch

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json
from clip_anatomy.naming.paths import SCHEMA, Paths
from clip_anatomy.report.figures import FAINT, Canvas, canvas, draw_grid, draw_text_bars, png, ticks
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.report.thumbnails import small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "figure", "html", "write"]

NUMBERS, FIGURE = "paths.json", "paths.png"
KIND = Kind("paths", NUMBERS, SCHEMA, (NUMBERS, FIGURE))
ROWS, WORDS, SIDE = 8, 4, 160  # sources and texts drawn; pixels of a picture
WIDE, ROW, HEAD = 12.2, 1.55, 1.35  # inches


def write(result: Paths, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    output.write(FIGURE, png(figure(result)))
    output.write(NUMBERS, as_json(result.to_dict()))


def html(result: Paths) -> str:
    """Return the figure above the table, for notebooks."""
    return notebook_figures([(png(figure(result)), "paths", result.summary())])


def figure(result: Paths) -> "Figure":
    """Draw the strongest sources, one a row: the source, its pictures, the later heads, and its direction in texts."""
    rows = range(min(ROWS, len(result)))
    limit = max(float(one.through.max()) for one in result.sources[:ROWS])
    most = max((weight for one in result.sources[:ROWS] for _, weight in one.words), default=1.0)
    with canvas(WIDE, HEAD + ROW * len(rows) + 0.3) as sheet:
        sheet.text(0.3, 0.38, "What it does through later heads", 13, weight="bold")
        under = f"{len(result.names):,} images, {result.ranked:,} sources ranked; strength of the one in the middle {result.median:.4f}"
        sheet.text(
            0.3, 0.63, f"{under}; as many texts explain {result.chance:.0%} of a random direction", 9, color=FAINT
        )
        for left, heading in (
            (0.3, "source"),
            (1.75, "most in"),
            (5.25, "through (layer down, head across)"),
            (8.0, "into the embedding"),
        ):
            sheet.text(left, 1.1, heading, 9.5, weight="bold")
        for row in rows:
            _draw_row(sheet, result, row, limit, most)
    return sheet.figure


def _draw_row(sheet: Canvas, result: Paths, row: int, limit: float, most: float) -> None:
    one, top = result.sources[row], HEAD + ROW * row
    name = one.name.replace(" × ", "\n× ").splitlines()  # a neuron of a CLIP-ResNet, and below it its head
    for at, line in enumerate(name):
        sheet.text(0.3, top + 0.35 + 0.18 * (at + 1 - len(name)), line, 10, weight="bold")
    sheet.text(0.3, top + 0.58, f"strength {one.strength:.4f}", 8.5, color=FAINT)
    sheet.text(0.3, top + 0.78, f"{one.share:.0%} along it", 8.5, color=FAINT)
    for at, place in enumerate(result.top_images(row) if result.pictures is not None else ()):
        assert result.pictures is not None
        view = sheet.axes(1.75 + 1.1 * at, top, 1.02, 1.02)
        view.imshow(small(result.pictures[place].read(), SIDE))
        view.set_axis_off()
        view.set_title(f"{float(one.along[place]):+.3f}", fontsize=7.5, color=FAINT, pad=2)
    axes = sheet.axes(5.25, top, 1.9, 1.15)
    draw_grid(axes, one.through.where(one.through > 0, torch.zeros(())), limit)
    axes.tick_params(labelsize=6.5)
    axes.set_yticks(ticks(len(one.through)))
    heads = ", ".join(f"{layer}.{head}" for layer, head, value in one.heads[:3] if value > 0)
    sheet.text(5.25, top + 1.4, f"most: {heads}", 7.5, color=FAINT)
    draw_text_bars(sheet.axes(9.6, top + 0.05, 2.1, 1.05), one.words[:WORDS], WORDS, most, 26)
    sheet.text(9.6, top + 1.4, f"{one.explained:.0%} of its direction explained", 7.5, color=FAINT)
