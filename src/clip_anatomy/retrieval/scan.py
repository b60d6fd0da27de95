"""The exact scan: one score for every image of a store, block by block, on torch's threads, from memory-mapped float16 numbers.

A piece of 16,384 images is widened to float32 in the processor's cache and multiplied there (or on a GPU), so that memory is read once
and nothing larger than a score per image is ever held. What was scanned last stays mapped (see `store.mmap_cache`). Lengths, which cosines need,
are taken in the first scan of a set of heads and remembered while the process lives.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from clip_anatomy.engine.engine import Engine, engine_of, works_here
from clip_anatomy.errors import StoreError
from clip_anatomy.loading.load import device_of
from clip_anatomy.retrieval.subspace import Space
from clip_anatomy.store.blocks import StoreBlock
from clip_anatomy.store.store import Store

__all__ = ["MeasuredThreads", "best", "scores"]

PIECE = 16_384  # images at a time, a whole block: 4 MB of float32 a head, shared by the cores
PREFETCH = 4  # blocks that the disk reads while one is computed
RUN = 64
PART = 2**20  # images that a worker scans at a time, at least a block
AGAIN = 24  # blocks after which the number of threads is measured anew


def scores(
    store: Store,
    space: Space,
    direction: Float64[Tensor, " out"],
    *,
    cosine: bool,
    device: str = "auto",
    engine: Engine | str = "local",
) -> Float32[Tensor, " image"]:
    """Score every image: ⟨x, direction⟩, or the cosine between them.

    Args:
        store: the store.
        space: which vectors x.
        direction: what is looked for.
        cosine: divide by the lengths of both. An image whose vector is zero scores 0.
        device: "cpu", "cuda", …; "auto" takes a GPU if there is one.
        engine: whose workers scan, each some blocks; they open the store by its place.

    Returns:
        Scores in the order of the store, float32 sums of the stored float16 numbers.

    Raises:
        BadSpec: there is no such device.
    """
    aim = direction / direction.norm() if cosine else direction
    if works_here(engine):
        scan = _Scan(store, space, aim, cosine, device_of(device))
        values = scan.run()
        scan.remember(store)
        return values
    values = torch.zeros(len(store), dtype=torch.float32)
    bare = replace(space, parts=tuple(replace(part, text=None) for part in space.parts))  # of texts, by the whole store
    setup = _ScanSetup(store.place, len(store), bare, aim, cosine, device)
    with engine_of(engine) as running:
        for _, (first, part) in running.map(_scanned, _parts(store), setup=setup):
            values[first : first + len(part)] = part
    return values


@dataclass(frozen=True)
class _ScanSetup:
    """A store by its place, and what its images are compared with."""

    place: str
    images: int
    space: Space
    aim: Tensor
    cosine: bool
    device: str

    def open(self) -> "tuple[Store, _ScanSetup]":
        """Open the store.

        Raises:
            StoreError: it holds other images here than where the search began.
        """
        store = Store.open(self.place)
        if len(store) != self.images:
            raise StoreError(
                f"{self.place} holds {len(store):,} images on this worker, and {self.images:,} where the search began. Search again"
            )
        return store, self


def _parts(store: Store) -> Iterator[tuple[int, int]]:
    """Yield runs of blocks as (first, end)."""
    first, images = 0, 0
    for end, block in enumerate(store.blocks, 1):
        images += len(block)
        if images >= PART or end == len(store.blocks):
            yield first, end
            first, images = end, 0


def _scanned(state: tuple[Store, _ScanSetup], part: tuple[int, int]) -> tuple[int, Tensor]:
    """Return where a run of blocks begins, and the scores of its images."""
    store, setup = state
    blocks = store.blocks[part[0] : part[1]]
    scan = _Scan(store, setup.space, setup.aim, setup.cosine, device_of(setup.device), blocks=blocks)
    return scan.start, scan.run()


class MeasuredThreads:
    """Choose between all of torch's threads and one by measuring, again and again.

    On an idle machine all are faster; where other processes hold a core, threads wait for each other at the end of every
    operation, and one alone was 30 times faster. Two blocks of every `AGAIN` are the measurement.
    """

    def __init__(self) -> None:
        """Begin with all threads."""
        self.most = torch.get_num_threads()
        self.seconds: dict[int, float] = {}  # threads → seconds an image, as last measured
        self.blocks = 0

    def __enter__(self) -> "MeasuredThreads":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give torch its threads back."""
        torch.set_num_threads(self.most)

    def run(self, images: int, work: Callable[[], None]) -> None:
        """Do the work of one block, with as many threads as were faster; or to find out."""
        turn = self.blocks % AGAIN
        self.blocks += 1
        threads = {0: self.most, 1: 1}.get(turn) or min(self.seconds, key=self.seconds.__getitem__)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        began = time.perf_counter()
        work()
        self.seconds[threads] = (time.perf_counter() - began) / max(images, 1)


