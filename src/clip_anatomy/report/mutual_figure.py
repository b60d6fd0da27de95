"""Figure of `mutual`: the picture with its parts in colours, and for both labels what it shares and lacks."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, INK, LINE, Canvas, canvas, png
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.report.shown_picture import model_view
from clip_anatomy.split.picture_explanation import signed
from clip_anatomy.studies.mutual import SCHEMA, Detail, LabelDetails, Mutual, overlap_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "figure", "html", "write"]

NUMBERS, FIGURE = "mutual.json", "mutual.png"
KIND = Kind("mutual", NUMBERS, SCHEMA, (NUMBERS, FIGURE))
# Okabe & Ito, "Color Universal Design" (2008): told apart by everybody; further parts take them again.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
PANEL, LIST, COLUMN, LINES = 2.6, 0.24, 2.75, 9  # inches, inches of a line, of a column; lines of a list
SIDE, GAP, HEAD = 320, 0.35, 0.95


def write(mutual: Mutual, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    output.write(FIGURE, png(figure(mutual)))
    output.write(NUMBERS, as_json(mutual.to_dict()))


def html(mutual: Mutual) -> str:
    """Return the figure above the lists, for notebooks."""
    return notebook_figures([(png(figure(mutual)), "mutual knowledge", mutual.summary())])


def figure(mutual: Mutual) -> "Figure":
    """Draw the parts, and for each of the two labels three lists: only the picture, both, only the label."""
    lines = max(2, *(min(LINES, len(one)) for label in mutual.labels for one in _lists(label)))
    block = 1.05 + LIST * (lines + 1)
    left = 2 * GAP + PANEL
    with canvas(left + 3 * COLUMN + 0.1, HEAD + max(2 * block, PANEL + 1.6)) as sheet:
        name = shorten(Path(mutual.name).name, 60)
        sheet.text(GAP, 0.4, f"{name}: what the picture and a label both know", 13, weight="bold")
        how = "what their patches wrote into the embedding" if mutual.how == "split" else "red circles"
        sheet.text(GAP, 0.68, f"parts of the picture by {how}; squares say which part shows a detail", 8.5, color=FAINT)
        _draw_parts(sheet, mutual)
        for at, label in enumerate(mutual.labels):
            _draw_label(sheet, label, mutual.measure, left, HEAD + at * block, best=not at)
    return sheet.figure


def _lists(label: LabelDetails) -> tuple[tuple[Detail, ...], ...]:
    return label.only_picture, label.shared, label.only_label


def _draw_parts(sheet: Canvas, mutual: Mutual) -> None:
    """Draw the picture as the model saw it, each patch tinted by its part."""
    rows, cols = mutual.parts.shape
    for place, tinted in enumerate((False, True)):
        axes = sheet.axes(GAP, HEAD + place * (PANEL / 1.3 + 0.2), PANEL / 1.3, PANEL / 1.3)
        axes.set_xticks([])
        axes.set_yticks([])
        extent = (0, cols, rows, 0)
        if mutual.picture is not None and mutual.geometry is not None:
            view = model_view(mutual.picture.read(keep_mode=True), mutual.geometry, SIDE)
            axes.imshow(np.asarray(view), extent=extent, interpolation="nearest")
        if tinted or mutual.picture is None:
            axes.imshow(np.array(_tints(mutual)), extent=extent, interpolation="nearest", alpha=0.72)


def _tints(mutual: Mutual) -> Image.Image:
    rgb = [tuple(bytes.fromhex(colour[1:])) for colour in COLOURS]
    return Image.fromarray(np.array(rgb, dtype=np.uint8)[mutual.parts.numpy() % len(COLOURS)])


def _draw_label(sheet: Canvas, label: LabelDetails, measure: str, left: float, top: float, *, best: bool) -> None:
    rank = "best" if best else "second-best"
    sheet.text(left, top + 0.2, f"{shorten(label.label, 50)} {signed(label.cosine)}", 11.5, weight="bold")
    sheet.text(left, top + 0.42, f"{rank} class: {overlap_in_words(label, measure)}", 8, color=FAINT)
    titles = ("only the picture", "both", "only the label")
    for column, (title, details) in enumerate(zip(titles, _lists(label), strict=True)):
        x = left + column * COLUMN
        sheet.text(x, top + 0.7, f"{title} ({len(details)})", 9.5, weight="bold", color=INK if column == 1 else FAINT)
        for at, one in enumerate(details[:LINES]):
            _draw_detail(sheet, one, x, top + 0.7 + LIST * (at + 1))
        if len(details) > LINES:
            sheet.text(x, top + 0.7 + LIST * (LINES + 1), f"and {len(details) - LINES} more", 8.5, color=FAINT)
        if not details:
            sheet.text(x, top + 0.7 + LIST, "nothing", 9, color=LINE)


def _draw_detail(sheet: Canvas, one: Detail, left: float, foot: float) -> None:
    """Write a detail with a square for each of its parts before it."""
    for place, part in enumerate(one.parts[:3]):
        sheet.text(left + 0.15 * place, foot, "■", 9, color=COLOURS[part % len(COLOURS)])
    indent = 0.15 * min(3, len(one.parts)) + (0.04 if one.parts else 0)
    sheet.text(left + indent, foot, shorten(one.text, 34), 9)
