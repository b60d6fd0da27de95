"""Progress of a long walk on stderr: a bar with rate and remaining time at a terminal, a plain line every ten seconds in a log."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from clip_anatomy.library.walk import Progress

__all__ = ["line_of", "walking"]

LOG_SECONDS = 10.0


@contextmanager
def walking(title: str) -> Generator[Callable[[Progress], None]]:
    """Show how far a walk is.

    Args:
        title: what is walked.

    Yields:
        A function to call with each `Progress`.
    """
    if not sys.stderr.isatty():
        said = time.monotonic()

        def log(progress: Progress) -> None:
            nonlocal said
            if time.monotonic() - said >= LOG_SECONDS:
                said = time.monotonic()
                print(line_of(title, progress), file=sys.stderr, flush=True)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def draw(progress: Progress) -> None:
            seen = progress.done + progress.failed + progress.known
            bar.update(task, description=line_of(title, progress), completed=seen, total=progress.total)

        yield draw


def line_of(title: str, progress: Progress) -> str:
    """One line of progress.

    Example:
        >>> line_of("photos", Progress(done=120, failed=1, total=1000, rate=40.0))
        'photos: 121 of 1,000 images, 40.0/s, 22 s left, 1 not used'
    """
    seen = progress.done + progress.failed + progress.known
    parts = [f"{seen:,}{'' if progress.total is None else f' of {progress.total:,}'} images"]
    if progress.phase != "images":
        parts.append(progress.phase)
    elif progress.rate > 0:
        parts.append(f"{progress.rate:.1f}/s")
        if progress.seconds_left is not None:
            parts.append(f"{_span(progress.seconds_left)} left")
    if progress.failed:
        parts.append(f"{progress.failed:,} not used")
    return f"{title}: {', '.join(parts)}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
