"""Numbers and tables as plain text."""

from collections.abc import Sequence

__all__ = ["decimals", "signed", "text_table"]

WIDEST = 44  # letters of a cell


def decimals(value: float) -> str:
    """Write three decimals, with a real minus."""
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    """Write three decimals with sign, and a real minus.

    Example:
        >>> signed(-0.5)
        '−0.500'
    """
    return f"{value:+.3f}".replace("-", "−")


def text_table(names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ("", "score")) -> str:
    """Lay out cells in columns; columns without any content are left out.

    Args:
        names: of the columns.
        rows: cells, as many as names in each.
        right: columns that are aligned to the right.

    Example:
        >>> print(text_table(["", "score", "picture"], [["1", "0.5", "a.jpg"]]))
           score  picture
        1    0.5  a.jpg
    """
    shown = [at for at, _ in enumerate(names) if any(row[at] for row in rows)]
    cells = [[_cut(row[at]) for at in shown] for row in (names, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(shown))]
    aligned = ["rjust" if names[at] in right else "ljust" for at in shown]
    lines = (
        "  ".join(getattr(cell, how)(width) for cell, how, width in zip(row, aligned, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
