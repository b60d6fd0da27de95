"""`verify`: is every byte of a store what was written, and does every row have its data?"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_anatomy.errors import BadInput
from clip_anatomy.files import digest_of_file
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.store import rows as sql
from clip_anatomy.store.blocks import FOLDER, folder_of
from clip_anatomy.store.catalogue import place_of
from clip_anatomy.store.manifest import BASIS, NAME, Manifest
from clip_anatomy.store.shards import is_sharded
from clip_anatomy.store.stored_moments import FOLDER as MOMENTS
from clip_anatomy.store.stored_moments import moments_entry, read_stored_moments
from clip_anatomy.store.verify_shards import verify_shards

__all__ = ["VerifyReport", "verify"]


@dataclass(frozen=True, repr=False)
class VerifyReport(Result):
    """What is wrong with a store.

    Attributes:
        store: path of the store.
        images: images it holds.
        errors: rows of images that could not be used (no fault of the store).
        files: files whose bytes were compared with what was written.
        bytes: how many bytes.
        problems: everything that is wrong, one sentence each.
        notes: what is not wrong but worth knowing, such as leftovers of a killed run.
    """

    store: str
    images: int
    errors: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": "clip-anatomy/verify/1", "holds": self.holds, **asdict(self)}

    def summary(self) -> str:
        """Return what is wrong, what is worth knowing, and the counts."""
        verdict = "all is well" if self.holds else f"{len(self.problems)} things are wrong"
        counts = (
            f"{self.store}: {self.images:,} images in {self.files:,} files of {self.bytes / 1e6:,.1f} MB: {verdict}"
        )
        return "\n".join(
            [*(f"WRONG  {one}" for one in self.problems), *(f"note   {one}" for one in self.notes), counts]
        )


@public
def verify(store: str | Path, progress: Progress | None = None) -> VerifyReport:
    """Verify a store: read every file and compare it with the checksums taken when it was written.

    Args:
        store: its folder; or the folder or address of a sharded store, whose objects are compared with the commits.
        progress: called after every file, or every shard.

    Returns:
        What is wrong; its `holds` says whether all is well.

    Raises:
        StoreError: no store at all, or its description or rows cannot be read.
        ObjectStoreError: the address cannot be read.
    """
    folder, tell = Path(store), progress or silent
    place = store if is_sharded(store) else place_of(folder)
    if place is not None:
        found = verify_shards(place, tell)
        counts = found.images, found.errors, found.files, found.bytes
        return VerifyReport(str(ObjectPlace.of(place).url), *counts, tuple(found.problems), tuple(found.notes))
    Manifest.load(folder)
    problems: list[str] = []
    count = size = 0
    images = errors = 0
    notes: list[str] = []
    with sql.reading_rows(folder) as rows:
        rows.execute("BEGIN")
        try:
            problems += [f"{sql.NAME}: {text}" for (text,) in rows.execute("PRAGMA integrity_check") if text != "ok"]
            problems += _entries(rows)
            files = list(_files(folder, rows))
            for at, (path, expected, digest) in enumerate(files, 1):
                problem, digest_read = _problem(path, expected, digest)
                if problem:
                    problems.append(f"{path.relative_to(folder).as_posix()}: {problem}")
                count, size = count + (digest_read is not None), size + (digest_read or 0)
                tell("files", at, len(files))
            problems += _rows(rows)
            images, errors = (
                rows.execute("SELECT count(*) FROM images WHERE status = ?", (status,)).fetchone()[0]
                for status in ("done", "error")
            )
            notes += _leftovers(folder, rows)
        except sqlite3.DatabaseError as error:
            problems.append(f"{sql.NAME}: {error}")
    return VerifyReport(str(folder), images, errors, count, size, tuple(problems), tuple(notes))


def _problem(path: Path, expected: int | None, digest: str) -> tuple[str, int | None]:
    """Say what is wrong with a file, and its bytes."""
    try:
        size = path.stat().st_size
        if expected is not None and size != expected:
            return f"{size:,} bytes instead of {expected:,}", size
        return "" if digest_of_file(path) == digest else "its bytes are not those that were written", size
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else str(error), None


def _entries(rows: sqlite3.Connection) -> Iterator[str]:
    """Return entries of blocks and moments that are not what was written."""
    for key, count, files in rows.execute("SELECT key, count, files FROM blocks").fetchall():
        if not isinstance(count, int) or not _files_of(files):
            yield f"{sql.NAME}: the entry of block {key} is not what was written"
    for name, about in rows.execute("SELECT name, about FROM kept").fetchall():
        try:
            moments_entry(about)
        except BadInput as error:
            yield f"{sql.NAME}: the entry of the moments {name!r} is not what was written ({error})"


def _files_of(text: Any) -> dict[str, tuple[int, str]]:
    """Return the files of a block, by name: bytes and digest; none where the entry is damaged."""
    try:
        return {str(name): (int(size), str(digest)) for name, (size, digest) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _files(folder: Path, rows: sqlite3.Connection) -> Iterator[tuple[Path, int | None, str]]:
    """Return every file that a committed row names: path, bytes, digest."""
    facts = sql.facts_of(rows)
    for name in (NAME, BASIS):
        yield folder / name, None, facts.get(name, "")
    for key, files in rows.execute("SELECT key, files FROM blocks ORDER BY turn").fetchall():
        for name, (size, digest) in _files_of(files).items():
            yield folder_of(folder, key) / name, size, digest
    for stored in read_stored_moments(rows):
        yield folder / MOMENTS / stored.file, None, stored.digest


def _rows(rows: sqlite3.Connection) -> Iterator[str]:
    """Return rows whose content changed, rows without data, data without rows."""
    counts = {key: count for key, count in rows.execute("SELECT key, count FROM blocks") if isinstance(count, int)}
    filled = dict.fromkeys(counts, 0)
    names: list[str] = [*sql.MARKED, "mark", "status", "block", "place"]
    columns = ", ".join(f'"{name}"' for name in names)
    previous = (None, None)
    for row in rows.execute(f"SELECT {columns} FROM images ORDER BY block, place"):
        values = dict(zip(names, row, strict=True))
        name, block, place = values["id"], values["block"], values["place"]
        if not _is_marked(values):
            yield f"{sql.NAME}: the row of {name!r} is not what was written"
        if values["status"] != "done":
            continue
        if block not in counts or not isinstance(place, int) or not 0 <= place < counts[block]:
            yield f"{sql.NAME}: {name!r} has a row but no data"
        elif (block, place) == previous:
            yield f"{sql.NAME}: {name!r} has the data of another image"
        else:
            filled[block] += 1
        previous = (block, place)
    for block, place in rows.execute("SELECT block, place FROM holes"):
        if block in counts and isinstance(place, int) and 0 <= place < counts[block]:
            filled[block] += 1
    for key, count in counts.items():
        if filled[key] != count:
            yield f"{FOLDER}/{key:06d}: holds {count} images, rows name {filled[key]}"


def _is_marked(values: dict[str, Any]) -> bool:
    try:
        return sql.mark_of(values) == values["mark"]
    except (TypeError, ValueError):  # bytes where a text was
        return False


def _leftovers(folder: Path, rows: sqlite3.Connection) -> Iterator[str]:
    known = {folder_of(folder, key).name for (key,) in rows.execute("SELECT key FROM blocks")}
    for path in sorted((folder / FOLDER).glob("*")):
        if path.name not in known:
            yield f"{FOLDER}/{path.name} belongs to no image (a killed run left it); the next index run deletes it"
    covers = {key for (key,) in rows.execute("SELECT key FROM blocks")}
    if covers and not any(covers <= {*one.covers} for one in read_stored_moments(rows)):
        yield "the last run did not end: moments are taken from the arrays until the next index run has ended"
