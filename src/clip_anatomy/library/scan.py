"""The exact scan: one score for every image of a store, block by block, on all cores, from memory-mapped float16 numbers.

A piece of 4,096 images is widened to float32 in the processor's cache and multiplied there, so that memory is read once and nothing
larger than a score per image is ever held. With a GPU the pieces are larger and computed on it. Lengths, which cosines need, are taken
in the first scan of a set of heads and remembered while the process lives.
"""

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from clip_anatomy.library.blocks import Block
from clip_anatomy.library.space import Space
from clip_anatomy.library.store import Store

__all__ = ["best", "scores"]

IN_CACHE = 4096  # images at a time: 1 MB of float32 a head
ON_GPU = 16_384
RUN = 64


def scores(
    store: Store,
    space: Space,
    direction: Float64[Tensor, " out"],
    *,
    cosine: bool,
    threads: int | None = None,
    device: str = "auto",
) -> Float32[Tensor, " image"]:
    """Score every image: ⟨x, direction⟩, or the cosine between them.

    Args:
        store: the store.
        space: which vectors x.
        direction: what is looked for.
        cosine: divide by the lengths of both. An image whose vector is zero scores 0.
        threads: how many; all cores by default.
        device: "cpu", "cuda", …; "auto" takes a GPU if there is one.

    Returns:
        Scores in the order of the store, float32 sums of the stored float16 numbers.
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    aim = direction / direction.norm() if cosine else direction
    plan = _Plan(store, space, aim, cosine, where)
    found = torch.zeros(len(store), dtype=torch.float32)
    if where.type != "cpu":
        for block in store.blocks:
            plan.fill(found, block, ON_GPU)
        plan.remember(store)
        return found
    count = min(threads or _cores(), max(len(store.blocks), 1))
    if count <= 1:
        for block in store.blocks:
            plan.fill(found, block, IN_CACHE)
    else:
        with _one_thread_each():
            for _ in _pool(count).map(lambda block: plan.fill(found, block, IN_CACHE), store.blocks):
                pass
    plan.remember(store)
    return found


class _Plan:
    """Everything that is the same for each piece, in float32 on its device."""

    def __init__(self, store: Store, space: Space, aim: Tensor, cosine: bool, where: torch.device) -> None:
        def ready(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(where, torch.float32)

        self.space, self.cosine, self.where = space, cosine, where
        self.centres = [ready(part.centre) for part in space.parts]
        self.projects = [ready(part.project) for part in space.parts]
        # ⟨u − μ, aim⟩ = ⟨u, aim⟩ − ⟨μ, aim⟩ where parts are compared as they are stored.
        self.plain = space.mode == "heads" and space.focus is None
        self.average = space.average(aim) if self.plain else 0.0
        whole = aim.to(where, torch.float32)
        self.aims = [whole] if space.summed else list(whole.split([part.size for part in space.parts]))
        key = (*_name(store), space.pairs, space.centred)
        self.known = _LENGTHS.get(key) if cosine and self.plain else None
        self.key = key if cosine and self.plain and self.known is None else None
        self.lengths = torch.zeros(len(store)) if self.key is not None else None

    def remember(self, store: Store) -> None:
        """Keep the lengths of these heads' vectors, so that the next search for the same heads need not take them again."""
        if self.key is not None and self.lengths is not None and 4 * len(store) <= MOST_BYTES:
            while len(_LENGTHS) >= MOST_SETS:
                _LENGTHS.pop(next(iter(_LENGTHS)), None)
            _LENGTHS[self.key] = self.lengths

    def fill(self, found: Tensor, block: Block, size: int) -> None:
        """Score one block."""
        arrays = [part.read(block) for part in self.space.parts]
        for first in range(0, len(block), size):
            last = min(first + size, len(block))
            here = slice(block.start + first, block.start + last)
            halves = [torch.from_numpy(array[first:last]) for array in arrays]
            found[here] = (self._stored(halves, here) if self.plain else self._made(halves)).cpu()

    def _stored(self, halves: Sequence[Tensor], here: slice) -> Float[Tensor, " image"]:
        """Scores of heads as they are stored."""
        dot = torch.full((len(halves[0]),), -self.average, device=self.where)
        square = torch.zeros_like(dot)
        for half, aim, centre in zip(halves, self.aims, self.centres, strict=True):
            x = half.to(self.where).float()
            dot.add_(torch.mv(x, aim))
            if self.lengths is not None:
                x = x if centre is None else x.sub_(centre)
                square.add_(torch.linalg.vector_norm(x, dim=1).square_())
        if self.lengths is not None:
            self.lengths[here] = square.sqrt_().clamp_min_(LEAST).cpu()
            return dot.div_(square)
        return dot if self.known is None else dot.div_(self.known[here].to(self.where))

    def _made(self, halves: Sequence[Tensor]) -> Float[Tensor, " image"]:
        """Scores of vectors that are made of what is stored."""
        vectors = [self._vector(half, at) for at, half in enumerate(halves)]
        x = self.space.join(vectors)
        dot = torch.mv(x, torch.cat(self.aims))
        return dot.div_(torch.linalg.vector_norm(x, dim=1).clamp_min_(LEAST)) if self.cosine else dot

    def _vector(self, half: Tensor, at: int) -> Tensor:
        x = half.to(self.where).float()
        centre, project = self.centres[at], self.projects[at]
        if centre is not None:
            x -= centre
        return x if project is None else x @ project


LEAST = 1e-12  # shorter vectors are zero
MOST_BYTES, MOST_SETS = 100_000_000, 4
_LENGTHS: dict[tuple[object, ...], Tensor] = {}


def _name(store: Store) -> tuple[object, ...]:
    return str(store.path.absolute()), store.about.digest, store.about.created, store.epoch, len(store)


@lru_cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads that stay: starting new ones takes as long as a scan of a hundred thousand images."""
    return ThreadPoolExecutor(count, "clip-anatomy-scan", initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Workers share the cores among themselves: torch must not split their work once more. Put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best(found: Float[Tensor, " image"], k: int, allowed: Int64[np.ndarray, " some"] | None = None) -> list[int]:
    """The k highest scores, best first; of equal ones the earlier image.

    Args:
        found: scores of all images.
        k: how many, at most.
        allowed: the only images that may be taken.

    Example:
        >>> best(torch.tensor([0.5, 2.0, 0.5, 1.0]), 3)
        [1, 3, 0]
    """
    among = found.numpy() if allowed is None else found.numpy()[allowed]
    k = min(k, len(among))
    if k <= 0:
        return []
    places = np.flatnonzero(among >= _bound(among, k))  # ascending, and few
    order = places[np.argsort(-among[places], kind="stable")[:k]]
    return [int(at) for at in (order if allowed is None else allowed[order])]


def _bound(among: np.ndarray, k: int) -> float:
    """A number that at least k values reach, close to the k-th largest: the k-th largest of the maxima of short runs."""
    whole = len(among) // RUN * RUN
    if whole // RUN < k:
        return float(np.partition(among, len(among) - k)[len(among) - k])
    most = among[:whole].reshape(-1, RUN).max(1)
    return float(np.partition(most, len(most) - k)[len(most) - k])
