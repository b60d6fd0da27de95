"""The figure of a repair: pictures whose answer changed, groups before and after, what was silenced and why it was suspected."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from clip_anatomy.report.explain_figure import DPI, FAINT, STYLE, families
from clip_anatomy.report.repair_panels import (
    draw_accuracies,
    draw_flips,
    draw_legend,
    draw_parts,
    draw_suspects,
    lines_of,
    parts_in,
)
from clip_anatomy.report.repair_wording import cue_of
from clip_anatomy.report.typed_texts import shorten
from clip_anatomy.studies.cue_result import Found
from clip_anatomy.studies.examples import Example, Flips
from clip_anatomy.studies.repair import Repaired

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_repair"]

WIDE, HEAD, FOOT = 13.4, 1.3, 0.5  # inches: the figure, its title, its last line
STRIP = 2.0  # of the strip of pictures
SCATTER = 3.0  # of the scatter with its title and axes
ROWS = (0.32, 0.54)  # of a line of accuracies: as far apart as there is room, within these
PART, PARTS = 1.0, 6  # of a silenced part, and how many are shown


def draw_repair(
    found: Found,
    told: Repaired,
    caption: str,
    *,
    seen: Flips | None = None,
    examples: Sequence[Example] = (),
    pictures: Mapping[str, Image.Image] | None = None,
) -> bytes:
    """Draw the whole story of a repair.

    Args:
        found: what was found.
        told: what silencing did on the test split.
        caption: a line about store and model.
        seen: pictures whose answer changed.
        examples: pictures behind the silenced parts.
        pictures: id → small picture; those that are missing are left out.

    Returns:
        A PNG.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = lines_of(found, told)
    silenced = [one for one in found.suspects if (one.part.layer, one.part.head) in parts_in(told)]
    silenced = sorted(silenced, key=lambda one: -(one.variance or 0.0))
    strip = STRIP if seen is not None and any(one.row.id in (pictures or {}) for one in seen.shown) else 0.0
    right = 0.5 + max(min(len(silenced), PARTS), 1) * PART + 0.35 + SCATTER
    row = min(max((right - 1.1) / len(lines), ROWS[0]), ROWS[1])
    tall = max(right, 1.1 + row * len(lines))
    high = HEAD + strip + tall + FOOT
    with rc_context({**STYLE, "font.family": families()}):
        figure = Figure(figsize=(WIDE, high), dpi=DPI, facecolor="white")

        def axes(x: float, top: float, wide: float, tall: float) -> "Axes":
            return figure.add_axes((x / WIDE, 1 - (top + tall) / high, wide / WIDE, tall / high))

        def head(x: float, top: float, text: str, size: float = 10.0, **more: Any) -> None:
            figure.text(x / WIDE, 1 - top / high, text, fontsize=size, parse_math=False, **more)

        head(0.25, 0.46, _headline(told), 17.0, fontweight="bold")
        for line, text in enumerate(_subtitle(found, told)):
            head(0.25, 0.8 + 0.22 * line, shorten(text, 160), 10.5)
        if strip and seen is not None:
            draw_flips(axes(0.25, HEAD + 0.05, WIDE - 0.5, 1.75), seen, pictures or {}, WIDE - 0.5)
        top = HEAD + strip + 0.15
        draw_legend(axes(2.15, top, 2.75, 0.25))
        draw_accuracies(axes(2.15, top + 0.3, 2.75, row * len(lines)), lines)
        few = f" ({PARTS} of {len(silenced)})" if len(silenced) > PARTS else ""
        head(7.1, top + 0.15, f"What was silenced{few}, and pictures for which it speaks up most", fontweight="bold")
        shown = silenced[:PARTS]
        draw_parts(axes(7.1, top + 0.3, 6.1, max(len(shown), 1) * PART), shown, examples, pictures or {}, PART)
        below = HEAD + strip + tall - SCATTER + 0.1
        head(7.1, below, "Why these: every part, judged three ways before any test picture was seen", fontweight="bold")
        draw_suspects(axes(7.75, below + 0.42, 5.0, SCATTER - 1.05), found, told)
        head(0.25, high - 0.16, _foot(found, caption), 8.5, color=FAINT)
        return _png(figure)


def _png(figure: "Figure") -> bytes:
    file = BytesIO()
    with warnings.catch_warnings():  # a letter that no installed font has is drawn as a box
        warnings.filterwarnings("ignore", message=".*Glyph.*missing from.*")
        figure.savefig(file, format="png", metadata={"Software": "clip-anatomy"}, pil_kwargs={"compress_level": 4})
    return file.getvalue()


def _headline(told: Repaired) -> str:
    if not told.selection:
        return f"Nothing was silenced: the worst group stays at {100 * told.worst.before:.0f} % right"
    heads, mlps = len(told.selection.heads), len(told.selection.mlps)
    named = [f"{count} {name}{'s'[: count > 1]}" for count, name in ((heads, "head"), (mlps, "MLP")) if count]
    verb = "lifts" if told.worst.change >= 0 else "lowers"
    low, now = told.worst_before.name, told.worst_after.name
    which = f"“{shorten(low, 40)}”" if low == now else "the worst group"
    first, last = 100 * told.worst.before, 100 * told.worst.after
    return f"Silencing {' and '.join(named)} {verb} {which} from {first:.0f} % to {last:.0f} % right"


def _subtitle(found: Found, told: Repaired) -> tuple[str, str]:
    column, cue = found.plan.main.column, cue_of(found)
    asked = f"Asked “which {column}?”, the model also goes by {cue}." if cue else f"The question: which {column}?"
    average = f"All pictures: {100 * told.average.before:.1f} → {100 * told.average.after:.1f} % right."
    if not told.selection:
        return asked, f"Nothing was replaced. {average}"
    of_that = " of that" if told.silence.along and cue else ""
    average = f"{100 * told.average.before:.1f} → {100 * told.average.after:.1f} %"
    return (
        asked,
        f"What {_named(told)} write{of_that} was replaced by its mean; nothing was trained. All pictures: {average} right.",
    )


def _named(told: Repaired) -> str:
    heads = ", ".join(f"{layer}.{head}" for layer, head in told.selection.heads[:8])
    more = f" and {len(told.selection.heads) - 8} more" if len(told.selection.heads) > 8 else ""
    mlps = ", ".join(f"MLP {layer}" for layer in told.selection.mlps)
    return " and ".join(filter(None, [f"heads {heads}{more}" if heads else "", mlps]))


def _foot(found: Found, caption: str) -> str:
    split = found.split
    return shorten(
        f"{caption}. Parts were chosen on {len(split.validation):,} pictures; all accuracies are of {len(split.test):,} others. Heads "
        "are named LAYER.HEAD, counted from 0.",
        230,
    )
