"""`index_sharded`: all shards of a sharded store, by the workers of an engine; finished ones are passed over, whoever did them."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from clip_anatomy.data.picture import Source
from clip_anatomy.data.picture_batches import no_picture
from clip_anatomy.engine.engine import Engine
from clip_anatomy.errors import BadSpec, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.model_setup import ModelSetup
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.progress import Progress
from clip_anatomy.results import Result
from clip_anatomy.store.claims import claimed, sweep_attempts
from clip_anatomy.store.index_shard import ShardSummary, ShardWalk, index_shard
from clip_anatomy.store.shards import ShardedStore, committed_shards, open_sharded, read_commit

__all__ = ["ShardedIndexSummary", "index_sharded", "part_of"]

FIRST_ERRORS = 5


@dataclass(frozen=True, repr=False)
class ShardedIndexSummary(Result):
    """What a run of `index` did for a sharded store.

    Attributes:
        store: its place.
        shards: committed in this run.
        known: shards that were there already.
        others: shards that another run committed first, while this one did them.
        done: images in the shards of this run.
        failed: pictures that could not be used, in these.
        bytes: put up in this run.
        workers: how many shards were done at once.
        seconds: wall time.
        errors: id and message of the first few that failed.
    """

    store: str
    shards: int
    known: int
    others: int
    done: int
    failed: int
    bytes: int
    workers: int
    seconds: float
    errors: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": "clip-anatomy/index-shards/1", **asdict(self)}

    def summary(self) -> str:
        """Return the counts in one line."""
        counts = ((self.known, "shards known"), (self.others, "done elsewhere"), (self.failed, "pictures not used"))
        parts = [
            f"{self.done:,} images in {self.shards:,} shard{'' if self.shards == 1 else 's'} added",
            *(f"{n:,} {what}" for n, what in counts if n),
        ]
        workers = f" by {self.workers:,} workers" if self.workers > 1 else ""
        return f"{self.store}: {', '.join(parts)}; {self.bytes / 1e6:,.1f} MB in {self.seconds:.0f} s{workers}"


@dataclass(frozen=True)
class _ShardsSetup:
    """What a worker opens once: the model, and one walk over the source."""

    model: ModelSetup
    source: Source
    store: ShardedStore

    @property
    def device(self) -> str:
        """Where the model wants to be."""
        return self.model.device

    def open(self) -> tuple[Clip, ShardWalk, ShardedStore]:
        """Open the model."""
        return self.model.open(), ShardWalk(self.source, self.store.size), self.store


def _index(state: tuple[Clip, ShardWalk, ShardedStore], number: int) -> ShardSummary:
    import torch

    clip, walk, store = state
    return index_shard(clip, walk, store, number, workers=torch.get_num_threads())  # as many decode as compute


def index_sharded(
    clip: Clip,
    source: Source,
    place: str | Path,
    engine: Engine,
    *,
    size: int | None = None,
    batch: int | None = None,
    part: str | None = None,
    progress: Progress,
    **settings: Any,
) -> ShardedIndexSummary:
    """Index what is missing of a sharded store.

    Args:
        clip: the model.
        source: the collection, opened.
        place: address or folder of the store, made if it is not there.
        engine: what runs it.
        size: pictures in a shard.
        batch: pictures that the model takes at once.
        part: "3/8": only the shards whose number leaves 3 when divided by 8. None for all; several processes share them by claims.
        progress: told shards.
        **settings: layers, keep and convention, as for `index`.

    Raises:
        StoreError: the store is of another model, source or size, or the source holds more or fewer pictures than when a shard was made.
        EngineError: a shard that no worker could do.
    """
    began = time.monotonic()
    first, step = part_of(part)
    store = open_sharded(place, clip, source.spec, size=size, batch=batch, **settings)
    known = committed_shards(store.place)
    pictures = source.count()
    shards = None if pictures is None else -(-pictures // store.size)
    if shards == 0:
        raise no_picture(source)
    at = ObjectPlace.of(place)
    if pictures is not None and known:
        _refuse_changed(store, at, max(known), pictures)
    ended = False

    def missing() -> Iterator[int]:
        """Hand out numbers until the source is known to have ended."""
        for number in count(first, step) if shards is None else range(first, shards, step):
            if ended:
                return
            if number not in known:
                yield number

    mine = None if shards is None else len(range(first, shards, step))
    there = sum(number % step == first for number in known)
    counts: dict[str, int] = dict.fromkeys(("shards", "others", "done", "failed", "bytes"), 0)
    errors: list[tuple[str, str]] = []
    progress("shards", there, mine)
    for _, one in engine.map(_index, claimed(at, missing()), setup=_ShardsSetup(ModelSetup.of(clip), source, store)):
        if not one.pictures:
            ended = True
            continue
        counts["shards" if one.committed else "others"] += 1
        if one.committed:
            for name, number in (("done", one.images), ("failed", one.failed), ("bytes", one.bytes)):
                counts[name] += number
        errors += one.errors[: FIRST_ERRORS - len(errors)]
        progress("shards", there + counts["shards"] + counts["others"], mine)
    if first == 0:
        sweep_attempts(at)
    return ShardedIndexSummary(
        store.place,
        known=there,
        workers=engine.workers,
        seconds=time.monotonic() - began,
        errors=tuple(errors),
        **counts,
    )


def _refuse_changed(store: ShardedStore, place: ObjectPlace, last: int, pictures: int) -> None:
    """Refuse a source that has grown or shrunk since its last shard was made: pictures would be in two shards, or in none."""
    before, now = read_commit(place, last).pictures, min(store.size, pictures - last * store.size)
    if before != now:
        raise StoreError(
            f"{store.source} holds {pictures:,} pictures, others than when shard {last} of {store.place} was made. Shards are never written anew: "
            "type the path of a new store"
        )


def part_of(part: str | None) -> tuple[int, int]:
    """Read which shards a process of several takes.

    Raises:
        BadSpec: not K/N with K from 0 to N − 1.

    Example:
        >>> part_of("3/8"), part_of(None)
        ((3, 8), (0, 1))
    """
    words = (part or "0/1").split("/")
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise BadSpec(f"part={part!r}: K/N was expected, K from 0 to N - 1. Type part='0/8' for the first of eight")
    return int(words[0]), int(words[1])
