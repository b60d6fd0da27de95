"""The exact scan: one score for every image of a store, block by block, on all cores, from memory-mapped float16 numbers.

A piece of 4,096 images is widened to float32 in the processor's cache, centred and multiplied there, so that memory is read once and
nothing larger than a score per image is ever held. With a GPU the pieces are larger and computed on it.
"""

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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
    plan = _Plan(space, aim, cosine, where)
    found = torch.zeros(len(store), dtype=torch.float32)
    if where.type != "cpu":
        for block in store.blocks:
            plan.fill(found, block, ON_GPU)
        return found
    count = min(threads or _cores(), max(len(store.blocks), 1))
    if count <= 1:
        for block in store.blocks:
            plan.fill(found, block, IN_CACHE)
        return found
    with _one_thread_each(), ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(lambda block: plan.fill(found, block, IN_CACHE), store.blocks):
            pass
    return found


class _Plan:
    """Everything that is the same for each piece, in float32 on its device."""

    def __init__(self, space: Space, aim: Tensor, cosine: bool, where: torch.device) -> None:
        def ready(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(where, torch.float32)

        self.space, self.cosine, self.where = space, cosine, where
        self.centres = [ready(part.centre) for part in space.parts]
        self.projects = [ready(part.project) for part in space.parts]
        whole = aim.to(where, torch.float32)
        self.aims = [whole] if space.summed else list(whole.split([part.size for part in space.parts]))

    def fill(self, found: Tensor, block: Block, size: int) -> None:
        """Score one block."""
        arrays = [part.read(block) for part in self.space.parts]
        for first in range(0, len(block), size):
            last = min(first + size, len(block))
            piece = self._score([torch.from_numpy(array[first:last]) for array in arrays])
            found[block.start + first : block.start + last] = piece.cpu()

    def _score(self, halves: Sequence[Tensor]) -> Float[Tensor, " image"]:
        dot = square = None
        vectors = (self._vector(half, at) for at, half in enumerate(halves))
        for x, aim in zip([self.space.join([*vectors])] if self.space.summed else vectors, self.aims, strict=True):
            along = torch.mv(x, aim)
            dot = along if dot is None else dot.add_(along)
            if self.cosine:
                length = torch.linalg.vector_norm(x, dim=1).square_()
                square = length if square is None else square.add_(length)
        assert dot is not None
        return dot if square is None else dot.div_(square.sqrt_().clamp_min_(1e-12))

    def _vector(self, half: Tensor, at: int) -> Tensor:
        x = half.to(self.where).float()
        centre, project = self.centres[at], self.projects[at]
        if centre is not None:
            x -= centre
        return x if project is None else x @ project


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Workers share the cores among themselves: torch must not split their work once more. Put back afterwards."""
    before = torch.get_num_threads()
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
    among = found if allowed is None else found[torch.from_numpy(allowed)]
    k = min(k, len(among))
    if k <= 0:
        return []
    least = torch.topk(among, k, sorted=False).values.min()
    places = torch.nonzero(among >= least).flatten()  # ascending, ties included
    order = torch.sort(among[places], descending=True, stable=True).indices[:k]
    chosen = places[order].numpy()
    return [int(at) for at in (chosen if allowed is None else allowed[chosen])]
