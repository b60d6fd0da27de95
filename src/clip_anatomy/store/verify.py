"""`verify`: is every byte of a store what was written, and does every row have its data?"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clip_anatomy.store import rows as sql
from clip_anatomy.store.blocks import FOLDER, folder_of
from clip_anatomy.store.manifest import BASIS, NAME, Manifest, digest_of
from clip_anatomy.store.stored_moments import FOLDER as MOMENTS
from clip_anatomy.store.stored_moments import Kept, read_kept

__all__ = ["Report", "verify"]


@dataclass(frozen=True)
class Report:
    """What `verify` found.

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


def verify(store: str | Path, step: Callable[[], None] | None = None) -> Report:
    """Read every file of a store and compare it with the checksums taken when it was written.

    Args:
        store: its folder.
        step: called after every file.

    Returns:
        Report; `report.holds` says whether all is well.

    Raises:
        StoreError: no store at all, or its description or rows cannot be read.
    """
    folder = Path(store)
    Manifest.load(folder)
    problems: list[str] = []
    count = size = 0
    with closing(sql.connect_to_read(folder)) as rows:
        rows.execute("BEGIN")
        try:
            problems += [f"{sql.NAME}: {text}" for (text,) in rows.execute("PRAGMA integrity_check") if text != "ok"]
            for path, expected, digest in _files(folder, rows):
                name = path.relative_to(folder).as_posix()
                try:
                    found = path.stat().st_size
                    if expected is not None and found != expected:
                        problems.append(f"{name}: {found:,} bytes instead of {expected:,}")
                    elif digest_of(path) != digest:
                        problems.append(f"{name}: its bytes are not those that were written")
                    count, size = count + 1, size + found
                except OSError as error:
                    problems.append(f"{name}: {'missing' if isinstance(error, FileNotFoundError) else error}")
                if step is not None:
                    step()
            problems += _rows(rows)
            images, errors = (
                rows.execute("SELECT count(*) FROM images WHERE status = ?", (status,)).fetchone()[0]
                for status in ("done", "error")
            )
            notes = list(_leftovers(folder, rows))
        except sqlite3.DatabaseError as error:
            problems.append(f"{sql.NAME}: {error}")
            images = errors = 0
            notes = []
    return Report(str(folder), images, errors, count, size, tuple(problems), tuple(notes))


def _files(folder: Path, rows: sqlite3.Connection) -> Iterator[tuple[Path, int | None, str]]:
    """Every file that a committed row names: path, bytes, digest."""
    facts = sql.facts_of(rows)
    for name in (NAME, BASIS):
        yield folder / name, None, facts.get(name, "")
    for key, files in rows.execute("SELECT key, files FROM blocks ORDER BY turn").fetchall():
        for name, (size, digest) in json.loads(files).items():
            yield folder_of(folder, key) / name, size, digest
    for kept in read_kept(rows):
        yield folder / MOMENTS / kept.file, None, kept.digest


def _rows(rows: sqlite3.Connection) -> Iterator[str]:
    """Rows whose content changed, rows without data, data without rows."""
    counts = dict(rows.execute("SELECT key, count FROM blocks").fetchall())
    filled = dict.fromkeys(counts, 0)
    names: list[str] = [*sql.MARKED, "mark", "status", "block", "place"]
    columns = ", ".join(f'"{name}"' for name in names)
    previous = (None, None)
    for found in rows.execute(f"SELECT {columns} FROM images ORDER BY block, place"):
        values = dict(zip(names, found, strict=True))
        name, block, place = values["id"], values["block"], values["place"]
        if sql.mark_of(values) != values["mark"]:
            yield f"{sql.NAME}: the row of {name!r} is not what was written"
        if values["status"] != "done":
            continue
        if block not in counts or place is None or not 0 <= place < counts[block]:
            yield f"{sql.NAME}: {name!r} has a row but no data"
        elif (block, place) == previous:
            yield f"{sql.NAME}: {name!r} has the data of another image"
        else:
            filled[block] += 1
        previous = (block, place)
    for block, place in rows.execute("SELECT block, place FROM holes"):
        if block in counts and 0 <= place < counts[block]:
            filled[block] += 1
    for key, count in counts.items():
        if filled[key] != count:
            yield f"{FOLDER}/{key:06d}: holds {count} images, rows name {filled[key]}"


def _leftovers(folder: Path, rows: sqlite3.Connection) -> Iterator[str]:
    known = {folder_of(folder, key).name for (key,) in rows.execute("SELECT key FROM blocks")}
    for path in sorted((folder / FOLDER).glob("*")):
        if path.name not in known:
            yield f"{FOLDER}/{path.name} belongs to no image (a killed run left it); the next index run deletes it"
    covers = {key for (key,) in rows.execute("SELECT key FROM blocks")}
    kept: list[Kept] = read_kept(rows)
    if covers and not any(covers <= {*one.covers} for one in kept):
        yield "the last run did not end: moments are taken from the arrays until the next index run has ended"
