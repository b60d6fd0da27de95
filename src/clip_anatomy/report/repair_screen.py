"""A repair on one screen: before, what was found, after."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.store.store import Store
from clip_anatomy.studies.bootstrap import Move
from clip_anatomy.studies.cue_result import Found
from clip_anatomy.studies.cue_scores import Score
from clip_anatomy.studies.repair import Repaired

__all__ = ["after", "before", "console", "found_parts", "percent", "points", "ways", "within"]

WIDE = 100
SIDE = 8  # columns of the words BEFORE, FOUND, WAYS, AFTER
GROUPS = 8

Piece = Text | Table


def percent(value: float) -> str:
    """An accuracy.

    Example:
        >>> percent(0.1284), percent(float("nan"))
        ('12.8 %', '–')
    """
    return f"{100 * value:.1f} %" if value == value else "–"  # noqa: PLR0124


def points(value: float) -> str:
    """A change of an accuracy, in points.

    Example:
        >>> points(-0.021)
        '−2.1'
    """
    return f"{100 * value:+.1f}".replace("-", "−")


def within(move: Move, *, change: bool = False) -> str:
    """The 95 % interval of an accuracy after, or of its change."""
    low, high = move.change_within if change else move.after_within
    return f"{points(low)} to {points(high)}" if change else f"{100 * low:.1f}–{100 * high:.1f}"


def console() -> Console:
    """Where the screen goes: the terminal as it is, a page of 100 columns where there is none."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDE)


def _said(word: str, *lines: str) -> list[Piece]:
    """Lines behind a bold word in the margin."""
    head = Text(f"{word:<{SIDE}}", style="bold").append(lines[0], style="not bold")
    return [head, *(Text(" " * SIDE + line) for line in lines[1:])]


def _view(*columns: tuple[str, str]) -> Table:
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", header_style="bold")
    for name, side in columns:
        view.add_column(name, justify="right" if side == "right" else "left", no_wrap=side != "wrap")
    return view


def before(store: Store, found: Found) -> list[Piece]:
    """What is asked, and how well it is answered as things are (validation half)."""
    plan, split, old = found.plan, found.split, found.before
    names = ", ".join(plan.main.classes[:6]) + (", …" if len(plan.main.classes) > 6 else "")
    low = min((value, name) for value, name in zip(old.groups, plan.names, strict=True) if value == value)  # noqa: PLR0124
    how = {
        "as they are": f"{len(plan.names)} groups of column {plan.column}",
        "agrees": f"{len(plan.names)} groups by whether the {plan.column} agrees",
        "crossed": f"{len(plan.names)} groups, class and {plan.column}",
        "guessed": f"{len(plan.names)} groups, class and cue as the model sees it",
        "none": "no groups",
    }[plan.rule]
    halves = f"Chosen on {len(split.validation):,} of {len(store):,} pictures, measured on {len(split.test):,} others: {split.told}"
    return [
        Text(f"{store.path.name}, model {store.manifest.model}"),
        *_said(
            "BEFORE",
            f"Which {plan.main.column}? {names}",
            f"{percent(old.average)} right on average, {percent(low[0])} in the worst group ({shorten(low[1], 24)}), mean of groups {percent(old.mean)}",
            f"Suspected: {shorten(found.plan.cue_in_words(), 60) or 'not said in words'}; {how}",
            halves,
        ),
    ]


