"""Figure of pairs: the picture for each of the strongest words (or patches of the other picture); two texts as a table of words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, INK, LINE, PLAIN, Canvas, canvas
from clip_anatomy.report.palette import colour, limit_of
from clip_anatomy.report.shown_picture import model_view
from clip_anatomy.split.pair_sides import Side
from clip_anatomy.split.pairs import Pairs
from clip_anatomy.split.picture_explanation import signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pairs_figure"]

PANEL, GAP, ACROSS, HEAD = 2.05, 0.28, 4, 1.0  # inches
SIDE, MOST, PALE = (
    320,
    7,
    0.45,
)  # pixels of a picture; parts with a panel of their own; how far it is faded below the colours


def pairs_figure(pairs: Pairs) -> "Figure":
    """Draw what two things have in common, part by part."""
    if "picture" not in (pairs.a.kind, pairs.b.kind):
        return _words_figure(pairs)
    pictured, other, values = (
        (pairs.a, pairs.b, pairs.values) if pairs.a.kind == "picture" else (pairs.b, pairs.a, pairs.values.T)
    )
    strongest = values.abs().sum(0).argsort(descending=True)[:MOST].tolist()
    if other.kind == "text":
        strongest.sort()  # as the sentence reads
    panels = 1 + len(strongest)
    down = -(-panels // ACROSS)
    high = HEAD + down * (PANEL + 0.5) + 0.1
    with canvas(ACROSS * (PANEL + GAP) + GAP, high) as sheet:
        _head(sheet, pairs)
        limit, whole = (limit_of(values), limit_of(values.sum(1))) if values.numel() else (1.0, 1.0)
        picture = _seen(pictured)
        if other.kind == "picture":
            _numbered(_panel(sheet, 0, f"{_called(other)}"), other, strongest)
        else:
            _map(_panel(sheet, 0, f"all words, ±{whole:.3f}"), picture, pictured, values.sum(1), whole)
        for place, at in enumerate(strongest, 1):
            label = f"{place}: {other.parts[at]}" if other.kind == "picture" else f"“{shorten(other.parts[at], 20)}”"
            title = f"{label} {signed(float(values[:, at].sum()))}"
            _map(_panel(sheet, place, title), picture, pictured, values[:, at], limit)
    return sheet.figure


def _head(sheet: Canvas, pairs: Pairs) -> None:
    what = "exact shares of the cosine" if pairs.how == "split" else "interactions: what both do together (FIxLIP)"
    limit = f"full colour ±{limit_of(pairs.values):.4f}" if pairs.values.numel() else ""
    sheet.text(GAP, 0.4, shorten(f"{_called(pairs.a)} and {_called(pairs.b)}", 90), 12, weight="bold")
    sheet.text(
        GAP, 0.68, f"cosine {signed(pairs.cosine)}; {what}; orange raises it, blue lowers it; {limit}", 8.5, color=FAINT
    )


def _called(side: Side) -> str:
    return Path(side.name).name if side.kind == "picture" else f"“{side.name}”"


def _panel(sheet: Canvas, place: int, title: str) -> Any:
    row, col = divmod(place, ACROSS)
    left, top = GAP + col * (PANEL + GAP), HEAD + row * (PANEL + 0.5)
    sheet.text(left, top + 0.1, shorten(title, 32), 9)
    axes = sheet.axes(left, top + 0.18, PANEL, PANEL)
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_color(LINE)
    return axes


def _seen(side: Side) -> Image.Image | None:
    if side.picture is None or side.geometry is None:
        return None
    return model_view(side.picture.read(keep_mode=True), side.geometry, SIDE)


def _map(axes: Any, picture: Image.Image | None, side: Side, values: Float[Tensor, " part"], limit: float) -> None:
    assert side.grid is not None
    rows, cols = side.grid
    extent = (0, cols, rows, 0)
    if picture is not None:
        faded = np.asarray(picture, dtype=np.float32) * (1 - PALE) + 255 * PALE
        axes.imshow(
            faded.astype(np.uint8), extent=extent, interpolation="nearest" if max(picture.size) <= 2 * rows else None
        )
    if len(values):
        axes.imshow(colour(values.unflatten(0, side.grid), limit), extent=extent, interpolation="nearest")
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)


def _numbered(axes: Any, side: Side, strongest: list[int]) -> None:
    """Draw the other picture with the strongest of its patches outlined and numbered."""
    assert side.grid is not None
    rows, cols = side.grid
    picture = _seen(side)
    if picture is not None:
        axes.imshow(picture, extent=(0, cols, rows, 0))
    for place, at in enumerate(strongest, 1):
        row, col = divmod(at, cols)
        axes.plot([col, col + 1, col + 1, col, col], [row, row, row + 1, row + 1, row], color=INK, linewidth=1.4)
        axes.text(col + 0.5, row + 0.5, str(place), ha="center", va="center", fontsize=8, color="white",
                  bbox={"facecolor": INK, "edgecolor": "none", "pad": 1.2})  # fmt: skip
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)


def _words_figure(pairs: Pairs) -> "Figure":
    rows, cols = pairs.values.shape
    cell = min(0.5, 6.0 / max(rows, cols, 1))
    with canvas(max(6.5, 2.2 + cell * cols), HEAD + 0.9 + cell * rows + 0.2) as sheet:
        _head(sheet, pairs)
        if pairs.values.numel():
            axes = sheet.axes(1.8, HEAD + 0.8, cell * cols, cell * rows)
            limit = limit_of(pairs.values)
            axes.imshow(colour(pairs.values, limit), aspect="auto", interpolation="nearest")
            axes.set_xticks(range(cols), [shorten(word, 16) for word in pairs.b.parts], rotation=45, ha="left", **PLAIN)
            axes.set_yticks(range(rows), [shorten(word, 18) for word in pairs.a.parts], **PLAIN)
            axes.xaxis.tick_top()
            axes.tick_params(length=0)
    return sheet.figure