class _Scan:
    """Everything that is the same for each piece, in float32 on its device."""

    def __init__(
        self,
        store: Store,
        space: Space,
        aim: Tensor,
        cosine: bool,
        where: torch.device,
        *,
        blocks: Sequence[StoreBlock] | None = None,
    ) -> None:
        """Prepare for all images, or for those of a run of blocks, whose lengths are not remembered."""

        def ready(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(where, torch.float32)

        self.space, self.cosine, self.where = space, cosine, where
        self.centres = [ready(part.centre) for part in space.parts]
        self.projects = [ready(part.project) for part in space.parts]
        # ⟨u − μ, aim⟩ = ⟨u, aim⟩ − ⟨μ, aim⟩ where parts are compared as they are stored.
        self.as_stored = space.mode == "heads" and space.focus is None
        self.average = space.average(aim) if self.as_stored else 0.0
        whole = aim.to(where, torch.float32)
        self.aims = [whole] if space.summed else list(whole.split([part.size for part in space.parts]))
        self.key = (*_name(store), space.pairs)
        self.blocks = store.blocks if blocks is None else blocks
        self.start = self.blocks[0].start if self.blocks else 0
        self.count = sum(map(len, self.blocks))
        takes_lengths = cosine and self.as_stored
        self.known = _LENGTHS.get(self.key) if takes_lengths and blocks is None else None
        self.lengths = torch.zeros(self.count) if takes_lengths and self.known is None else None
        self.buffer = torch.empty(0)

    def remember(self, store: Store) -> None:
        """Keep the lengths of these heads' vectors, so that the next search for the same heads need not take them again."""
        if self.lengths is not None and 4 * len(store) <= MOST_BYTES:
            while len(_LENGTHS) >= MOST_SETS:
                _LENGTHS.pop(next(iter(_LENGTHS)), None)
            _LENGTHS[self.key] = self.lengths

    def run(self) -> Float32[Tensor, " image"]:
        """Score the images of all blocks."""
        values = torch.zeros(self.count, dtype=torch.float32)
        for block in self.blocks[:PREFETCH]:
            self.prefetch(block)
        with MeasuredThreads() as threads:
            for at, block in enumerate(self.blocks):
                for later in self.blocks[at + PREFETCH : at + PREFETCH + 1]:
                    self.prefetch(later)
                threads.run(len(block), lambda block=block: self.fill(values, block))
        return values

    def prefetch(self, block: StoreBlock) -> None:
        """Have a block read from the disk beside what is computed."""
        if block.alive is None:
            for part in self.space.parts:
                part.prefetch(block)

    def fill(self, values: Tensor, block: StoreBlock) -> None:
        """Score one block."""
        arrays = [part.read(block) for part in self.space.parts]
        for first in range(0, len(block), PIECE):
            last = min(first + PIECE, len(block))
            here = slice(block.start - self.start + first, block.start - self.start + last)
            halves = [torch.from_numpy(array[first:last]) for array in arrays]
            values[here] = (self._stored(halves, here) if self.as_stored else self._made(halves)).cpu()

    def _stored(self, halves: Sequence[Tensor], here: slice) -> Float[Tensor, " image"]:
        """Return scores of heads as they are stored."""
        dot = torch.full((len(halves[0]),), -self.average, device=self.where)
        square = torch.zeros_like(dot)
        for half, aim, centre in zip(halves, self.aims, self.centres, strict=True):
            x = self._widened(half)
            dot.addmv_(x, aim)
            if self.lengths is not None:
                x = x if centre is None else x.sub_(centre)
                square.add_(torch.linalg.vector_norm(x, dim=1).square_())
        if self.lengths is not None:
            self.lengths[here] = square.sqrt_().clamp_min_(LEAST).cpu()
            return dot.div_(square)
        return dot if self.known is None else dot.div_(self.known[here].to(self.where))

    def _made(self, halves: Sequence[Tensor]) -> Float[Tensor, " image"]:
        """Return scores of vectors that are made of what is stored."""
        vectors = [self._vector(half, at) for at, half in enumerate(halves)]
        x = self.space.join(vectors)
        dot = torch.mv(x, torch.cat(self.aims))
        return dot.div_(torch.linalg.vector_norm(x, dim=1).clamp_min_(LEAST)) if self.cosine else dot

    def _widened(self, half: Tensor) -> Tensor:
        """Return the same numbers in float32, on the processor in a buffer that the next call overwrites: no fresh memory for each piece."""
        if self.where.type != "cpu":
            return half.to(self.where).float()
        if self.buffer.numel() < half.numel():
            self.buffer = torch.empty(half.numel())
        return self.buffer[: half.numel()].view(half.shape).copy_(half)

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
    return str(store.path.absolute()), store.manifest.digest, store.manifest.created, store.epoch, len(store)


def best(values: Float[Tensor, " image"], k: int, allowed: Int64[np.ndarray, " some"] | None = None) -> list[int]:
    """Return the k highest scores' places, best first; of equal ones the earlier image.

    Args:
        values: scores of all images.
        k: how many, at most.
        allowed: the only images that may be taken.

    Example:
        >>> best(torch.tensor([0.5, 2.0, 0.5, 1.0]), 3)
        [1, 3, 0]
    """
    among = values.numpy() if allowed is None else values.numpy()[allowed]
    k = min(k, len(among))
    if k <= 0:
        return []
    places = np.flatnonzero(among >= _bound(among, k))  # ascending, and few
    order = places[np.argsort(-among[places], kind="stable")[:k]]
    return [int(at) for at in (order if allowed is None else allowed[order])]


def _bound(among: np.ndarray, k: int) -> float:
    """Return a number that at least k values reach, close to the k-th largest: the k-th largest of the maxima of short runs."""
    whole = len(among) // RUN * RUN
    if whole // RUN < k:
        return float(np.partition(among, len(among) - k)[len(among) - k])
    most = among[:whole].reshape(-1, RUN).max(1)
    return float(np.partition(most, len(most) - k)[len(most) - k])
