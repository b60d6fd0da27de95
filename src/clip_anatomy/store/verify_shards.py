"""What `verify` does with a sharded store: read every object and compare it with what its shard's commit says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from clip_anatomy.errors import ObjectStoreError, StoreError
from clip_anatomy.objects import ObjectPlace, difference
from clip_anatomy.progress import Progress
from clip_anatomy.store.manifest import BASIS
from clip_anatomy.store.shards import ATTEMPT_NAME, ShardedStore, committed_shards, read_commit

__all__ = ["Checked", "verify_shards"]

AT_ONCE = 8  # objects that are read at the same time


@dataclass
class Checked:
    """What was found so far."""

    images: int = 0
    errors: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def verify_shards(place: str | Path, progress: Progress) -> Checked:
    """Read the objects of all committed shards, a shard at a time.

    Raises:
        StoreError: no store there, or its description cannot be read.
        ObjectStoreError: the place cannot be read at all.
    """
    at = ObjectPlace.of(place)
    store = ShardedStore.load(at)
    if store is None:
        raise StoreError(f"{at.url} is no store. Make one: clip-anatomy index SOURCE {at.url}")
    found, committed = Checked(), sorted(committed_shards(at))
    attempts: dict[int, str] = {}

    def check(what: tuple[str, int | None, str]) -> tuple[str, int | None]:
        name, size, digest = what
        try:
            total, read = at.measure(name)
        except ObjectStoreError as error:
            return f"{name}: {error}", None
        return "" if read == digest else f"{name}: {difference(total, size)}", total

    def objects() -> Iterator[list[tuple[str, int | None, str]]]:
        yield [(BASIS, None, store.basis)]
        for number in committed:
            try:
                commit = read_commit(at, number)
            except StoreError as error:
                found.problems.append(str(error))
                continue
            attempts[number] = commit.folder
            found.images, found.errors = found.images + commit.images, found.errors + commit.errors
            yield [(f"{commit.folder}/{name}", size, digest) for name, (size, digest) in commit.files.items()]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for at_shard, some in enumerate(objects()):
            for problem, size in pool.map(check, some):
                found.problems += [problem] if problem else []
                found.files, found.bytes = found.files + (size is not None), found.bytes + (size or 0)
            progress("shards", at_shard, len(committed))
    if missing := sorted({*range(max(committed, default=-1))} - {*committed}):
        found.notes.append(
            f"{len(missing)} shards before the last are not committed (the first: {missing[0]}): the next index run does them"
        )
    for folder in at.folders("shards/"):
        match = ATTEMPT_NAME.fullmatch(folder)
        if match is None or attempts.get(int(match[1])) != f"shards/{folder}":
            found.notes.append(
                f"shards/{folder} belongs to no commit (a killed or slower run left it); the next index run deletes it"
            )
    return found
