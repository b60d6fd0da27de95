"""One PNG per picture and text: the map over the picture, every layer and head, a bar per layer."""

from typing import TYPE_CHECKING, Any

import torch

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, INK, LINE, Canvas, canvas, draw_grid, ink, png, ticks
from clip_anatomy.report.palette import colour, ends_of, limit_of
from clip_anatomy.report.shown_picture import ShownPicture
from clip_anatomy.split.picture_explanation import PictureExplanation, Share, signed, summands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "explain_figure"]

WIDE, HEAD, ROW = 13.4, 1.38, 3.95  # inches: the figure, its title, one row of panels

FOOT = {
    1: "Every share is exact; all of them add up to the cosine. Layers and heads are counted from 0.",
    2: "Upper row: this text alone. Lower row: minus the mean of the other texts, because any two texts light up much the same "
    "places. Every share is exact; layers and heads are counted from 0.",
}

OF_DIFFERENCE = "All shares add up to the difference of the two cosines. "


def draw(picture: ShownPicture, explanation: PictureExplanation, text: int, text_in_words: str, caption: str) -> bytes:
    """Draw the share of every part in the cosine of one picture with one text.

    Args:
        picture: what is shown.
        explanation: its cosines with all texts (they share one colour scale).
        text: which of them is drawn.
        text_in_words: the text itself.
        caption: one line about picture and model.

    Returns:
        A PNG.
    """
    return png(explain_figure(picture, explanation, text, text_in_words, caption))


def explain_figure(
    picture: ShownPicture, explanation: PictureExplanation, text: int, text_in_words: str, caption: str
) -> "Figure":
    """Draw the same as a figure of matplotlib."""
    rows = [explanation] if len(explanation.cosine) < 2 else [explanation, explanation.contrast()]
    high = HEAD + (ROW * 2 if len(rows) > 1 else 1.35 * ROW)
    with canvas(WIDE, high) as sheet:
        _title(sheet, explanation, text, text_in_words, caption)
        tall = (high - HEAD) / len(rows) - 0.95
        _picture(sheet.axes(0.25, HEAD, 2.9, 2.75), picture)
        place = (HEAD + 3.45, 2.1) if len(rows) < 2 else (HEAD + tall + 0.95, 2.3)
        _sums(sheet.axes(0.25, place[0], 2.9, place[1]), explanation, text)
        for i, each in enumerate(rows):
            top = HEAD + i * (tall + 0.95)
            _map(sheet.axes(3.5, top, 3.25, min(tall, 2.95)), picture, each, text)
            if each.one_part:
                continue
            _heads(sheet.axes(7.35, top, 3.05, tall), each, text)
            _layers(sheet.axes(10.85, top, 2.2, tall), each, text)
        foot = (
            FOOT[len(rows)]
            if explanation.versus is None
            else f"{OF_DIFFERENCE}{FOOT[2].partition('Every')[0] if len(rows) > 1 else ''}"
        )
        sheet.text(0.25, high - 0.2, foot, 8.5, color=FAINT)
    return sheet.figure


def _title(sheet: Canvas, explanation: PictureExplanation, text: int, text_in_words: str, caption: str) -> None:
    sheet.text(0.25, 0.44, f"“{shorten(text_in_words, 80)}”", 17, fontweight="bold")
    count, cosine = len(explanation.cosine), signed(float(explanation.cosine[text]))
    chance = f" · {float(explanation.probability[text]):.1%}"
    share = (
        f"{chance} by itself" if explanation.sigmoid else f"{chance} among the {count} texts given" if count > 1 else ""
    )
    if explanation.cosines is not None:
        own, other = (signed(float(each[text])) for each in explanation.cosines)
        share, cosine = f" = {own} minus {other} of {shorten(explanation.versus or '', 50)}", f"difference {cosine}"
    else:
        cosine = f"cosine {cosine}"
    sheet.text(0.25, 0.78, f"{cosine}{share}   ", 11)
    sheet.text(WIDE - 0.3, 0.78, shorten(caption, 110), 9, color=FAINT, ha="right")


def _heading(axes: "Axes", title: str) -> None:
    # Not set_title, which measures every tick of the panel before it knows where to stand.
    axes.annotate(title, (0, 1), (0, 7), "axes fraction", "offset points", fontsize=10, fontweight="bold")


def _frame(axes: "Axes", picture: ShownPicture) -> None:
    box = picture.canvas
    axes.set_xlim(box.left, box.right)
    axes.set_ylim(box.bottom, box.top)
    axes.set_aspect("equal", anchor="NW")
    axes.set_axis_off()


