"""Progress of a long walk: images done, rate, remaining time."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from clip_anatomy.progress import telling
from clip_anatomy.store.walk_progress import Progress

__all__ = ["line_of", "walking"]


@contextmanager
def walking(title: str) -> Generator[Callable[[Progress], None]]:
    """Show how far a walk is.

    Args:
        title: what is walked.

    Yields:
        A function to call with each `Progress`.
    """
    with telling(title) as tell:
        yield lambda progress: tell(line_of(title, progress), _seen(progress), progress.total)


def line_of(title: str, progress: Progress) -> str:
    """One line of progress.

    Example:
        >>> line_of("photos", Progress(done=120, failed=1, total=1000, rate=40.0))
        'photos: 121 of 1,000 images, 40.0/s, 22 s left, 1 not used'
    """
    parts = [f"{_seen(progress):,}{'' if progress.total is None else f' of {progress.total:,}'} images"]
    if progress.phase != "images":
        parts.append(progress.phase)
    elif progress.rate > 0:
        parts.append(f"{progress.rate:.1f}/s")
        if progress.seconds_left is not None:
            parts.append(f"{_span(progress.seconds_left)} left")
    if progress.failed:
        parts.append(f"{progress.failed:,} not used")
    return f"{title}: {', '.join(parts)}"


def _seen(progress: Progress) -> int:
    return progress.done + progress.failed + progress.known


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
