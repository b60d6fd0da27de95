"""Figures as text of at most a hundred characters a line: names beside words, aligned columns, what was skipped."""

from collections.abc import Sequence
from math import isfinite
from textwrap import fill
from typing import Any

__all__ = ["LABEL", "configuration_lines", "described", "finite", "percent", "skipped_lines", "table_lines"]

WIDE = 100
LABEL = 28
SHOWN = 8  # skipped pictures that are named one by one


def described(name: str, description: str, wide: int = LABEL) -> str:
    """Return a name, then words in a column of their own.

    Example:
        >>> described("pictures", "3 of 3", 12)
        'pictures    3 of 3'
    """
    head = f"{name:<{wide - 1}} "
    return fill(
        description, WIDE, initial_indent=head, subsequent_indent=" " * wide, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def configuration_lines(configuration: dict[str, Any]) -> list[str]:
    """Return every setting, long ones over several lines; what is empty is left out."""
    lines: list[str] = []
    for key, value in configuration.items():
        if isinstance(value, dict):
            value = [f"{k}={v}" for k, v in value.items()]  # noqa: PLW2901
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value)) or None  # noqa: PLW2901
        if value is not None:
            lines.append(described(key, str(value)))
    return lines


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned columns: the first to the left, the others to the right; a title of several words may stand on two lines.

    Example:
        >>> table_lines(["method", "AP"], [["raw", "51.2 %"]])
        ['method      AP', 'raw     51.2 %']
    """
    titles = [title.split(" ", 1) if len(title) > SHOWN + 2 else [title] for title in head]
    tops = [title[0] if len(title) > 1 else "" for title in titles]
    lines = [*([tops] if any(tops) else []), [title[-1] for title in titles], *rows]
    wide = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return [
        "  ".join(f"{cell:>{wide[at]}}" if at else f"{cell:<{wide[at]}}" for at, cell in enumerate(line)).rstrip()
        for line in lines
    ]


def skipped_lines(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Return id and reason of what could not be measured, the first few one by one."""
    lines = [f"skipped {name}: {why}" for name, why in skipped[:SHOWN]]
    return lines + (
        [f"and {len(skipped) - SHOWN} more were skipped (all of them are in the JSON)"] if skipped[SHOWN:] else []
    )


def percent(value: float, digits: int = 2) -> str:
    """Return a share in per cent, a dash for NaN."""
    return f"{100 * value:.{digits}f} %" if isfinite(value) else "–"


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same with None for numbers that are none, ready for JSON."""
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()}