def found_parts(found: Found, k: int = 6) -> list[Piece]:
    """The suspected heads and MLPs, three ways side by side."""
    view = _view(
        ("", "left"), ("part", "left"), ("by name", "left"), ("its first texts", "left"), ("by variance", "right"),
        ("by groups: worst", "right"), ("mean", "right"),
    )  # fmt: skip
    for one in found.suspected(k):
        name = "(an MLP)" if one.part.head < 0 else one.role.replace("_", " ")
        name += f" {one.sure:.0%}" if one.sure else ""
        variance = "" if one.variance is None else points(100 * one.variance)
        view.add_row(
            "●" if one.part in found.best.parts else "", one.part.name, name, Text(shorten(" · ".join(one.texts[:2]), 34)),
            variance, points(one.alone.worst - found.before.worst), points(one.alone.mean - found.before.mean),
        )  # fmt: skip
    told = _said(
        "FOUND",
        "Heads and MLPs that carry it, three ways side by side. Variance: along the cue's texts",
        "minus along the classes', ×10⁻⁴. Groups: points if only this part is silenced. ● suggested",
    )
    return [Text(), *told, view]


def ways(found: Found) -> list[Piece]:
    """Ways to choose what to silence, on the validation half."""
    view = _view(
        ("", "left"), ("way", "left"), ("silence", "wrap"), ("average", "right"), ("worst", "right"), ("mean", "right"),
        ("lost most elsewhere" if len(found.plan.questions) > 1 else "", "left"),
    )  # fmt: skip
    for one in found.choices:
        lost = _most_lost(found, one.score) + ("" if one.bears else " – too much")
        view.add_row(
            "▶" if one is found.best else "", one.how, one.told, percent(one.score.average), percent(one.score.worst),
            percent(one.score.mean), lost,
        )  # fmt: skip
    return [
        Text(),
        *_said("WAYS", "to choose what to silence, and what each does to the pictures to choose on. ▶ suggested"),
        view,
    ]


def _most_lost(found: Found, told: Score) -> str:
    plan = found.plan
    lost = [
        (then - now, one.column + (" (the cue)" if at == plan.cue_question else ""))
        for at, (one, now, then) in enumerate(zip(plan.questions[1:], told.others, found.before.others, strict=True), 1)
        if now == now and then == then  # noqa: PLR0124
    ]
    if not lost:
        return ""
    most, name = max(lost)
    return f"{name} {points(-most)}" if most > 0.0005 else "nothing"


def after(found: Found, told: Repaired, others: Sequence[tuple[str, Repaired]] = ()) -> list[Piece]:
    """What the repair did, on the test half, with intervals; and what the other ways would have done."""
    view = _view(
        ("", "left"), ("pictures", "right"), ("before", "right"), ("after", "right"), ("95 %", "right"), ("change", "right"),
        ("95 %", "right"),
    )  # fmt: skip

    one_group = told.worst_before.name == told.worst_after.name

    def row(move: Move, name: str, style: str = "") -> None:
        view.add_row(
            shorten(name, 34), "" if move is told.worst and not one_group else f"{move.images:,}", percent(move.before), percent(move.after), within(move), points(move.change),
            within(move, change=True), style=style,
        )  # fmt: skip

    shown = sorted(told.groups, key=lambda one: one.before)
    for move in shown[:GROUPS]:
        row(move, move.name)
    if len(shown) > GROUPS:
        view.add_row(f"… {len(shown) - GROUPS} more, in the JSON")
    row(told.worst, "worst group", "bold")
    row(told.average, f"average ({found.plan.main.column})", "bold")
    what = " along the cue" if told.silence.along else ""
    lines: list[Piece] = [
        Text(),
        *_said("AFTER", f"With {told.selection.spec}{what} at their mean, on the pictures kept back"),
        view,
    ]
    if told.others:
        kept = ", ".join(f"{_name(one.name, told)} {points(one.change)}" for one in told.others)
        was, now = told.all_questions
        lines.append(Text(f"Other questions: {kept}. Mean of all questions {percent(was)} → {percent(now)}"))
    if others:
        said = ", ".join(
            f"{how} {percent(one.worst.after)} (average {percent(one.average.after)})" for how, one in others
        )
        lines.append(Text(f"Worst group by the other ways: {said}"))
    return lines


def _name(question: str, told: Repaired) -> str:
    return f"{question} (the cue)" if question == told.cue else question
