"""The figure of a repair: groups before and after, what was silenced and why it was suspected, what else changed."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from clip_anatomy.measure.bootstrap import Move
from clip_anatomy.repairs.cue import Found, Suspect
from clip_anatomy.repairs.repair import Example, Repaired
from clip_anatomy.show.figures import DPI, FAINT, INK, LINE, STYLE, families
from clip_anatomy.show.palette import NO, YES
from clip_anatomy.show.texts import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_repair"]

WIDE = 13.4
ROW = 0.4  # inches of a line of the left panel
SCATTER = 3.3  # inches of the scatter and its title
PART = 1.12  # inches of a silenced part
PARTS = 5
BEFORE, AFTER = ("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (NO, YES))
PLAIN: dict[str, Any] = {"parse_math": False}


def draw_repair(
    found: Found,
    told: Repaired,
    caption: str,
    examples: Sequence[Example] = (),
    pictures: Mapping[str, Image.Image] | None = None,
) -> bytes:
    """Draw the whole story of a repair.

    Args:
        found: what was found.
        told: what silencing did on the test split.
        caption: a line about store and model.
        examples: pictures behind the silenced parts.
        pictures: id → small picture; those that are missing are left out.

    Returns:
        A PNG.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = _lines(found, told)
    silenced = [one for one in found.suspects if (one.part.layer, one.part.head) in _parts(told)]
    silenced = sorted(silenced, key=lambda one: -(one.variance or 0.0))
    few = f" ({PARTS} of {len(silenced)})" if len(silenced) > PARTS else ""
    silenced = silenced[:PARTS]
    # The scatter stands under whichever column is shorter.
    left, right = len(lines) * ROW + 0.9, max(len(silenced), 1) * PART + 0.3
    under = left + SCATTER <= right + 1.5
    tall = max(left + SCATTER, right) if under else max(left, right + SCATTER)
    high = 1.35 + tall + 0.65
    with rc_context({**STYLE, "font.family": families()}):
        figure = Figure(figsize=(WIDE, high), dpi=DPI, facecolor="white")

        def axes(x: float, top: float, wide: float, tall: float) -> "Axes":
            return figure.add_axes((x / WIDE, 1 - (top + tall) / high, wide / WIDE, tall / high))

        figure.text(0.25 / WIDE, 1 - 0.46 / high, _headline(told), fontsize=16, fontweight="bold", **PLAIN)
        figure.text(0.25 / WIDE, 1 - 0.8 / high, shorten(_subtitle(found, told), 190), fontsize=10, **PLAIN)
        _accuracies(axes(2.3, 1.5, 4.0, len(lines) * ROW + 0.1), lines)
        _silenced(axes(7.1, 1.35, 6.05, len(silenced) * PART + 0.25), silenced, few, examples, pictures or {})
        bottom = 1.35 + (max(left, right - SCATTER) if under else max(right, left - SCATTER))
        _ways(axes(1.0 if under else 7.75, bottom + 0.55, 5.3, SCATTER - 1.05), found, told)
        figure.text(0.25 / WIDE, 0.16 / high, _foot(found, caption), fontsize=8.5, color=FAINT, **PLAIN)
        file = BytesIO()
        with warnings.catch_warnings():  # a letter that no installed font has is drawn as a box
            warnings.filterwarnings("ignore", message=".*Glyph.*missing from.*")
            figure.savefig(file, format="png", metadata={"Software": "clip-anatomy"}, pil_kwargs={"compress_level": 4})
    return file.getvalue()


def _parts(told: Repaired) -> set[tuple[int, int]]:
    return {*told.selection.heads, *((layer, -1) for layer in told.selection.mlps)}


def _headline(told: Repaired) -> str:
    if not told.selection:
        return "Nothing was silenced: no part was found whose silence helps"
    heads, mlps = len(told.selection.heads), len(told.selection.mlps)
    verb = "lifts" if told.worst.change >= 0 else "lowers"
    named = [f"{count} {name}{'s'[: count > 1]}" for count, name in ((heads, "head"), (mlps, "MLP")) if count]
    what = " and ".join(named)
    return f"Silencing {what} {verb} the worst group from {100 * told.worst.before:.0f} % to {100 * told.worst.after:.0f} %"


