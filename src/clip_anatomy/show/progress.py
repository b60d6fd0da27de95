"""Progress for people at a terminal, on stderr; nothing at all in a pipe or a log."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int | None = None) -> Generator[Callable[[], None]]:
    """Show that something is going on, and how far it is.

    Args:
        title: what is being done.
        total: number of steps; None where it is not known.

    Yields:
        A function to call after each step.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    known = (BarColumn(bar_width=30), MofNCompleteColumn()) if total is not None else ()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *known, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def note(message: str) -> None:
    """One line for people on stderr, so that stdout stays what was asked for."""
    print(" ".join(message.split()), file=sys.stderr)