def _picture(axes: "Axes", picture: ShownPicture) -> None:
    axes.imshow(picture.shown, extent=_extent(picture.view), interpolation="antialiased")
    _frame(axes, picture)
    _heading(axes, "the picture")
    if picture.cropped:
        foot = "faded: cut off, the model never sees it"
        axes.text(0.0, -0.03, foot, fontsize=8, color=FAINT, va="top", transform=axes.transAxes)
    _highlight(axes, picture)


def _map(axes: "Axes", picture: ShownPicture, explanation: PictureExplanation, text: int) -> None:
    limit = limit_of(explanation.patches)
    axes.imshow(picture.shown.convert("L"), extent=_extent(picture.view), cmap="gray", vmin=-190, vmax=285)
    axes.imshow(colour(explanation.patches[..., text], limit), extent=_extent(picture.visible), interpolation="nearest")
    _frame(axes, picture)
    _heading(axes, "where it says yes and no" if explanation.against is None else "where, against the other texts")
    _highlight(axes, picture)
    _legend(axes, limit, ends_of(explanation.patches, limit))


def _highlight(axes: "Axes", picture: ShownPicture) -> None:
    """Whiten what the model does not see."""
    a, b = picture.canvas, picture.visible
    for left, right, top, bottom in (
        (a.left, a.right, a.top, b.top),
        (a.left, a.right, b.bottom, a.bottom),
        (a.left, b.left, b.top, b.bottom),
        (b.right, a.right, b.top, b.bottom),
    ):
        axes.fill_between([left, right], top, bottom, color="white", alpha=0.72, linewidth=0)


def _legend(axes: "Axes", limit: float, ends: tuple[str, str]) -> None:
    """Draw the colour scale under a map."""
    bar = axes.inset_axes((0.0, -0.105, 1.0, 0.035))
    bar.imshow(colour(torch.linspace(-limit, limit, 201)[None], limit), extent=(-1, 1, 0, 1), aspect="auto")
    bar.set_yticks([])
    bar.set_xticks([-1, 0, 1], [ends[0], "0", ends[1]], fontsize=8, color=FAINT)
    bar.tick_params(length=0, pad=2)
    bar.get_xticklabels()[0].set_horizontalalignment("left")
    bar.get_xticklabels()[2].set_horizontalalignment("right")


def _heads(axes: "Axes", explanation: PictureExplanation, text: int) -> None:
    limit = limit_of(explanation.heads)
    draw_grid(axes, explanation.heads[..., text], limit)
    axes.set_yticks(ticks(len(explanation.heads)))
    axes.tick_params(labelsize=8, labelcolor=FAINT)
    axes.set_xlabel("head", fontsize=8.5, color=FAINT, labelpad=2)
    axes.set_ylabel("layer, the first on top", fontsize=8.5, color=FAINT, labelpad=2)
    _heading(axes, f"which heads (full colour: ±{limit:.4f})")


def _layers(axes: "Axes", explanation: PictureExplanation, text: int) -> None:
    values = explanation.layers(text).tolist()
    edge = max(abs(v) for row in values for v in row) or 1.0
    places = range(len(values))
    attention, mlp = ([row[half] for row in values] for half in (0, 1))
    axes.barh([y - 0.19 for y in places], attention, 0.34, color=[ink(v) for v in attention])
    pale: dict[str, Any] = {"alpha": 0.42, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    axes.barh([y + 0.19 for y in places], mlp, 0.34, color=[ink(v) for v in mlp], **pale)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-1.08 * edge, 1.08 * edge)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks(ticks(len(values)))
    axes.set_xticks([-edge, 0, edge], [signed(-edge), "0", signed(edge)])
    axes.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.set_xlabel("full bar: attention · hatched: MLP", fontsize=8.5, color=FAINT, labelpad=2)
    _heading(axes, "which layers")


def _sums(axes: "Axes", explanation: PictureExplanation, text: int) -> None:
    """Return the sum in words: what adds up to the cosine."""
    axes.set_axis_off()
    total = "cosine" if explanation.versus is None else "difference"
    _heading(axes, f"what adds up to the {total}")
    lines = [*summands(explanation, text), Share(total, float(explanation.cosine[text]))]
    pitch = min(0.125, 0.875 / len(lines))  # under another picture there is a line more
    for i, (name, value) in enumerate(lines):
        y = 0.93 - pitch * i - (0.03 if name == total else 0)
        weight = "bold" if name == total else "normal"
        axes.text(0.0, y, name, fontsize=9, fontweight=weight, va="center")
        axes.text(1.0, y, signed(value), fontsize=9, fontweight=weight, ha="right", va="center", color=ink(value))
    axes.plot([0, 1], [0.93 - pitch * (len(lines) - 1) + 0.28 * pitch] * 2, color=LINE, linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.text(0.0, 0.0, f"left over (float error): {float(explanation.residue[text]):.0e}", fontsize=8.5, color=FAINT)


def _extent(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    top, left, bottom, right = box
    return left, right, bottom, top
