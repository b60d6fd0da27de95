"""Runs of a store's arrays that stay mapped between searches: mapping 384 MB anew costs 60 ms of page faults, twice the scan itself."""

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["mapped", "run"]

MOST_BYTES = 512_000_000  # mapped at once; pages are the file's own, but they count as this process's memory

_RUNS: OrderedDict[tuple[object, ...], np.ndarray] = OrderedDict()
_LOCK = threading.Lock()


def mapped(path: Path, dtype: type, count: int, first: int = 0, *, ahead: bool = False) -> np.ndarray:
    """Numbers of a file as an array of one axis, read when they are looked at.

    Args:
        path: the file; not empty beyond `first`.
        dtype: of the numbers.
        count: how many.
        first: byte at which they begin.
        ahead: ask the system to read them now, beside what we do.

    Returns:
        An array that can be written to without reaching the file (torch takes no other).
    """
    with path.open("rb") as file:
        start = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = first - start + count * np.dtype(dtype).itemsize
        pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        if ahead and hasattr(mmap, "MADV_WILLNEED"):
            pages.madvise(mmap.MADV_WILLNEED)
        return np.frombuffer(pages, dtype, count, first - start)


def run(path: str, dtype: type, count: int, first: int, check: Callable[[Path], None]) -> np.ndarray:
    """The same, kept for the next call; the runs that were not asked for longest are let go.

    A file that was replaced is checked and mapped again. Two threads may map the same one; both are right.

    Args:
        path: the file.
        dtype: of the numbers.
        count: how many.
        first: byte at which they begin.
        check: refuses a file that is missing or damaged; called before it is mapped.
    """
    try:
        now = os.stat(path)  # noqa: PTH116 (Path.stat costs more than the rest of this function)
    except FileNotFoundError:
        check(Path(path))
        raise
    key = (path, first, count, now.st_ino, now.st_mtime_ns, now.st_size)
    with _LOCK:
        if key in _RUNS:
            _RUNS.move_to_end(key)
            return _RUNS[key]
    check(Path(path))
    found = mapped(Path(path), dtype, count, first, ahead=True)
    with _LOCK:
        _RUNS[key] = found
        total = sum(array.nbytes for array in _RUNS.values())
        while total > MOST_BYTES and len(_RUNS) > 1:
            total -= _RUNS.popitem(last=False)[1].nbytes
    return found
