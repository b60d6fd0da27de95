"""What `refer` writes: a figure of the regions that fit best, the best one as a mask, all of them with their scores as JSON."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.maps.refer import SCHEMA, Referred
from clip_anatomy.report.figures import FAINT, INK, LINE, PLAIN, YES_INK, Canvas, canvas, ink, png
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.report.palette import YES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "KIND", "figure", "html", "write"]

NUMBERS, FIGURE, MASK = "refer.json", "refer.png", "mask.png"
KIND = Kind("refer", NUMBERS, SCHEMA, (NUMBERS, FIGURE, MASK))
OTHERS, SIDE = 3, 640  # regions drawn beside the best; pixels of a picture
HEAD, GAP, LARGE, SMALL = 0.95, 0.3, 3.3, 1.75  # inches
DARK = 0.35  # what is left of the picture outside of a region


def write(referred: Referred, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    output.write(FIGURE, png(figure(referred)))
    file = BytesIO()
    Image.fromarray(255 * referred.mask.astype(np.uint8)).save(file, "PNG")
    output.write(MASK, file.getvalue())
    output.write(NUMBERS, as_json(referred.to_dict()))


def html(referred: Referred) -> str:
    """Return the figure above the table, for notebooks."""
    return notebook_figures([(png(figure(referred)), "the region that a phrase names", referred.summary())])


def figure(referred: Referred) -> "Figure":
    """Draw the region that fits best on its picture, the next ones smaller, and what each word says of them."""
    shown = min(1 + OTHERS, len(referred))
    wide = GAP + LARGE + GAP + max(OTHERS * (SMALL + GAP), 5.4)
    with canvas(wide, HEAD + LARGE + 0.35) as sheet:
        sheet.text(GAP, 0.38, f"“{shorten(referred.phrase, 80)}”", 13, weight="bold")
        caption = f"{Path(referred.picture.name).name}, {len(referred)} regions, {referred.method}; lit: the region that fits best, and the next ones"
        sheet.text(GAP, 0.66, shorten(caption, 120), 9, color=FAINT)
        _draw(sheet, referred, 0, (GAP, HEAD, LARGE))
        left = GAP + LARGE + GAP
        for at in range(1, shown):
            _draw(sheet, referred, at, (left + (at - 1) * (SMALL + GAP), HEAD, SMALL - 0.2))
        _bars(sheet, referred, shown, left)
    return sheet.figure


def _draw(sheet: Canvas, referred: Referred, at: int, where: tuple[float, float, float]) -> None:
    left, top, side = where
    shown = referred.picture.read()
    shown.thumbnail((SIDE, SIDE))
    picture = np.asarray(shown, dtype=np.float32)
    mask = Image.fromarray(referred.masks[at]).resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST)
    inside = np.asarray(mask)
    grey = DARK * picture.mean(2, keepdims=True) + 40
    axes: Any = sheet.axes(left, top, side, side)
    axes.imshow(np.where(inside[..., None], picture, grey).astype(np.uint8))
    if 0 < inside.mean() < 1:
        axes.contour(inside.astype(float), levels=[0.5], colors=[[one / 255 for one in YES]], linewidths=1.6)
    axes.set_axis_off()
    label = f"{referred.names[at]}: {float(referred.scores[at]):+.2f}"
    sheet.text(
        left, top + side + 0.17, shorten(label, 34 if at else 60), 8.5 if at else 9.5, color=YES_INK if not at else INK
    )


def _bars(sheet: Canvas, referred: Referred, shown: int, left: float) -> None:
    """Draw what each word adds to the regions drawn; words that are about a place are marked."""
    count = referred.by_word.shape[1]
    if not count:
        return
    values = referred.by_word[:shown]
    most = float(values.abs().max()) or 1.0
    axes = sheet.axes(left, HEAD + SMALL + 0.5, 5.2, LARGE - SMALL - 0.75)
    width = 0.8 / shown
    for at in range(shown):
        places = [word + (at - (shown - 1) / 2) * width for word in range(count)]
        shades = [ink(value) for value in values[at].tolist()]
        bars = axes.bar(places, values[at].tolist(), width=0.9 * width, color=shades)
        for bar in bars:
            bar.set_alpha(1.0 if not at else 0.35)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set_ylim(-1.1 * most, 1.1 * most)
    used = {*referred.read.thing, *referred.read.other}
    labels = [shorten(word, 12) if at in used else f"({shorten(word, 10)})" for at, word in enumerate(referred.words)]
    axes.set_xticks(range(count), labels, fontsize=8, **PLAIN)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    sheet.text(left, HEAD + SMALL + 0.42, "what each word adds, the best region first", 8, color=FAINT)
