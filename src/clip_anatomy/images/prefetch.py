"""Decode ahead of the model, and hand out batches: work done by threads, in order, never more than a window of it.

Decoding releases Python's lock, so threads keep a model busy without copying pixels between processes; and when this
process is killed, nothing of it lives on to hold the store's lock.
"""

import os
import queue
import threading
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

from clip_anatomy.images.batch_size import BatchSize
from clip_anatomy.number_ranges import whole

__all__ = ["batches_ahead", "prefetched"]

T = TypeVar("T")
R = TypeVar("R")

POLL_SECONDS = 0.05
MOST_WORKERS = 256
MOST_AHEAD = 512  # results that may wait


def batches_ahead(
    items: Iterable[T],
    work: Callable[[T], R],
    size: BatchSize,
    *,
    workers: int | None = None,
    gentle: bool = False,
    shape: Callable[[R], Hashable] | None = None,
    on_error: Callable[[T, Exception], None] | None = None,
) -> Generator[list[tuple[T, R | Exception]]]:
    """Do `work` on items, and hand them out in batches of one shape, in order as far as shapes allow.

    Args:
        items: see `prefetched`.
        work: called on each item.
        size: how many make a batch; asked before each one, so it may change meanwhile.
        workers: threads; one a core when None, none with 0: then nothing is done ahead of need.
        gentle: see `prefetched`.
        shape: what the results of one batch have in common; everything goes together when None.
        on_error: given each item whose work failed, which is then in no batch; when None it stands in its batch, with its error.

    Example:
        >>> [[x for _, x in batch] for batch in batches_ahead(range(5), lambda x: x * x, BatchSize.fixed(2))]
        [[0, 1], [4, 9], [16]]
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    whole("workers", workers, 0, MOST_WORKERS)
    window = max(2 * workers, min(2 * size.largest, MOST_AHEAD))
    waiting: dict[Hashable, list[tuple[T, R | Exception]]] = {}
    with closing(prefetched(items, work, workers=workers, window=window, gentle=gentle)) as stream:
        for item, decoded in stream:
            if on_error is not None and isinstance(decoded, Exception):
                on_error(item, decoded)
                continue
            key = None if shape is None or isinstance(decoded, Exception) else shape(decoded)
            group = waiting.setdefault(key, [])
            group.append((item, decoded))
            if len(group) >= size.current:
                yield waiting.pop(key)
    yield from waiting.values()


def prefetched(
    items: Iterable[T], work: Callable[[T], R], *, workers: int, window: int, gentle: bool = False
) -> Generator[tuple[T, R | Exception]]:
    """Do `work` on items ahead of the reader, in threads.

    Args:
        items: walked by one thread of its own, so that a slow disk does not stop the reader.
        work: called on each item, in any of the threads.
        workers: how many threads; with 0 the reader does the work, when it comes to an item.
        window: how many items may be finished or under way beyond the reader: bounds the memory.
        gentle: run at a lower priority than the reader: for a model that runs on the same cores.

    Yields:
        Each item, in order, with its result or the exception that `work` raised.

    Raises:
        Exception: what walking `items` raised, in its place.

    Example:
        >>> [square for _, square in prefetched(range(4), lambda x: x * x, workers=2, window=2)]
        [0, 1, 4, 9]
    """
    if not workers:
        for item in items:
            try:
                result: R | Exception = work(item)
            except Exception as error:  # handed to the reader, as from a thread
                result = error
            yield item, result
        return
    line: queue.Queue[tuple[T, Future[R]] | Exception | None] = queue.Queue(maxsize=max(1, window))
    closed = threading.Event()
    pool = _pool(workers, gentle)

    def put(entry: tuple[T, Future[R]] | Exception | None) -> bool:
        while not closed.is_set():
            try:
                line.put(entry, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def feed() -> None:
        try:
            for item in items:
                room.acquire()
                if closed.is_set() or not put((item, pool.submit(work, item))):
                    return
            put(None)
        except Exception as error:  # handed to the reader, who is the one to deal with it
            put(error)

    room = threading.Semaphore(max(1, window))
    feeder = threading.Thread(target=feed, name="clip-anatomy-feeder", daemon=True)
    feeder.start()
    try:
        while True:
            entry = _next(line)
            if entry is None:
                return
            if isinstance(entry, Exception):
                raise entry
            item, future = entry
            error = future.exception()
            room.release()
            if isinstance(error, Exception):
                yield item, error
            else:
                yield item, future.result()
    finally:
        closed.set()
        room.release()
        pool.shutdown(wait=True, cancel_futures=True)
        feeder.join()


def _next(line: "queue.Queue[T]") -> T:
    while True:  # a blocking get without timeout would not let Ctrl-C through on every system
        try:
            return line.get(timeout=1.0)
        except queue.Empty:
            continue


def _pool(workers: int, gentle: bool) -> ThreadPoolExecutor:
    """Return threads that run torch's element-wise operations alone, not each with a team of its own.

    `set_num_threads` holds for the calling thread, but a part of it (MKL) for the whole process: so the number is set
    again by this thread once every worker has set its own.
    """
    threads = torch.get_num_threads()
    ready = threading.Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        if gentle and hasattr(os, "setpriority") and hasattr(threading, "get_native_id"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        ready.wait()

    pool = ThreadPoolExecutor(workers, "clip-anatomy-decoder", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)
    return pool
