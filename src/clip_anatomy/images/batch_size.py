"""How many images at once: found while working, halved when memory runs out."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from clip_anatomy.errors import BadInput

__all__ = ["BatchSize", "is_out_of_memory", "split_when_out_of_memory"]

R = TypeVar("R")

ON_CPU = (4, 8, 16, 32, 64)
ON_GPU = (16, 32, 64, 128, 256, 512)
TRIES = 2
SLOW_SECONDS = 6.0
SIGNS = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",  # what oneDNN says when it has no memory for its code
)


@dataclass
class BatchSize:
    """The batch size: tries a few on real work, then stays with the smallest that is nearly the fastest.

    Attributes:
        candidates: sizes to try, ascending.
        settled: the size to stay with, once known.
        rates: size → images per second, of those that were tried.
        tries: batches of the current size that were timed.
    """

    candidates: tuple[int, ...]
    settled: int | None = None
    rates: dict[int, float] = field(default_factory=dict[int, float])
    tries: int = 0

    @staticmethod
    def on(device: torch.device, settled: int | None = None) -> "BatchSize":
        """Start with the candidates for a device, or with a size that is known already."""
        return BatchSize(ON_CPU if device.type == "cpu" else ON_GPU, settled)

    @staticmethod
    def fixed(size: int) -> "BatchSize":
        """Start with a size that only changes when memory runs out."""
        return BatchSize((size,), size)

    @property
    def current(self) -> int:
        """How many images the next batch should have."""
        return self.settled if self.settled is not None else self.candidates[len(self.rates)]

    @property
    def largest(self) -> int:
        """How many images a batch may have later."""
        return self.settled if self.settled is not None else self.candidates[-1]

    def record(self, images: int, seconds: float) -> None:
        """Note what a batch took. Each size is tried twice, since the first time also pays for warming up."""
        if self.settled is not None or images != self.current:
            return
        self.tries += 1
        if self.tries < TRIES:
            return
        self.tries = 0
        self.rates[images] = images / max(seconds, 1e-9)
        best = max(self.rates.values())
        slower = self.rates[images] < 0.8 * best
        if len(self.rates) == len(self.candidates) or slower or seconds > SLOW_SECONDS:
            self.settled = min(size for size, rate in self.rates.items() if rate >= 0.95 * best)

    def ran_out(self, images: int) -> None:
        """Note that this many images did not fit into memory."""
        self.settled = max(1, images // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def split_when_out_of_memory(step: Callable[[Tensor], R], pixels: Tensor, ran_out: Callable[[int], None]) -> list[R]:
    """Run one step on a batch; where memory runs out, on its halves, and on theirs.

    Args:
        step: takes pixels [image, 3, row, col].
        pixels: the batch.
        ran_out: called with the number of images that did not fit.

    Returns:
        The results of the parts, in order.

    Raises:
        BadInput: one single image does not fit.
    """
    try:
        return [step(pixels)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Outside of the handler, so that the failed attempt's tensors are gone before the next one.
    count = len(pixels)
    ran_out(count)
    gc.collect()
    if pixels.device.type == "cuda" or torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if count == 1:
        raise BadInput(
            f"not even one image of {list(pixels.shape[1:])} fits into memory ({message}). Type a smaller model"
        )
    half = count // 2
    return [part for some in (pixels[:half], pixels[half:]) for part in split_when_out_of_memory(step, some, ran_out)]
