"""What both verbs print: a table that fits a terminal of 100 columns, each picture's name once."""

from collections.abc import Iterable, Sequence

__all__ = ["printed"]

MOST = 24  # pictures; the JSON file has all
WIDE = 100


def printed(columns: Sequence[str], pictures: Iterable[tuple[str, Sequence[Sequence[str]]]], file: str) -> None:
    """Print rows, grouped by picture.

    Args:
        columns: titles after "picture"; those of numbers begin with ">".
        pictures: name and rows of each; cells as many as titles.
        file: where the rest is, if there are too many.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    each = list(pictures)
    view = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    view.add_column("picture", overflow="fold", max_width=30)
    for title in columns:
        number = title.startswith(">")
        view.add_column(title.lstrip(">"), justify="right" if number else "left", overflow="fold", no_wrap=number)
    for name, rows in each[:MOST]:
        for at, row in enumerate(rows):
            view.add_row(Text("" if at else name), *(Text(cell) for cell in row), end_section=at == len(rows) - 1)
    console.print(view)
    if len(each) > MOST:
        console.print(f"… and {len(each) - MOST:,} more pictures{file and f': {file}'}", style="dim")
