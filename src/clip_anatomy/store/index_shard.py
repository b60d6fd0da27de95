"""`index_shard`: index one shard of a sharded store, on any machine, and commit it."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture import ImageData, Picture, Source
from clip_anatomy.data.picture_files import passed_over_of
from clip_anatomy.errors import StoreError
from clip_anatomy.files import digest_of_file
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.disk_cache import cache_folder
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.partial_output import held_folder, sweep
from clip_anatomy.progress import Progress, silent
from clip_anatomy.results import Result
from clip_anatomy.store import rows as sql
from clip_anatomy.store.blocks import FOLDER
from clip_anatomy.store.durability import one_clear_error
from clip_anatomy.store.index_run import IndexRun, StopRequest
from clip_anatomy.store.shards import Commit, ShardedStore, frames_of, open_sharded
from clip_anatomy.store.stored_moments import FOLDER as MOMENTS
from clip_anatomy.store.writer import Writer

__all__ = ["ShardSummary", "ShardWalk", "index_shard", "put_shard"]

AT_ONCE = 8  # files that are put at the same time
SCRATCH = "scratch"


@dataclass(frozen=True, repr=False)
class ShardSummary(Result):
    """What was done for one shard.

    Attributes:
        number: of the shard.
        pictures: of the source that it covers; 0 where the source ends before it, and nothing is committed.
        images: that it holds.
        failed: pictures that could not be used.
        committed: whether this attempt counts; False where another worker's does, or where there is no such shard.
        objects: files of it.
        bytes: of them.
        seconds: wall time.
        errors: id and message of the first few that failed.
    """

    number: int
    pictures: int
    images: int
    failed: int
    committed: bool
    objects: int
    bytes: int
    seconds: float
    errors: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": "clip-anatomy/shard/1", **asdict(self)}

    def summary(self) -> str:
        """Return the counts in one line."""
        what = "committed" if self.committed else "done by another worker" if self.pictures else "beyond the end"
        return f"shard {self.number}: {self.images:,} images, {self.failed:,} not used, {self.bytes / 1e6:,.1f} MB in {self.seconds:.0f} s: {what}"


class ShardWalk:
    """One walk over a source that hands out shards; those behind it begin the walk anew, so ask for them in ascending order.

    A worker keeps one for all its shards: it then walks the source once, however many there are.
    """

    def __init__(self, source: Source, size: int) -> None:
        """Begin nothing yet."""
        self.source, self.size = source, size
        self.at = 0
        self.pictures: Iterator[Picture] | None = None

    def shard(self, number: int) -> "ShardPictures":
        """Return the pictures of a shard, to be walked once."""
        first = number * self.size
        if self.pictures is None or self.at > first:
            self.pictures, self.at = iter(self.source), 0
        for _ in islice(self.pictures, first - self.at):
            self.at += 1
        return ShardPictures(self, islice(self._counted(self.pictures), self.size))

    def _counted(self, pictures: Iterator[Picture]) -> Iterator[Picture]:
        for picture in pictures:
            self.at += 1
            yield picture


@dataclass
class ShardPictures:
    """The pictures of one shard, as a collection that is walked once.

    Attributes:
        walk: over the whole source.
        pictures: those of the shard.
        walked: how many have been walked.
        ids: hash of their ids so far.
    """

    walk: ShardWalk
    pictures: Iterator[Picture]
    walked: int = 0
    ids: Any = field(default_factory=lambda: blake2b(digest_size=16))

    @property
    def spec(self) -> str:
        """The source's."""
        return self.walk.source.spec

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the walk has passed over so far."""
        return passed_over_of(self.walk.source)

    def is_empty(self) -> bool:
        """Tell whether the source ends before the shard."""
        first = next(self.pictures, None)
        if first is None:
            return True
        self.pictures = chain([first], self.pictures)
        return False

    def __iter__(self) -> Iterator[Picture]:
        """Walk the pictures that are left."""
        for picture in self.pictures:
            self.walked += 1
            self.ids.update(json.dumps(picture.id).encode())
            yield picture

    def count(self) -> int:
        """Return how many there are at most."""
        return self.walk.size

    def check(self) -> None:
        """Raise BadInput if the source cannot be reached (any more)."""
        self.walk.source.check()

    def fetch(self, path: str) -> ImageData:
        """Read the image at a picture's `path`."""
        return self.walk.source.fetch(path)


