"""The figure of a repair of the text tower: groups before and after, and what each head alone would do."""

from typing import TYPE_CHECKING

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, YES_INK, canvas, png
from clip_anatomy.report.repair_figure import draw_accuracies, draw_legend

if TYPE_CHECKING:
    from clip_anatomy.studies.text_repair import TextRepair

__all__ = ["draw_text_repair"]

WIDE, TOP, ROW, GROUPS, HEADS = 13.4, 1.5, 0.36, 16, 10


def draw_text_repair(result: "TextRepair") -> bytes:
    """Draw accuracies before and after beside those with single heads ablated: a PNG."""
    effect, task = result.effect, result.task
    groups = len(effect.groups)
    kept = sorted(result.rows[:groups], key=lambda one: one.before)[:GROUPS]
    lines = [(one.name, one, at >= len(kept)) for at, one in enumerate((*kept, *result.rows[groups : groups + 3]))]
    heads = result.heads[:HEADS]
    high = TOP + ROW * max(len(lines), len(heads)) + 0.7
    with canvas(WIDE, high) as sheet:
        title = f"Class texts without what {effect.ablation.spec or 'no head'} of the text tower write{' of the cue' if effect.ablation.along_cue else ''}"
        sheet.text(0.25, 0.46, shorten(title, 100), 17.0, fontweight="bold")
        classes = shorten(", ".join(task.main.classes), 120)
        worst = f"worst group {100 * effect.worst.before:.0f} → {100 * effect.worst.after:.0f} %"
        sheet.text(
            0.25,
            0.8,
            f"Which {task.main.column}? {classes}. {worst}; {len(result.split.test):,} pictures that had no part in the choice.",
            10.5,
        )
        draw_legend(sheet.axes(2.6, TOP - 0.4, 2.6, 0.25))
        draw_accuracies(sheet.axes(2.6, TOP, 2.6, ROW * len(lines)), lines)
        sheet.text(
            8.3,
            TOP - 0.25,
            "Worst group with one head alone at its mean",
            fontweight="bold",
        )
        axes = sheet.axes(9.2, TOP, 3.6, ROW * len(heads))
        values = [100 * one.alone.worst for one in heads]
        axes.barh(range(len(heads)), values, color=[YES_INK if one.ablated else FAINT for one in heads], height=0.6)
        axes.axvline(100 * result.before.worst, color=FAINT, linewidth=1, linestyle=":")
        axes.set_yticks(
            range(len(heads)), [f"{one.head[0]}.{one.head[1]}{' ablated' if one.ablated else ''}" for one in heads]
        )
        axes.set_ylim(len(heads) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 50, 100], ["0 %", "50", "100 %"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        caption = f"{result.store.path.name}, model {result.store.manifest.model}; right, on the pictures to choose on; dotted: with no head ablated"
        sheet.text(0.25, high - 0.16, caption, 8.5, color=FAINT)
    return png(sheet.figure)
