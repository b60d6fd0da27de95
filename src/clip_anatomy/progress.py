"""Everything that is printed goes through here: results on stdout, notes and progress on stderr, control characters written out.

Short work shows its progress at a terminal only, long work also in a log, a line every ten seconds.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clip_anatomy.errors import visible

__all__ = ["LOG", "Progress", "ask", "log", "note", "say", "say_drawn", "shown", "silent"]

LOG = logging.getLogger("clip_anatomy")
LOG.addHandler(
    logging.NullHandler()
)  # else Python prints errors that no program listens to: they are said by their own means
"""Where everything that is noted or under way goes too; programs attach handlers of their own."""

LOG_SECONDS = 10.0
_COLOUR = re.compile("(\x1b\\[[0-9;]*m)")
Progress = Callable[[str, int, int | None], None]
"""What every long function calls: what is being done, how much of it is done, how much there is (None: not known)."""


def silent(what: str, done: int, total: int | None) -> None:
    """Say nothing but to a log that listens to details: the `Progress` of a function that was given none."""
    if LOG.isEnabledFor(logging.DEBUG):
        log(what, logging.DEBUG, done=done, total=total)


def log(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event under the name `clip_anatomy`; what programs read is in the record's `fields`."""
    LOG.log(level, "%s", message, extra={"fields": fields})


@dataclass
class _Rate:
    """When the current step began, and where it stood then."""

    what: str = ""
    began: float = 0.0
    first: int = 0
    logged: float = 0.0

    def line(self, what: str, done: int, total: int | None) -> str:
        """Return one line: step, how far, rate, remaining time.

        Example:
            >>> _Rate().line("drawing", 3, 1_200)
            'drawing: 3 of 1,200'
        """
        now, what = time.monotonic(), visible(what)
        step = what.partition(" (")[0]  # counts in brackets may change within a step
        began = step != self.what
        if began:
            self.what, self.began, self.first = step, now, done
        spent, fresh = now - self.began, done - self.first
        if began or now - self.logged >= LOG_SECONDS or done == total:
            rate = fresh / spent if fresh > 0 and spent > 0 else None
            left = (total - done) / rate if rate and total is not None else None
            log(what, done=done, total=total, per_second=rate, seconds_left=left)
            self.logged = now
        if total is not None and total <= 1:
            return what
        line = f"{what}: {done:,}" + ("" if total is None else f" of {total:,}")
        if fresh <= 0 or spent <= 0:
            return line
        line += f", {fresh / spent:.1f}/s"
        return line if total is None else f"{line}, {_duration(spent * (total - done) / fresh)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def shown(title: str = "") -> Generator[Progress]:
    """Show how far work is: a bar at a terminal; in a log a line every ten seconds, with rate and remaining time.

    Args:
        title: what stands there until the first step is named.

    Yields:
        The `Progress` to hand to a function.
    """
    rate = _Rate()
    if not sys.stderr.isatty():
        printed = time.monotonic()

        def log(what: str, done: int, total: int | None) -> None:
            nonlocal printed
            line = rate.line(what, done, total)
            if time.monotonic() - printed >= LOG_SECONDS:
                printed = time.monotonic()
                print(line, file=sys.stderr, flush=True)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    words = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), words, BarColumn(bar_width=30), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(visible(title), total=None)

        def draw(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=rate.line(what, done, total), completed=done, total=total)

        yield draw


def say(text: object, *, end: str = "\n") -> None:
    """Print what was asked for on stdout."""
    print(visible(str(text)), end=end)


def say_drawn(console: Any, drawing: Any) -> None:
    """Print a drawing of rich (a table, coloured text) on a console's file: of its commands to a terminal only colours pass."""
    with console.capture() as drawn:
        console.print(drawing)
    pieces = _COLOUR.split(drawn.get())  # text, colour, text, …
    console.file.write("".join(piece if at % 2 else visible(piece) for at, piece in enumerate(pieces)))
    console.file.flush()


def note(message: object) -> None:
    """Print one line for people on stderr, so that stdout stays what was asked for."""
    log(str(message))
    print(visible(" ".join(str(message).split())), file=sys.stderr)


def ask(question: str) -> str | None:
    """Print a question on stderr and read one line; None where nobody answers."""
    print(visible(question), end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        return None
    return line.strip()
