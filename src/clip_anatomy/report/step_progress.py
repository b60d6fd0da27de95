"""Progress of work in several steps: what is being done, its rate and the remaining time."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from clip_anatomy.progress import telling

__all__ = ["stages"]


@dataclass
class _Pace:
    """When the current step began, and where it stood then."""

    what: str = ""
    start: float = 0.0
    first: int = 0

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
    with telling() as tell:
        yield lambda what, done, total: tell(pace.line(what, done, total), done, total)
