"""The catalogue of a sharded store: an ordinary store in the cache, whose rows and moments are those of all shards.

Every verb reads it as it reads any store. It grows by what was committed since, and nothing in it is needed: delete it, and it is made again.
Arrays are brought when they are first mapped (`blocks.RemoteBlock`).
"""

import json
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from clip_anatomy.errors import MissingExtra, StoreError
from clip_anatomy.files import digest
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.partial_output import held_folder, sweep
from clip_anatomy.split.moments import Moments
from clip_anatomy.store import rows as sql
from clip_anatomy.store.durability import one_clear_error
from clip_anatomy.store.manifest import BASIS, NAME, Manifest
from clip_anatomy.store.remote_blocks import KEYS_OF_SHARD, catalogues, folder_of_shard
from clip_anatomy.store.shards import Commit, ShardedStore, committed_shards, read_commit
from clip_anatomy.store.stored_moments import FOLDER as MOMENTS
from clip_anatomy.store.stored_moments import (
    StoredMoments,
    chunks_for,
    moments_entry,
    names_of,
    read_stored_moments,
    renumbered,
    save_moments,
    write_stored_moments,
)

__all__ = ["catalogue_of", "merge_moments", "place_of"]

T = TypeVar("T")
AT_ONCE = 16  # shards that are read at the same time
LOCK = "merging.lock"
SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (number INTEGER PRIMARY KEY, attempt TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shard_moments (number INTEGER NOT NULL, about TEXT NOT NULL);
"""
COPIED = ("key", *(name for name in sql.WRITTEN if name not in ("source", "block")))


def catalogue_of(place: str | Path) -> Path:
    """Bring the catalogue of a sharded store up to date.

    Args:
        place: address or folder of the store.

    Returns:
        Its folder, to be opened like any store.

    Raises:
        StoreError: no store there, or a damaged one.
        ObjectStoreError: the place cannot be read.
        OutputError: the cache cannot be written.
    """
    at = ObjectPlace.of(place)
    store = ShardedStore.load(at)
    if store is None:
        raise StoreError(f"{at.url} is no store. Make one: clip-anatomy index SOURCE {at.url}")
    folder = catalogues() / store.identity
    done = committed_shards(at)
    try:
        if (folder / NAME).exists() and done <= _merged(folder):
            return folder
    except StoreError:  # damaged; a cache may be thrown away
        shutil.rmtree(folder, ignore_errors=True)
    with one_clear_error(folder), _alone(folder):
        if not (folder / NAME).exists():
            _make(folder, at, store)
        merged = _merged(folder)
        _merge(folder, at, sorted(done - merged), max(merged, default=-1))
    return folder


def place_of(folder: Path) -> str | None:
    """Return the place whose catalogue a folder is; None for any other folder."""
    if folder.parent != catalogues() or not (folder / sql.NAME).is_file():
        return None
    with sql.reading_rows(folder) as rows:
        return sql.facts_of(rows).get("place")


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Hold the catalogue against other processes that bring it up to date; wait for them."""
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtra("filelock", "library") from error
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        yield


def _merged(folder: Path) -> set[int]:
    with sql.reading_rows(folder) as rows:
        return {number for (number,) in rows.execute("SELECT number FROM shards")}


def _make(folder: Path, place: ObjectPlace, store: ShardedStore) -> None:
    with closing(sql.connect(folder)) as rows:
        rows.executescript(SCHEMA)
        frames = place.get(BASIS) or b""
        if digest(frames) != store.basis:
            raise StoreError(f"{place.url}/{BASIS} is not what was written. Put its copy back")
        (folder / BASIS).write_bytes(frames)
        facts = {BASIS: store.basis, NAME: store.manifest.text_digest, "place": place.url, "batch": store.batch}
        for name, value in facts.items():
            sql.set_fact(rows, name, value)
        rows.execute("INSERT OR IGNORE INTO sources VALUES (1, ?)", (store.source,))
        store.manifest.save(folder)  # last: a folder with it is a whole catalogue


def _merge(folder: Path, place: ObjectPlace, numbers: Sequence[int], last: int) -> None:
    """Take the rows of some more shards in: all of them or none."""
    sweep(folder)
    with (
        held_folder(folder, "incoming") as incoming,
        closing(sql.connect(folder)) as rows,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def bring(number: int) -> tuple[Commit, Path]:
            commit = read_commit(place, number)
            here = incoming / str(number)
            if sql.NAME not in commit.files:
                raise StoreError(f"{place.url}/{commit.name} names no rows. Type: clip-anatomy verify {place.url}")
            place.fetch(f"{commit.folder}/{sql.NAME}", here / sql.NAME, *commit.files[sql.NAME])
            return commit, here

        rows.execute("BEGIN IMMEDIATE")
        for commit, here in _ahead(pool, bring, numbers):
            _take_in(rows, commit, here)
            (here / sql.NAME).unlink()
        if numbers and numbers[0] < last:  # images of before have other indices now
            sql.set_fact(rows, "epoch", sql.epoch_of(rows) + 1)
        rows.execute("COMMIT")


def _ahead(pool: ThreadPoolExecutor, bring: Callable[[Any], T], numbers: Sequence[Any]) -> Iterator[T]:
    """Bring things in order, a few ahead of the one that is used."""
    coming = [pool.submit(bring, number) for number in numbers[:AT_ONCE]]
    for at in range(len(numbers)):
        result = coming.pop(0).result()
        coming += [pool.submit(bring, number) for number in numbers[at + AT_ONCE : at + AT_ONCE + 1]]
        yield result


def _take_in(rows: sqlite3.Connection, commit: Commit, folder: Path) -> None:
    """Copy one shard's rows; of a picture that an earlier shard has, the numbers stay unread."""
    first = commit.shard * KEYS_OF_SHARD
    with sql.reading_rows(folder) as shard:
        names = ", ".join(f'"{name}"' for name in COPIED)
        values = shard.execute(f"SELECT {names}, block + {first} FROM images ORDER BY key")
        marks = ", ".join("?" * (len(COPIED) + 1))
        rows.executemany(f"INSERT OR IGNORE INTO images ({names}, block, source) VALUES ({marks}, 1)", values)
        blocks = shard.execute("SELECT key, turn, count, files FROM blocks ORDER BY turn").fetchall()
        if any(not 0 < key < KEYS_OF_SHARD for key, *_ in blocks):
            raise StoreError(f"shard {commit.shard} has blocks that no shard has. Index into a new place")
        rows.executemany(
            "INSERT INTO blocks VALUES (?, ?, ?, ?)",
            [(first + key, first + turn, count, files) for key, turn, count, files in blocks],
        )
        done = shard.execute("SELECT key, block, place FROM images WHERE status = 'done'").fetchall()
        for key, block, place in done:
            known = rows.execute("SELECT 1 FROM images WHERE key = ? AND block = ?", (key, first + block)).fetchone()
            if known is None:
                rows.execute("INSERT INTO holes VALUES (?, ?)", (first + block, place))
        for stored in read_stored_moments(shard):
            about = replace(stored, covers=tuple(first + key for key in stored.covers))
            rows.execute("INSERT INTO shard_moments VALUES (?, ?)", (commit.shard, json.dumps(asdict(about))))
    rows.execute("INSERT INTO shards VALUES (?, ?)", (commit.shard, commit.attempt))


@dataclass(frozen=True)
class _OfShard:
    """Moments that a shard kept, in its folder; `group` where it holds one group alone, and they are of it."""

    folder: str
    stored: StoredMoments
    group: str | None = None

    def bring(self, place: ObjectPlace, folder: Path, names: Sequence[str]) -> Moments:
        path = folder / f"{self.stored.covers[0]}-{self.stored.file}"
        place.fetch(f"{self.folder}/{MOMENTS}/{self.stored.file}", path, None, self.stored.digest)
        moments = replace(Moments.load(path), basis=None)
        path.unlink()
        if self.group is not None:
            return replace(moments.pooled, groups=(names.index(self.group),))
        return renumbered(moments, self.stored.names, names)


def merge_moments(folder: Path, manifest: Manifest, groups: str | None) -> None:
    """Merge the moments of the shards that were taken in since, and keep them; what no shard kept is left to the arrays.

    Args:
        folder: of the catalogue.
        manifest: of the store.
        groups: None, or "group".
    """
    column, chunks = groups or "", 1 if groups else chunks_for(manifest)
    with one_clear_error(folder), _alone(folder), closing(sql.connect(folder)) as rows:
        names = names_of(rows, column)
        old = next((one for one in read_stored_moments(rows) if (one.column, one.chunks) == (column, chunks)), None)
        before = None if old is None or {*old.names} - {*names} else old.load(folder)
        covers = () if before is None or old is None else old.covers
        holes = {block for (block,) in rows.execute("SELECT DISTINCT block FROM holes")}
        wanted = [one for one in _of_shards(rows, column, chunks) if not {*one.stored.covers} & ({*covers} | holes)]
        if not wanted:
            return
        place = ObjectPlace.of(sql.facts_of(rows)["place"])
        with held_folder(folder, "incoming") as incoming, ThreadPoolExecutor(AT_ONCE) as pool:
            parts = _ahead(pool, lambda one: one.bring(place, incoming, names), wanted)
            known = [] if before is None or old is None else [renumbered(before, old.names, names)]
            total = Moments.merged(chain(known, parts))
        covers += tuple(key for one in wanted for key in one.stored.covers)
        new = save_moments(total, folder, column=column, chunks=chunks, names=names, covers=covers)
        write_stored_moments(rows, new)
        if old is not None:
            (folder / MOMENTS / old.file).unlink(missing_ok=True)


def _of_shards(rows: sqlite3.Connection, column: str, chunks: int) -> Iterator[_OfShard]:
    """Return the moments of each shard that answer the question."""
    kept: dict[tuple[int, str], dict[str, StoredMoments]] = {}
    for number, attempt, about in rows.execute(
        "SELECT number, attempt, about FROM shards JOIN shard_moments USING (number) ORDER BY number"
    ).fetchall():
        if (stored := moments_entry(about)).covers:
            kept.setdefault((number, attempt), {})[stored.name] = stored
    for (number, attempt), of_shard in kept.items():
        folder = folder_of_shard(number, attempt)
        if (stored := of_shard.get(f"{column or 'all'}-{chunks}")) is not None:
            yield _OfShard(folder, stored)
        elif column and (stored := next((one for one in of_shard.values() if not one.column), None)) is not None:
            groups = """SELECT DISTINCT "group" FROM images WHERE block >= ? AND block < ? LIMIT 2"""
            ends = (number * KEYS_OF_SHARD, (number + 1) * KEYS_OF_SHARD)
            found = [str(group) for (group,) in rows.execute(groups, ends)]
            if len(found) == 1:
                yield _OfShard(folder, stored, found[0])
