"""Figure and folder of an alignment: each channel's correlation, with chance and the noise ceiling beside it."""

from typing import TYPE_CHECKING

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, INK, LINE, PLAIN, YES_INK, canvas, png
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.studies.align import MAP, MAP_FORMAT, NUMBERS, SCHEMA, Alignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "KIND", "figure", "html", "write"]

FIGURE = "align.png"
KIND = Kind("alignment", NUMBERS, SCHEMA, (NUMBERS, MAP, FIGURE))
MOST, BAR, WIDE = 30, 0.28, 8.0  # channels drawn; inches


def write(result: Alignment, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    from safetensors.torch import save

    output.write(FIGURE, png(figure(result)))
    about = {"digest": result.digest} | ({} if result.space is None else {"space": result.space.to_dict(output.out)})
    tensors = {"weight": result.weight.contiguous(), "intercept": result.intercept}
    output.write(MAP, save(tensors, {"format": MAP_FORMAT}))
    output.write(NUMBERS, as_json(result.to_dict() | about))


def html(result: Alignment) -> str:
    """Return the figure above the table, for notebooks."""
    return notebook_figures([(png(figure(result)), "alignment", result.summary())])


def figure(result: Alignment) -> "Figure":
    """Draw the best channels as bars: predicted ones filled, with the chance level and the noise ceiling as marks."""
    order = result.r.argsort(descending=True)[:MOST].tolist()
    good, tall = result.predicted, max(1.2, BAR * len(order))
    with canvas(WIDE, tall + 1.6) as sheet:
        sheet.text(0.3, 0.38, "How well each channel is predicted", 13, weight="bold")
        marks = "bar: correlation over stimuli held out; | chance (95 % of shuffles)" + (
            "" if result.ceiling is None else "; ◇ noise ceiling"
        )
        sheet.text(0.3, 0.65, f"{marks}; pale: not above chance", 9, color=FAINT)
        axes = sheet.axes(2.4, 0.85, WIDE - 2.9, tall)
        values = result.r[order].tolist()
        axes.barh(range(len(order)), values, color=[YES_INK if good[at] else LINE for at in order], height=0.65)
        axes.plot(result.chance[order].tolist(), range(len(order)), "|", color=INK, markersize=9)
        if result.ceiling is not None:
            axes.plot(result.ceiling[order].tolist(), range(len(order)), "D", color=INK, fillstyle="none", markersize=5)
        axes.set_yticks(range(len(order)), [shorten(result.channels[at], 28) for at in order], **PLAIN)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(min(0.0, *values) - 0.02, 1.02)
        axes.set_xlabel("correlation r")
        axes.axvline(0, color=LINE, linewidth=0.8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return sheet.figure
