"""A repair on one screen: before, what was found, after."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.store.store import Store
from clip_anatomy.studies.bootstrap import AccuracyChange
from clip_anatomy.studies.cue_scores import Score
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair_effect import RepairEffect

__all__ = ["after", "before", "console", "percent", "points", "strategies", "suspects", "within"]

WIDE = 100
SIDE = 8  # columns of the words BEFORE, FOUND, SELECT, AFTER
GROUPS = 8

Piece = Text | Table


def percent(value: float) -> str:
    """Write an accuracy.

    Example:
        >>> percent(0.1284), percent(float("nan"))
        ('12.8 %', '–')
    """
    return f"{100 * value:.1f} %" if value == value else "–"  # noqa: PLR0124


def points(value: float) -> str:
    """Write a change of an accuracy, in points.

    Example:
        >>> points(-0.021)
        '−2.1'
    """
    return f"{100 * value:+.1f}".replace("-", "−")


def within(one: AccuracyChange, *, change: bool = False) -> str:
    """Write the 95 % interval of an accuracy after, or of its change."""
    low, high = one.change_interval if change else one.after_interval
    return f"{points(low)} to {points(high)}" if change else f"{100 * low:.1f}–{100 * high:.1f}"


def console() -> Console:
    """Open where the screen goes: the terminal as it is, a page of 100 columns where there is none."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDE)


def _beside(word: str, *lines: str) -> list[Piece]:
    """Put lines behind a bold word in the margin."""
    head = Text(f"{word:<{SIDE}}", style="bold").append(lines[0], style="not bold")
    return [head, *(Text(" " * SIDE + line) for line in lines[1:])]


def _view(*columns: tuple[str, str]) -> Table:
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", header_style="bold")
    for name, side in columns:
        view.add_column(name, justify="right" if side == "right" else "left", no_wrap=side != "wrap")
    return view


def before(store: Store, cue_search: CueSearch) -> list[Piece]:
    """Say what is asked, and how well it is answered as things are (validation half)."""
    task, split, old = cue_search.task, cue_search.split, cue_search.before
    names = ", ".join(task.main.classes[:6]) + (", …" if len(task.main.classes) > 6 else "")
    low = min((value, name) for value, name in zip(old.groups, task.group_names, strict=True) if value == value)  # noqa: PLR0124
    how = {
        "as they are": f"{len(task.group_names)} groups of column {task.column}",
        "agrees": f"{len(task.group_names)} groups by whether the {task.column} agrees",
        "crossed": f"{len(task.group_names)} groups, class and {task.column}",
        "guessed": f"{len(task.group_names)} groups, class and cue as the model sees it",
    }[task.rule]
    halves = f"Chosen on {len(split.validation):,} of {len(store):,} pictures, measured on {len(split.test):,} others: {split.source}"
    return [
        Text(f"{store.path.name}, model {store.manifest.model}"),
        *_beside(
            "BEFORE",
            f"Which {task.main.column}? {names}",
            f"{percent(old.average)} right on average, {percent(low[0])} in the worst group ({shorten(low[1], 24)}), mean of groups {percent(old.mean)}",
            f"Suspected: {shorten(cue_search.task.cue_in_words(), 60) or 'not known in words'}; {how}",
            halves,
        ),
    ]


def suspects(cue_search: CueSearch, k: int = 6) -> list[Piece]:
    """Return the suspected heads and MLPs with their three rankings."""
    view = _view(
        ("", "left"), ("part", "left"), ("by name", "left"), ("its first texts", "left"), ("by variance", "right"),
        ("by groups: worst", "right"), ("mean", "right"),
    )  # fmt: skip
    for one in cue_search.suspected(k):
        name = "(an MLP)" if one.part.head < 0 else one.role.replace("_", " ")
        name += f" {one.confidence:.0%}" if one.confidence else ""
        variance = "" if one.variance is None else points(100 * one.variance)
        view.add_row(
            "●" if one.part in cue_search.best.parts else "", one.part.name, name, Text(shorten(" · ".join(one.texts[:2]), 34)),
            variance, points(one.ablated_alone.worst - cue_search.before.worst), points(one.ablated_alone.mean - cue_search.before.mean),
        )  # fmt: skip
    head = _beside(
        "FOUND",
        "Heads and MLPs that carry it, by three rankings. Variance: along the cue's texts",
        "minus along the classes', ×10⁻⁴. Groups: points if only this part is ablated. ● suggested",
    )
    return [Text(), *head, view]