def index_shard(
    clip: Clip,
    source: Any,
    place: str | Path | ShardedStore,
    number: int,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stopped: StopRequest | None = None,
) -> ShardSummary:
    """Index one shard and commit it. Any worker may do any shard, in any order, also one that another worker does at the same time.

    The shard is made as an ordinary store in a scratch folder, put up file by file, and counts with its commit. What it holds depends on the
    source, the model and `shards.json` alone: the same bits whoever computes it, on machines that compute alike.

    Args:
        clip: the model of the store.
        source: what the store is of, as typed or opened; or a `ShardWalk` over it, which a worker keeps for all its shards.
        place: address or folder of the store, or what `open_sharded` gave.
        number: which shard.
        workers: threads that decode.
        progress: as for `index`.
        stopped: set by whoever wants it to end.

    Returns:
        What was done. `pictures` is 0 where the source ends before this shard: then nothing was written.

    Raises:
        StoreError: no store there, or one of another model or source.
        ObjectStoreError: the place cannot be written; nothing of the shard counts, and it can be done again.
        OutputError: the scratch folder cannot be written.
        KeyboardInterrupt, Ended: it was stopped; nothing of the shard counts.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip, place = ca.load("demo"), tempfile.mkdtemp() + "/store"
        >>> made = open_sharded(place, clip, "world:12:test", size=8)
        >>> [index_shard(clip, "world:12:test", made, number).images for number in (1, 0, 2)]
        [4, 8, 0]
    """
    began = time.monotonic()
    store = place if isinstance(place, ShardedStore) else open_sharded(place, clip)
    store.manifest.refuse_other(clip.name, clip.digest, store.place)
    walk = source if isinstance(source, ShardWalk) else ShardWalk(open_dataset(source), store.size)
    if walk.source.spec != store.source:
        raise StoreError(
            f"{store.place} is of {store.source}, not of {walk.source.spec}: type that source, or the path of another store"
        )
    pictures = walk.shard(number)
    if pictures.is_empty():
        walk.source.check()
        return ShardSummary(number, 0, 0, 0, False, 0, 0, time.monotonic() - began)
    base = cache_folder() / SCRATCH
    with one_clear_error(base):
        base.mkdir(parents=True, exist_ok=True)
        sweep(base)
    with one_clear_error(base), held_folder(base, f"shard-{number:06d}") as folder:
        basis = frames_of(clip, store.manifest)
        with Writer.open(folder, store.manifest, basis) as writer:
            # Its rows have the keys that they would have in a store of the whole source.
            writer.rows.execute("INSERT INTO sqlite_sequence VALUES ('images', ?)", (number * store.size,))
            forever = float("inf")  # commits by time would cut the blocks elsewhere each time
            stop, tell = stopped or StopRequest(), progress or silent
            run = IndexRun(writer, clip, basis, pictures, stop, tell, forever, workers)
            summary = run.run(store.batch, prune=False)
        commit, won = put_shard(store, number, folder, pictures, (summary.done, summary.failed))
    return ShardSummary(
        number, pictures.walked, summary.done, summary.failed, won, len(commit.files), sum(size for size, _ in commit.files.values()),
        time.monotonic() - began, summary.errors,
    )  # fmt: skip


def put_shard(
    store: ShardedStore, number: int, folder: Path, pictures: ShardPictures, counts: tuple[int, int]
) -> tuple[Commit, bool]:
    """Put a finished scratch store up, and commit it.

    Args:
        store: the sharded store.
        number: of the shard.
        folder: the scratch store.
        pictures: that it covers, walked to their end.
        counts: images and errors in it.

    Returns:
        The commit, and whether it counts: where another worker's does, the files of this one are deleted again.
    """
    place = ObjectPlace.of(store.place)
    paths = [folder / sql.NAME, *(folder / FOLDER).rglob("*"), *(folder / MOMENTS).rglob("*")]
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    sizes = {name: (path.stat().st_size, digest_of_file(path)) for name, path in files.items()}
    ids = pictures.ids.hexdigest()
    commit = Commit(number, secrets.token_hex(8), pictures.walked, *counts, ids, sizes)
    names = {f"{commit.folder}/{name}": path for name, path in files.items()}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(place.put, names, names.values()))
    won = place.put_if_absent(commit.name, commit.text)
    if not won:
        place.delete([*names])
    return commit, won
