"""A repair on one screen: before, what was found, after."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_anatomy.anatomy.cue import Score
from clip_anatomy.library.store import Store
from clip_anatomy.measure.bootstrap import Move
from clip_anatomy.repairs.cue import Found
from clip_anatomy.repairs.repair import Repaired
from clip_anatomy.show.texts import shorten

__all__ = ["after", "before", "found_parts", "percent", "points", "ways", "within"]

WIDE = 126


def console() -> Console:
    """Where the screen goes: the terminal as it is, a wide page where there is none."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDE)


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


def _view(*columns: tuple[str, str]) -> Table:
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", header_style="bold")
    for name, side in columns:
        view.add_column(name, justify="right" if side == "right" else "left", no_wrap=side != "wrap")
    return view


def before(store: Store, found: Found) -> list[Text | Table]:
    """What is asked, and how well it is answered as things are (validation split)."""
    plan, split = found.plan, found.split
    names = ", ".join(plan.main.classes[:6]) + (", …" if len(plan.main.classes) > 6 else "")
    cue = ", ".join(plan.cue) or "not said in words"
    how = {
        "as they are": f"column {plan.column}",
        "agrees": f"whether the {plan.column} agrees",
        "crossed": f"class and {plan.column}",
        "guessed": "class and cue, the cue as the model sees it",
        "none": "",
    }[plan.rule]
    old = found.before
    groups = zip(old.groups, plan.names, strict=True)
    low = min((value, name) for value, name in groups if value == value)  # noqa: PLR0124
    lines = [
        ("", f"{len(store):,} pictures of {store.path.name}, model {store.about.model}"),
        ("question  ", f"{plan.main.column}? {names}"),
        ("suspected ", f"{shorten(cue, 60)}; {len(plan.names)} groups by {how}"),
        ("split     ", f"chosen on {len(split.validation):,}, reported on {len(split.test):,} others ({split.told})"),
        ("BEFORE    ", f"average {percent(old.average)}, worst group {percent(low[0])} ({low[1]}), mean over groups {percent(old.mean)}"),
    ]  # fmt: skip
    return [Text(name, style="bold").append(said, style="not bold") for name, said in lines]


def found_parts(found: Found, k: int = 7) -> list[Text | Table]:
    """The suspected heads and MLPs, three ways side by side."""
    view = _view(
        ("", "left"), ("part", "left"), ("by name", "left"), ("its first texts", "left"), ("by variance", "right"),
        ("alone: worst", "right"), ("mean", "right"),
    )  # fmt: skip
    for one in found.suspected(k):
        name = "an MLP has no name" if one.part.head < 0 else one.role.replace("_", " ")
        name += f" {one.sure:.0%}" if one.sure else ""
        variance = "" if one.variance is None else points(100 * one.variance)
        view.add_row(
            "●" if one.part in found.best.parts else "", one.part.name, name, Text(shorten(" · ".join(one.texts[:2]), 46)), variance,
            points(one.alone.worst - found.before.worst), points(one.alone.mean - found.before.mean),
        )  # fmt: skip
    head = Text("FOUND     ", style="bold").append(
        "what carries it. Variance: along the cue minus along the classes, ×10⁻⁴. Alone: points when only it is silenced",
        style="not bold",
    )
    return [Text(), head, view]


def ways(found: Found) -> list[Text | Table]:
    """Ways to choose what to silence, on the validation split."""
    view = _view(
        ("", "left"), ("way", "left"), ("silence", "wrap"), ("average", "right"), ("worst", "right"), ("mean", "right"),
        ("most lost elsewhere" if len(found.plan.questions) > 1 else "", "left"),
    )  # fmt: skip
    for one in found.choices:
        lost = _most_lost(found, one.score)
        mark = "▶" if one is found.best else ""
        view.add_row(
            mark, one.how, one.told, percent(one.score.average), percent(one.score.worst), percent(one.score.mean), lost
        )
    return [
        Text(),
        Text("WAYS      ", style="bold").append("to choose, on the validation split", style="not bold"),
        view,
    ]


def _most_lost(found: Found, told: Score) -> str:
    plan = found.plan
    lost = [
        (then - now, one.column + (" (the cue)" if at == plan.cue_question else ""))
        for at, (one, now, then) in enumerate(zip(plan.questions[1:], told.others, found.before.others, strict=True), 1)
    ]
    if not lost:
        return ""
    most, name = max(lost)
    return f"{name} {points(-most)}" if most > 0.0005 else "nothing"


def after(found: Found, told: Repaired, others: Sequence[tuple[str, Repaired]] = ()) -> list[Text | Table]:
    """What the repair did, on the test split, with intervals; and what the other ways would have done."""
    view = _view(
        ("", "left"), ("pictures", "right"), ("before", "right"), ("after", "right"), ("95 %", "right"), ("change", "right"),
        ("95 %", "right"),
    )  # fmt: skip

    def row(move: Move, name: str, style: str = "") -> None:
        view.add_row(
            name, f"{move.images:,}", percent(move.before), percent(move.after), within(move), points(move.change),
            within(move, change=True), style=style,
        )  # fmt: skip

    shown = sorted(told.groups, key=lambda one: one.before)
    for move in shown[:8]:
        row(move, move.name)
    if len(shown) > 8:
        view.add_row(f"… and {len(shown) - 8} more groups")
    row(told.worst, "worst group", "bold")
    row(told.average, f"average ({found.plan.main.column})", "bold")
    kept = ", ".join(
        f"{one.name}{' (the cue)' if one.name == told.cue else ''} {points(one.change)}" for one in told.others
    )
    lines: list[Text | Table] = [
        Text(),
        Text("AFTER     ", style="bold").append(f"with {told.selection.spec} at their mean, on the test split", style="not bold"),
        view,
    ]  # fmt: skip
    if kept:
        was, now = told.all_questions
        lines.append(Text(f"other questions: {kept}; mean of all {percent(was)} → {percent(now)}"))
    if others:
        said = "; ".join(
            f"{how}: worst {percent(one.worst.after)} ({within(one.worst)}), average {percent(one.average.after)}"
            for how, one in others
        )
        lines.append(Text(f"the other ways, same pictures: {said}"))
    return lines
