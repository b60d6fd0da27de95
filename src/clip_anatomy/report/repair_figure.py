"""The figure of a repair: pictures whose answer changed, groups before and after, what was ablated and why it was suspected."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, INK, LINE, NO_INK, YES_INK, canvas, png
from clip_anatomy.studies.bootstrap import AccuracyChange
from clip_anatomy.studies.cue_suspects import Suspect
from clip_anatomy.studies.example_images import ChangedAnswers, CueExamples
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair_effect import RepairEffect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_accuracies", "draw_legend", "draw_repair", "lines_of"]

WIDE, HEAD, FOOT = 13.4, 1.3, 0.5  # inches: the figure, its title, its last line
STRIP = 2.0  # of the strip of pictures
SCATTER = 3.0  # of the scatter with its title and axes
ROWS = (0.32, 0.54)  # of a line of accuracies: as far apart as there is room, within these
PART, PARTS = 1.0, 6  # of an ablated part, and how many are shown
BEFORE, AFTER, GREY = NO_INK, YES_INK, "#9aa1ab"
PLAIN: dict[str, Any] = {"parse_math": False, "va": "center"}
MOST_GROUPS = 16
LEFT = -0.69  # of the width of the accuracies: where their headings begin
APART = 11  # points between two labels of the scatter
Line = tuple[str, AccuracyChange | None, bool]


def draw_repair(
    cue_search: CueSearch,
    effect: RepairEffect,
    caption: str,
    *,
    changed: ChangedAnswers | None = None,
    examples: Sequence[CueExamples] = (),
    pictures: Mapping[str, Image.Image] | None = None,
) -> bytes:
    """Draw the whole story of a repair.

    Args:
        cue_search: what was found.
        effect: what ablating did on the test split.
        caption: a line about store and model.
        changed: pictures whose answer changed.
        examples: pictures behind the ablated parts.
        pictures: id → small picture; those that are missing are left out.

    Returns:
        A PNG.
    """
    pictures = pictures or {}
    lines = lines_of(cue_search, effect)
    parts = _parts_in(effect)
    ablated = [one for one in cue_search.suspects if (one.part.layer, one.part.head) in parts]
    ablated = sorted(ablated, key=lambda one: -(one.variance or 0.0))
    strip = STRIP if changed is not None and any(one.row.id in pictures for one in changed.shown) else 0.0
    right = 0.5 + max(min(len(ablated), PARTS), 1) * PART + 0.35 + SCATTER
    row = min(max((right - 1.1) / len(lines), ROWS[0]), ROWS[1])
    tall = max(right, 1.1 + row * len(lines))
    high = HEAD + strip + tall + FOOT
    with canvas(WIDE, high) as sheet:
        sheet.text(0.25, 0.46, _headline(effect), 17.0, fontweight="bold")
        for line, text in enumerate(_subtitle(cue_search, effect)):
            sheet.text(0.25, 0.8 + 0.22 * line, shorten(text, 160), 10.5)
        if strip and changed is not None:
            _draw_changed_answers(sheet.axes(0.25, HEAD + 0.05, WIDE - 0.5, 1.75), changed, pictures, WIDE - 0.5)
        top = HEAD + strip + 0.15
        draw_legend(sheet.axes(2.15, top, 2.75, 0.25))
        draw_accuracies(sheet.axes(2.15, top + 0.3, 2.75, row * len(lines)), lines)
        few = f" ({PARTS} of {len(ablated)})" if len(ablated) > PARTS else ""
        heading = f"What was ablated{few}, and pictures for which it writes most toward the cue"
        sheet.text(7.1, top + 0.15, heading, fontweight="bold")
        shown = ablated[:PARTS]
        _draw_parts(sheet.axes(7.1, top + 0.3, 6.1, max(len(shown), 1) * PART), shown, examples, pictures)
        below = HEAD + strip + tall - SCATTER + 0.1
        heading = "Why these: every part, by three rankings, before any test picture was seen"
        sheet.text(7.1, below, heading, fontweight="bold")
        _draw_suspects(sheet.axes(7.75, below + 0.42, 5.0, SCATTER - 1.05), cue_search, parts)
        sheet.text(0.25, high - 0.16, _foot(cue_search, caption), 8.5, color=FAINT)
    return png(sheet.figure)


def _headline(effect: RepairEffect) -> str:
    if not effect.selection:
        return f"Nothing was ablated: the worst group stays at {100 * effect.worst.before:.0f} % right"
    heads, mlps = len(effect.selection.heads), len(effect.selection.mlps)
    counts = [f"{count} {name}{'s'[: count > 1]}" for count, name in ((heads, "head"), (mlps, "MLP")) if count]
    verb = "lifts" if effect.worst.change >= 0 else "lowers"
    low, now = effect.worst_before.name, effect.worst_after.name
    which = f"“{shorten(low, 40)}”" if low == now else "the worst group"
    first, last = 100 * effect.worst.before, 100 * effect.worst.after
    return f"Ablating {' and '.join(counts)} {verb} {which} from {first:.0f} % to {last:.0f} % right"


def _subtitle(cue_search: CueSearch, effect: RepairEffect) -> tuple[str, str]:
    column, cue = cue_search.task.main.column, cue_search.task.cue_in_words()
    task = f"Asked “which {column}?”, the model also goes by {cue}." if cue else f"The task: which {column}?"
    average = f"All pictures: {100 * effect.average.before:.1f} → {100 * effect.average.after:.1f} % right."
    if not effect.selection:
        return task, f"Nothing was replaced. {average}"
    of_that = " of that" if effect.ablation.along_cue and cue else ""
    average = f"{100 * effect.average.before:.1f} → {100 * effect.average.after:.1f} %"
    return (
        task,
        f"What {_named(effect)} write{of_that} was replaced by its mean; nothing was trained. All pictures: {average} right.",
    )


def _named(effect: RepairEffect) -> str:
    heads = ", ".join(f"{layer}.{head}" for layer, head in effect.selection.heads[:8])
    more = f" and {len(effect.selection.heads) - 8} more" if len(effect.selection.heads) > 8 else ""
    mlps = ", ".join(f"MLP {layer}" for layer in effect.selection.mlps)
    return " and ".join(filter(None, [f"heads {heads}{more}" if heads else "", mlps]))


def _foot(cue_search: CueSearch, caption: str) -> str:
    split = cue_search.split
    return shorten(
        f"{caption}. Parts were chosen on {len(split.validation):,} pictures; all accuracies are of {len(split.test):,} others. Heads "
        "are named LAYER.HEAD, counted from 0.",
        230,
    )


def _parts_in(effect: RepairEffect) -> set[tuple[int, int]]:
    """Layer and head of what was ablated; head −1 for an MLP."""
    return {*effect.selection.heads, *((layer, -1) for layer in effect.selection.mlps)}


def lines_of(cue_search: CueSearch, effect: RepairEffect) -> list[Line]:
    """List lines of the accuracies: (name, change or None for a heading, bold)."""
    column = cue_search.task.main.column
    shown = sorted(effect.groups, key=lambda one: one.before)
    where = "each group of pictures" if len(shown) <= MOST_GROUPS else f"the {MOST_GROUPS} worst of {len(shown)} groups"
    lines: list[Line] = [(f"“Which {column}?”, in {where}", None, True)]
    lines += [(one.name, one, False) for one in shown[:MOST_GROUPS]]
    lines += [("mean over groups", effect.mean, True), ("all pictures", effect.average, True)]
    if effect.others:
        lines += [("Other tasks, asked of the same repaired model", None, True)]
        lines += [
            (one.name + (" (the cue)" if one.name == effect.cue_task else ""), one, False) for one in effect.others
        ]
    return lines


def draw_accuracies(axes: "Axes", lines: Sequence[Line]) -> None:
    """Draw a line for each group: from the accuracy before to that after, both with 95 % intervals."""
    beside = axes.get_yaxis_transform()

    def write(x: float, y: float, text: str, **more: Any) -> None:
        axes.text(x, y, text, transform=beside, **PLAIN, **more)

    for place, (name, one, bold) in enumerate(lines):
        y = float(place)
        weight = "bold" if bold else "normal"
        if one is None:
            write(LEFT, y, name, fontsize=10, fontweight="bold", bbox={"color": "white", "pad": 1.5})
            continue
        write(-0.03, y - 0.02, shorten(name, 28), ha="right", fontweight=weight)
        for within, shift, hue in ((one.before_interval, 0.16, BEFORE), (one.after_interval, -0.16, AFTER)):
            axes.plot([100 * end for end in within], [y + shift] * 2, color=hue, linewidth=1.2, alpha=0.5)
        if abs(one.change) > 0.03:
            arrow = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 0.9, "shrinkA": 4, "shrinkB": 4}
            axes.annotate("", (100 * one.after, y), (100 * one.before, y), arrowprops=arrow)
        axes.plot(100 * one.before, y, "o", color="white", markeredgecolor=BEFORE, markersize=6.5, markeredgewidth=1.4)
        axes.plot(100 * one.after, y, "o", color=AFTER, markersize=5.5)
        write(1.42, y, f"{100 * one.before:.0f} → {100 * one.after:.0f} %", ha="right", fontweight=weight)
        change = f"{100 * one.change:+.1f}".replace("-", "−")
        large = AFTER if one.change >= 0.03 else BEFORE if one.change <= -0.03 else FAINT
        write(1.66, y, change, ha="right", color=large, fontweight="bold" if abs(one.change) >= 0.03 else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(-2, 102)
    axes.set_yticks([])
    axes.set_xticks([0, 25, 50, 75, 100], ["0 %", "25", "50", "75", "100 %"], color=FAINT, fontsize=8.5)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_legend(axes: "Axes") -> None:
    """Tell what the marks of the accuracies mean; the axes are one line high and as wide as those of the accuracies."""
    axes.set_axis_off()
    axes.set_xlim(-2, 102)
    axes.set_ylim(0, 1)
    axes.plot(0, 0.5, "o", color="white", markeredgecolor=BEFORE, markeredgewidth=1.4, markersize=6.5, clip_on=False)
    axes.text(3, 0.5, "right before", **PLAIN)
    axes.plot(36, 0.5, "o", color=AFTER, markersize=5.5)
    axes.text(39, 0.5, "right after", **PLAIN)
    axes.plot([70, 77], [0.5] * 2, color=GREY, linewidth=1.2)
    axes.text(80, 0.5, "95 % interval", **PLAIN)
    axes.text(170.5, 0.5, "points", ha="right", color=FAINT, **PLAIN)


def _draw_changed_answers(
    axes: "Axes", changed: ChangedAnswers, pictures: Mapping[str, Image.Image], wide: float
) -> None:
    """Draw a strip of pictures whose answer changed, the answer before and after; the axes are in inches."""
    axes.set_axis_off()
    axes.set_xlim(0, wide)
    side, step = 1.0, 1.32
    corrected = [one for one in changed.shown if one.corrected and one.row.id in pictures]
    worse = [one for one in changed.shown if not one.corrected and one.row.id in pictures]
    x = 0.0
    for some, head in ((corrected, f"{changed.won:,} answers were put right"), (worse, f"{changed.lost:,} went wrong")):
        axes.text(x, -0.17, head + (", such as" if some else ""), fontsize=10, fontweight="bold", **PLAIN)
        for one in some:
            axes.imshow(pictures[one.row.id], extent=(x, x + side, side, 0), interpolation="antialiased", aspect="auto")
            for y, answer, right in (
                (side + 0.14, one.before, not one.corrected),
                (side + 0.33, one.after, one.corrected),
            ):
                mark, hue = ("✓", AFTER) if right else ("✗", BEFORE)
                when = "was" if y < side + 0.2 else "now"
                axes.text(x, y, f"{when}: {shorten(answer, 13)} {mark}", fontsize=9, color=hue, **PLAIN)
            x += step
        x += 0.75 if some else 2.4
    axes.set_xlim(0, wide)
    axes.set_ylim(side + 0.45, -0.3)


def _draw_parts(
    axes: "Axes",
    parts: Sequence[Suspect],
    examples: Sequence[CueExamples],
    pictures: Mapping[str, Image.Image],
) -> None:
    """Draw the ablated parts under each other: name, texts, the pictures for which each writes most toward the cue; the axes are in inches."""
    axes.set_axis_off()
    for at, one in enumerate(parts):
        y = at * PART
        name = f"head {one.part.name}" if one.part.head >= 0 else f"MLP {one.part.layer}"
        axes.text(0, y + 0.14, name, fontsize=11, fontweight="bold", **PLAIN)
        called = (
            f"about {one.role} ({one.confidence:.0%} sure)".replace("_", " ")
            if one.confidence
            else "about several things"
        )
        axes.text(0, y + 0.35, called if one.part.head >= 0 else "(MLPs have no texts)", **PLAIN)
        for line, text in enumerate(one.texts[:2]):
            axes.text(0, y + 0.54 + 0.17 * line, shorten(f"“{text}”", 30), fontsize=8, color=FAINT, **PLAIN)
        mine = [example for example in examples if example.part == one.part]
        for place, example in enumerate(mine[:2]):
            x = 2.05 + 2.1 * place
            axes.text(x, y + 0.05, f"most “{shorten(example.text, 22)}”", fontsize=8, color=FAINT, **PLAIN)
            for k, row in enumerate(example.rows[:3]):
                if (image := pictures.get(row.id)) is not None:
                    box = (x + 0.67 * k, x + 0.67 * k + 0.62, y + 0.78, y + 0.16)
                    axes.imshow(image, extent=box, interpolation="antialiased", aspect="auto", zorder=2)
    axes.set_xlim(0, 6.1)
    axes.set_ylim(max(len(parts), 1) * PART, 0)
    if not parts:
        axes.text(0, 0.2, "nothing", color=FAINT, **PLAIN)


def _draw_suspects(axes: "Axes", cue_search: CueSearch, ablated: set[tuple[int, int]]) -> None:
    """Draw all parts: variance along the cue against what ablating them alone does; colour by name, ring if ablated."""
    unknown = all(one.variance is None for one in cue_search.suspects)
    marks: list[tuple[float, float, str]] = []
    for one in sorted(cue_search.suspects, key=lambda one: (one.part.layer, one.part.head) in ablated):
        x = 0.0 if one.variance is None else 1e4 * one.variance
        y = 100 * (one.ablated_alone.mean - cue_search.before.mean)
        called = bool(one.role) and one.role in cue_search.cue_roles
        chosen = (one.part.layer, one.part.head) in ablated
        axes.plot(x, y, "o" if one.part.head >= 0 else "s", color=AFTER if called else GREY, markersize=6,
                  markeredgecolor=INK if chosen else "white", markeredgewidth=1.5 if chosen else 0.5)  # fmt: skip
        if chosen:
            marks.append((x, y, one.part.name if one.part.head >= 0 else f"MLP {one.part.layer}"))
    axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.margins(x=0.09, y=0.1)
    _labels(axes, marks)
    label = (
        "no cue in words was given" if unknown else "writes of the classes  ←  variance, ×10⁻⁴  →  writes of the cue"
    )
    axes.set_xlabel(label, fontsize=8.5, color=FAINT)
    axes.set_ylabel("ablated alone:\npoints, mean over groups", fontsize=8.5, color=FAINT)
    axes.tick_params(labelsize=8, labelcolor=FAINT, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    roles = " or ".join(cue_search.cue_roles).replace("_", " ")
    keys = [("o", GREY, "white", "head"), ("s", GREY, "white", "MLP")]
    keys += [("o", AFTER, "white", f"its texts are about {roles}")] if roles else []
    keys += [("o", "white", INK, "ablated")]
    x = 0.0
    for marker, hue, edge, text in keys:
        axes.plot(
            x, 1.075, marker, color=hue, markeredgecolor=edge, markersize=6, transform=axes.transAxes, clip_on=False
        )
        axes.text(x + 0.018, 1.07, text, transform=axes.transAxes, fontsize=8.5, **PLAIN)
        x += 0.06 + 0.0135 * len(text)


def _labels(axes: "Axes", marks: Sequence[tuple[float, float, str]]) -> None:
    """Draw names of the marks in a column at the right edge, apart from each other, each with a line to its mark."""
    bottom, top = axes.get_ylim()
    tall = axes.get_window_extent().height * 72 / axes.figure.dpi
    right = axes.get_xlim()[1]
    last = tall + APART
    for x, y, name in sorted(marks, key=lambda mark: -mark[1]):
        last = min((y - bottom) / (top - bottom) * tall, last - APART)
        at = bottom + last / tall * (top - bottom)
        axes.plot([x, right], [y, at], color=FAINT, linewidth=0.6, zorder=0.5, clip_on=False)
        axes.annotate(name, (right, at), (4, 0), textcoords="offset points", fontsize=8.5, va="center", fontweight="bold",
                      annotation_clip=False)  # fmt: skip
    axes.set_xlim(right=right)
    axes.set_ylim(bottom, top)
