"""Progress for people, on stderr: short work shows at a terminal only, long work also in a log, a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Progress", "note", "progress", "shown", "silent", "telling"]

LOG_SECONDS = 10.0
Progress = Callable[[str, int, int | None], None]
"""What every long function calls: what is being done, how much of it is done, how much there is (None: not known)."""


def silent(what: str, done: int, total: int | None) -> None:
    """Say nothing: the `Progress` of a function that was given none."""


@dataclass
class _Rate:
    """When the current step began, and where it stood then."""

    what: str = ""
    began: float = 0.0
    first: int = 0

    def line(self, what: str, done: int, total: int | None) -> str:
        now = time.monotonic()
        step = what.partition(" (")[0]  # counts in brackets may change within a step
        if step != self.what:
            self.what, self.began, self.first = step, now, done
        spent, fresh = now - self.began, done - self.first
        if total is not None and total <= 1:
            return what
        said = f"{what}: {done:,}" + ("" if total is None else f" of {total:,}")
        if fresh <= 0 or spent <= 0:
            return said
        said += f", {fresh / spent:.1f}/s"
        return said if total is None else f"{said}, {_duration(spent * (total - done) / fresh)} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def shown(title: str = "") -> Generator[Progress]:
    """Show how far work is: a bar at a terminal; in a log a line every ten seconds, with rate and remaining time.

    Args:
        title: what stands there until the first step is told.

    Yields:
        The `Progress` to hand to a function.
    """
    rate = _Rate()
    with telling(title) as tell:
        yield lambda what, done, total: tell(rate.line(what, done, total), done, total)


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


@contextmanager
def telling(title: str = "") -> Generator[Callable[[str, int, int | None], None]]:
    """Show a line of words and how far long work is: a bar at a terminal, the line alone every ten seconds in a log.

    Args:
        title: what stands beside the bar until the first word comes.

    Yields:
        A function to call with the line, how much is done, and how much there is (None where it is not known).
    """
    if not sys.stderr.isatty():
        said = time.monotonic()

        def log(line: str, done: int, total: int | None) -> None:
            nonlocal said
            if time.monotonic() - said >= LOG_SECONDS:
                said = time.monotonic()
                print(line, file=sys.stderr, flush=True)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda line, done, total: bar.update(task, description=line, completed=done, total=total)


def note(message: str) -> None:
    """One line for people on stderr, so that stdout stays what was asked for."""
    print(" ".join(message.split()), file=sys.stderr)