def _subtitle(found: Found, told: Repaired) -> str:
    cue = f"Suspected cue: {', '.join(found.plan.cue[:5])}. " if found.plan.cue else ""
    return (
        f"Question: which {found.plan.main.column}? {cue}Silenced, that is replaced by their mean: {_named(told)}. Average "
        f"{100 * told.average.before:.1f} % → {100 * told.average.after:.1f} %."
    )


def _named(told: Repaired) -> str:
    heads = ", ".join(f"{layer}.{head}" for layer, head in told.selection.heads[:8])
    more = f" and {len(told.selection.heads) - 8} more" if len(told.selection.heads) > 8 else ""
    mlps = ", ".join(f"MLP {layer}" for layer in told.selection.mlps)
    return ", ".join(filter(None, [f"heads {heads}{more}" if heads else "", mlps])) or "nothing"


def _foot(found: Found, caption: str) -> str:
    split = found.split
    return shorten(
        f"{caption}. Chosen on {len(split.validation):,} pictures; all accuracies are of {len(split.test):,} others, lines are 95 % "
        "bootstrap intervals. Parts are named LAYER.HEAD, counted from 0.",
        230,
    )


def _lines(found: Found, told: Repaired) -> list[tuple[str, Move | None, bool]]:
    """Lines of the left panel: (name, move or None for a heading, bold)."""
    shown = sorted(told.groups, key=lambda one: one.before)[:16]
    lines: list[tuple[str, Move | None, bool]] = [(f"which {found.plan.main.column}? in each group", None, True)]
    lines += [(one.name, one, False) for one in shown]
    lines += [("mean over groups", told.mean, True), ("average of all pictures", told.average, True)]
    if told.others:
        lines += [("the other questions, with the same parts silenced", None, True)]
        lines += [(one.name + (" (the cue)" if one.name == told.cue else ""), one, False) for one in told.others]
    return lines


def _accuracies(axes: "Axes", lines: Sequence[tuple[str, Move | None, bool]]) -> None:
    for y, (name, move, bold) in enumerate(lines):
        weight = "bold" if bold else "normal"
        if move is None:
            axes.text(
                -0.53,
                y,
                name,
                transform=axes.get_yaxis_transform(),
                fontsize=10,
                fontweight="bold",
                va="center",
                **PLAIN,
            )
            continue
        axes.text(
            -0.02,
            y,
            shorten(name, 30),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontweight=weight,
            **PLAIN,
        )
        axes.plot([100 * end for end in move.before_within], [y + 0.13] * 2, color=BEFORE, linewidth=1, alpha=0.55)
        axes.plot([100 * end for end in move.after_within], [y - 0.13] * 2, color=AFTER, linewidth=1, alpha=0.55)
        if abs(move.change) > 0.012:
            arrow = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 0.9, "shrinkA": 3, "shrinkB": 3}
            axes.annotate("", (100 * move.after, y), (100 * move.before, y), arrowprops=arrow)
        axes.plot(100 * move.before, y, "o", color="white", markeredgecolor=BEFORE, markersize=6.5, markeredgewidth=1.4)
        axes.plot(100 * move.after, y, "o", color=AFTER, markersize=5.5)
        change = f"{100 * move.change:+.1f}".replace("-", "−")
        axes.text(
            1.02, y, change, transform=axes.get_yaxis_transform(), va="center", fontweight=weight, color=INK, **PLAIN
        )
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(-2, 102)
    axes.set_yticks([])
    axes.set_xticks([0, 25, 50, 75, 100], ["0 %", "25", "50", "75", "100 %"], color=FAINT, fontsize=8.5)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.plot(
        0.0,
        1.035,
        "o",
        color="white",
        markeredgecolor=BEFORE,
        markeredgewidth=1.4,
        markersize=6.5,
        transform=axes.transAxes,
        clip_on=False,
    )
    axes.text(0.03, 1.035, "accuracy before", transform=axes.transAxes, va="center")
    axes.plot(0.35, 1.035, "o", color=AFTER, markersize=5.5, transform=axes.transAxes, clip_on=False)
    axes.text(0.38, 1.035, "after", transform=axes.transAxes, va="center")
    axes.text(1.03, 1.035, "change", transform=axes.transAxes, va="center", color=FAINT)


