"""How numbers and parts of a repair are said, on the screen and in the figure."""

from clip_anatomy.studies.bootstrap import Move
from clip_anatomy.studies.cue_result import Found

__all__ = ["cue_of", "percent", "points", "within"]


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


def cue_of(found: Found, most: int = 6) -> str:
    """What may mislead the model, in words: "sky, water", "the digit (1, 2, 3, 4)"; "" if it was not said in words."""
    plan = found.plan
    said = ", ".join(plan.cue[:most]) + (", …" if len(plan.cue) > most else "")
    return f"the {plan.column} ({said})" if said and plan.rule in ("agrees", "crossed") else said
