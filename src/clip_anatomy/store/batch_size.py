"""How many images at once: found while working, halved when memory runs out."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from clip_anatomy.errors import BadInput

__all__ = ["Pace", "in_parts", "is_out_of_memory"]

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
class Pace:
    """The batch size: tries a few on real work, then stays with the smallest that is nearly the fastest.

    Attributes:
        sizes: what is left to try.
        found: the size to stay with, once known.
    """

    sizes: tuple[int, ...]
    found: int | None = None
    rates: dict[int, float] = field(default_factory=dict[int, float])
    tried: int = 0

    @staticmethod
    def on(device: torch.device, found: int | None = None) -> "Pace":
        """A pace for a device, or with a size that is known already."""
        return Pace(ON_CPU if device.type == "cpu" else ON_GPU, found)

    @property
    def size(self) -> int:
        """How many images the next batch should have."""
        return self.found if self.found is not None else self.sizes[len(self.rates)]

    def took(self, images: int, seconds: float) -> None:
        """Note what a batch took. Each size is tried twice, since the first time also pays for warming up."""
        if self.found is not None or images != self.size:
            return
        self.tried += 1
        if self.tried < TRIES:
            return
        self.tried = 0
        self.rates[images] = images / max(seconds, 1e-9)
        slower = self.rates[images] < 0.8 * max(self.rates.values())
        if len(self.rates) == len(self.sizes) or slower or seconds > SLOW_SECONDS:
            best = max(self.rates.values())
            self.found = min(size for size, rate in self.rates.items() if rate >= 0.95 * best)

    def ran_out(self, images: int) -> None:
        """Note that this many images did not fit."""
        self.found = max(1, images // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def in_parts(step: Callable[[Tensor], R], pixels: Tensor, ran_out: Callable[[int], None]) -> list[R]:
    """Run one step on a batch; where memory runs out, on its halves, and on theirs.

    Args:
        step: takes pixels [image, 3, row, col].
        pixels: the batch.
        ran_out: told how many images did not fit.

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
    return [*in_parts(step, pixels[:half], ran_out), *in_parts(step, pixels[half:], ran_out)]