def strategies(cue_search: CueSearch) -> list[Piece]:
    """Return the parts that each strategy selects, on the validation half."""
    view = _view(
        ("", "left"), ("strategy", "left"), ("ablated", "wrap"), ("average", "right"), ("worst", "right"), ("mean", "right"),
        ("lost most elsewhere" if len(cue_search.task.tasks) > 1 else "", "left"),
    )  # fmt: skip
    for one in cue_search.candidates:
        lost = _most_lost(cue_search, one.score) + ("" if one.within_budget else " – too much")
        view.add_row(
            "▶" if one is cue_search.best else "", one.strategy, one.spec, percent(one.score.average), percent(one.score.worst),
            percent(one.score.mean), lost,
        )  # fmt: skip
    return [
        Text(),
        *_beside("SELECT", "Strategies, and what each does to the pictures to choose on. ▶ suggested"),
        view,
    ]


def _most_lost(cue_search: CueSearch, score: Score) -> str:
    task = cue_search.task
    lost = [
        (then - now, one.column + (" (the cue)" if at == task.cue_task else ""))
        for at, (one, now, then) in enumerate(
            zip(task.tasks[1:], score.others, cue_search.before.others, strict=True), 1
        )
        if now == now and then == then  # noqa: PLR0124
    ]
    if not lost:
        return ""
    most, name = max(lost)
    return f"{name} {points(-most)}" if most > 0.0005 else "nothing"


def after(cue_search: CueSearch, effect: RepairEffect, others: Sequence[tuple[str, RepairEffect]] = ()) -> list[Piece]:
    """Say what the repair did, on the test half, with intervals; and what the other strategies would have done."""
    view = _view(
        ("", "left"), ("pictures", "right"), ("before", "right"), ("after", "right"), ("95 %", "right"), ("change", "right"),
        ("95 %", "right"),
    )  # fmt: skip

    one_group = effect.worst_before.name == effect.worst_after.name

    def row(one: AccuracyChange, name: str, style: str = "") -> None:
        view.add_row(
            shorten(name, 34), "" if one is effect.worst and not one_group else f"{one.images:,}", percent(one.before), percent(one.after), within(one), points(one.change),
            within(one, change=True), style=style,
        )  # fmt: skip

    shown = sorted(effect.groups, key=lambda one: one.before)
    for one in shown[:GROUPS]:
        row(one, one.name)
    if len(shown) > GROUPS:
        view.add_row(f"… {len(shown) - GROUPS} more, in the JSON")
    row(effect.worst, "worst group", "bold")
    row(effect.average, f"average ({cue_search.task.main.column})", "bold")
    what = f" along the {effect.ablation.along}" if effect.ablation.along else ""
    lines: list[Piece] = [
        Text(),
        *_beside("AFTER", f"With {effect.selection.spec}{what} at their mean, on the pictures kept back"),
        view,
    ]
    if effect.others:
        kept_tasks = ", ".join(f"{_name(one.name, effect)} {points(one.change)}" for one in effect.others)
        was, now = effect.all_tasks
        lines.append(Text(f"Other tasks: {kept_tasks}. Mean of all tasks {percent(was)} → {percent(now)}"))
    if others:
        worst = ", ".join(
            f"{strategy} {percent(one.worst.after)} (average {percent(one.average.after)})" for strategy, one in others
        )
        lines.append(Text(f"Worst group by the other strategies: {worst}"))
    return lines


def _name(task: str, effect: RepairEffect) -> str:
    return f"{task} (the cue)" if task == effect.cue_task else task