def _silenced(
    axes: "Axes", parts: Sequence[Suspect], few: str, examples: Sequence[Example], pictures: Mapping[str, Image.Image]
) -> None:
    axes.set_xlim(0, 6.05)
    axes.set_ylim(len(parts) * PART + 0.25, 0)
    axes.set_axis_off()
    axes.text(
        0,
        0,
        f"What was silenced, and pictures for which it speaks up most{few}",
        fontsize=10,
        fontweight="bold",
        **PLAIN,
    )
    for at, one in enumerate(parts):
        y = 0.25 + at * PART
        name = f"head {one.part.name}" if one.part.head >= 0 else f"MLP {one.part.layer}"
        axes.text(0, y + 0.2, name, fontsize=11, fontweight="bold", va="center", **PLAIN)
        called = f"about {one.role} ({one.sure:.0%} sure)".replace("_", " ") if one.sure else "about several things"
        about = "no texts are known for MLPs" if one.part.head < 0 else called
        axes.text(0, y + 0.42, about, va="center", **PLAIN)
        for line, text in enumerate(one.texts[:2]):
            axes.text(
                0, y + 0.61 + 0.17 * line, shorten(f"“{text}”", 30), va="center", fontsize=8, color=FAINT, **PLAIN
            )
        mine = [example for example in examples if example.part == one.part]
        for place, example in enumerate(mine[:2]):
            x = 2.0 + 2.1 * place
            axes.text(x, y + 0.1, f"most “{shorten(example.text, 22)}”", fontsize=8, color=FAINT, va="center", **PLAIN)
            for k, row in enumerate(example.rows[:3]):
                if (image := pictures.get(row.id)) is not None:
                    box = (x + 0.67 * k, x + 0.67 * k + 0.62, y + 0.84, y + 0.22)
                    axes.imshow(image, extent=box, interpolation="antialiased", aspect="auto", zorder=2)
    axes.set_xlim(0, 6.05)
    axes.set_ylim(len(parts) * PART + 0.25, 0)


def _ways(axes: "Axes", found: Found, told: Repaired) -> None:
    """All parts: variance along the cue against what silencing them alone does; colour by name, ring if silenced."""
    silenced = _parts(told)
    along = [0.0 if one.variance is None else 1e4 * one.variance for one in found.suspects]
    does = [100 * (one.alone.mean - found.before.mean) for one in found.suspects]
    for one, x, y in zip(found.suspects, along, does, strict=True):
        called = one.role in found.cue_roles
        chosen = (one.part.layer, one.part.head) in silenced
        axes.plot(x, y, "o" if one.part.head >= 0 else "s", color=AFTER if called else "#9aa1ab", markersize=5,
                  markeredgecolor=INK if chosen else "white", markeredgewidth=1.4 if chosen else 0.5)  # fmt: skip
        if chosen:
            name = one.part.name if one.part.head >= 0 else f"MLP {one.part.layer}"
            axes.annotate(name, (x, y), (5, 3), textcoords="offset points", fontsize=8)
    axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.set_xlabel("variance along the cue minus along the classes (×10⁻⁴)", fontsize=8.5, color=FAINT)
    axes.set_ylabel("silenced alone: points", fontsize=8.5, color=FAINT)
    axes.tick_params(labelsize=8, labelcolor=FAINT, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    roles = " or ".join(found.cue_roles)
    colours = f"; orange: named {roles}" if roles else ""
    axes.annotate(f"Three ways to find it (ring: silenced{colours})", (0, 1), (-40, 8), "axes fraction", "offset points",
                  fontsize=10, fontweight="bold")  # fmt: skip
