"""Progress of work in several steps on stderr: a bar with rate and remaining time at a terminal, a plain line every ten seconds in a log."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["stages"]

LOG_SECONDS = 10.0


@dataclass
class _Pace:
    """When the current step began, where it stood then, and when it was last spoken of."""

    what: str = ""
    start: float = 0.0
    first: int = 0
    said: float = field(default_factory=time.monotonic)

    def line(self, what: str, done: int, total: int) -> str:
        """One line: step, how far, rate, remaining time."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.start, self.first = what, now, done
        spent, fresh = now - self.start, done - self.first
        if total <= 1:
            return what
        if fresh <= 0 or spent <= 0:
            return f"{what}: {done:,} of {total:,}"
        return f"{what}: {done:,} of {total:,}, {fresh / spent:.1f}/s, {spent * (total - done) / fresh:.0f} s left"


@contextmanager
def stages() -> Generator[Callable[[str, int, int], None]]:
    """Show how far work is that has several steps.

    Yields:
        A function to call with what is being done, how much of it is done, and how much there is.
    """
    pace = _Pace()
    if not sys.stderr.isatty():

        def log(what: str, done: int, total: int) -> None:
            line = pace.line(what, done, total)
            if time.monotonic() - pace.said >= LOG_SECONDS:
                pace.said = time.monotonic()
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
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=pace.line(what, done, total), completed=done, total=total
        )
