"""What is known of every image, in SQLite: one row an image, one row a block of arrays, a few facts.

SQLite's transactions are the store's transactions: an array file counts only once a committed row says so.
"""

import json
import sqlite3
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from clip_anatomy.data.picture import Picture
from clip_anatomy.errors import BadInput, StoreError, reading
from clip_anatomy.files import digest

__all__ = [
    "ImageRow", "connect", "connect_to_read", "content_of", "facts_of", "mark_of", "query", "query_places", "reading_rows",
    "row_of",
]  # fmt: skip

NAME = "rows.sqlite"
WAIT_SECONDS = 60.0
AT_ONCE = 65_536
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (key INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS blocks (
  key INTEGER PRIMARY KEY AUTOINCREMENT, turn INTEGER NOT NULL, count INTEGER NOT NULL, files TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS holes (block INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (block, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, file TEXT NOT NULL, about TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
  key INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  source INTEGER NOT NULL,
  path TEXT,
  size INTEGER, "row" INTEGER, "col" INTEGER, digest TEXT,
  label TEXT NOT NULL DEFAULT '', "group" TEXT NOT NULL DEFAULT '',
  captions TEXT NOT NULL DEFAULT '[]', meta TEXT NOT NULL DEFAULT '{}',
  status TEXT NOT NULL CHECK (status IN ('done', 'error', 'removed', 'gone')),
  error TEXT NOT NULL DEFAULT '',
  block INTEGER, place INTEGER,
  mark INTEGER NOT NULL,
  time INTEGER
);
CREATE INDEX IF NOT EXISTS images_by_place ON images (block, place);
CREATE INDEX IF NOT EXISTS images_by_status ON images (status) WHERE status <> 'done';
"""
MARKED = ("id", "path", "size", "row", "col", "digest", "label", "group", "captions", "meta", "error")
COLUMNS = (*MARKED, "source", "status", "block", "place", "mark")
WRITTEN = (*COLUMNS, "time")  # of the file, in nanoseconds; stores of before have none


@dataclass(frozen=True)
class ImageRow:
    """One image of a store.

    Attributes:
        index: its place on the `image` axis of everything the store returns; −1 where it has none (status "error").
        id: its name in its source.
        path: where the source finds it again; None if it was handed over in memory.
        size: bytes of its file.
        row: rows of the upright original.
        col: its columns.
        digest: hash of its file: equal for duplicates.
        label: class, "" if not known.
        group: group, "" if not known.
        captions: texts that describe it.
        meta: other columns of the table it came with.
        status: "done" or "error".
        error: what was wrong with it.
        source: spec of the collection it came from.
    """

    index: int
    id: str
    path: str | None
    size: int | None
    row: int | None
    col: int | None
    digest: str | None
    label: str = ""
    group: str = ""
    captions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: str = "done"
    error: str = ""
    source: str = ""


def connect(folder: Path) -> sqlite3.Connection:
    """Open the rows to write; makes them if they are not there.

    Raises:
        StoreError: the file is no database, or cannot be opened.
    """
    try:
        rows = sqlite3.connect(folder / NAME, timeout=WAIT_SECONDS, isolation_level=None)
        rows.execute(
            "PRAGMA page_size = 2048"
        )  # of a new file: 48 bytes an image less in a store of 500 than with 4096
        rows.execute("PRAGMA synchronous = FULL")
        rows.executescript(SCHEMA)
        if "time" not in {name for _, name, *_ in rows.execute("PRAGMA table_info(images)")}:
            rows.execute("ALTER TABLE images ADD COLUMN time INTEGER")
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{folder / NAME} cannot be opened ({error}). Free some space, or put its copy back"
        ) from error
    return rows


def connect_to_read(folder: Path) -> sqlite3.Connection:
    """Open the rows read-only; usable from any thread.

    Raises:
        StoreError: they are missing or damaged.
    """
    path = folder / NAME
    if path.is_symlink():  # SQLite may write to roll back what a killed writer left
        raise StoreError(f"{path} is a link, which is not followed. Put the file itself in its place")
    if not path.is_file():
        raise StoreError(f"{path} is missing. Put its copy back, or index anew")
    try:
        rows = _read_only(path)
        try:
            rows.execute("SELECT count(*) FROM blocks").fetchone()
        except sqlite3.OperationalError:
            # A writer was killed in the middle of a commit: SQLite rolls it back, for which it must be let write.
            rows.close()
            with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as healing:
                healing.execute("SELECT count(*) FROM blocks").fetchone()
            rows = _read_only(path)
            rows.execute("SELECT count(*) FROM blocks").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} cannot be read ({error}). Put its copy back, or index anew") from error
    return rows


@contextmanager
def reading_rows(folder: Path) -> Generator[sqlite3.Connection]:
    """Open the rows read-only for a while; whatever is wrong with them, found when they are opened or later, is one error.

    Raises:
        StoreError: they are missing or damaged; says how to find what is.
    """
    with (
        reading(folder / NAME, f"To see what is damaged, type: clip-anatomy verify {folder}", StoreError),
        closing(connect_to_read(folder)) as rows,
    ):
        yield rows


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def facts_of(rows: sqlite3.Connection) -> dict[str, str]:
    """Return all facts."""
    return dict(rows.execute("SELECT name, value FROM facts").fetchall())


def epoch_of(rows: sqlite3.Connection) -> int:
    """Count how often images were removed or blocks merged: what was opened before must be opened again."""
    return int(facts_of(rows).get("epoch", 0))


def content_of(rows: sqlite3.Connection) -> str:
    """Hash what the store holds: the checksums of its blocks' files, in their order, and the images that were removed.

    What is kept beside a store is of it while this is the same; counts of images say nothing about which they are.
    """
    blocks = rows.execute("SELECT key, files FROM blocks ORDER BY turn").fetchall()
    holes = rows.execute("SELECT block, place FROM holes ORDER BY block, place").fetchall()
    return digest(json.dumps([blocks, holes]))


def refuse_changed(rows: sqlite3.Connection, epoch: int, folder: Path) -> None:
    """Raise StoreError where the store was changed since it was opened."""
    if epoch_of(rows) != epoch:
        raise StoreError(f"{folder} was changed since it was opened. Type: Store.open({str(folder)!r}) again")


def set_fact(rows: sqlite3.Connection, name: str, value: object) -> None:
    """Set one fact."""
    rows.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, str(value))
    )


def source_key(rows: sqlite3.Connection, spec: str) -> int:
    """Return the number of a source, given to it on first sight."""
    rows.execute("INSERT INTO sources (spec) VALUES (?) ON CONFLICT DO NOTHING", (spec,))
    return int(rows.execute("SELECT key FROM sources WHERE spec = ?", (spec,)).fetchone()[0])


def mark_of(values: Mapping[str, Any]) -> int:
    """Checksum of what a row says, so that a flipped byte shows; its place is checked against the blocks instead."""
    return zlib.crc32(
        json.dumps([values[name] for name in MARKED], ensure_ascii=False).encode("utf-8", "surrogatepass")
    )


def write_row(rows: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    """Write a row, or write it anew if its id is known: then it keeps its key."""
    full = {"time": None, **values, "mark": mark_of(values)}
    names = ", ".join(f'"{name}"' for name in WRITTEN)
    updates = ", ".join(f'"{name}" = excluded."{name}"' for name in WRITTEN if name != "id")
    rows.execute(
        f"INSERT INTO images ({names}) VALUES ({', '.join('?' * len(WRITTEN))}) ON CONFLICT (id) DO UPDATE SET {updates}",
        [full[name] for name in WRITTEN],
    )


def changed_labels(row: sqlite3.Row, picture: Picture) -> dict[str, str]:
    """Return columns of a known image that its source says something else about now; what it is silent about stays."""
    old = {name: row[name] for name in ("label", "group", "captions", "meta")}
    captions = json.dumps(list(picture.captions), ensure_ascii=False) if picture.captions else old["captions"]
    meta = {**json.loads(old["meta"]), **picture.meta}
    new = {
        "label": picture.label or old["label"],
        "group": picture.group or old["group"],
        "captions": captions,
        "meta": json.dumps(meta, ensure_ascii=False),
    }
    return new if new != old else {}


def relabel(rows: sqlite3.Connection, id: str, labels: Mapping[str, str]) -> None:
    """Write what is said of a known image; everything else of its row stays."""
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    row = rows.execute(f"SELECT {names} FROM images WHERE id = ?", (id,)).fetchone()
    write_row(rows, {**dict(zip(COLUMNS, row, strict=True)), **labels})


def query(
    rows: sqlite3.Connection, status: str, where: str | None, parameters: Sequence[Any] | Mapping[str, Any]
) -> list[sqlite3.Row]:
    """Return rows of one status that satisfy a condition, in the order of the arrays.

    The condition sees a view of the rows and nothing else: it can neither write nor reach another table.

    Raises:
        BadInput: the condition is not SQL over these columns.
    """
    return [row for piece in _select(rows, "*", status, (where, parameters), order="turn, place, key") for row in piece]


def query_places(
    rows: sqlite3.Connection, where: str | None, parameters: Sequence[Any] | Mapping[str, Any]
) -> Int64[np.ndarray, " image"]:
    """block · 2³² + place of the images that are there and satisfy a condition, ascending: one number an image, quick for millions.

    Raises:
        BadInput: the condition is not SQL over these columns.
    """
    pieces = _select(rows, "(block << 32) | place", "done", (where, parameters))
    places = np.concatenate([np.zeros(0, np.int64), *(np.array(piece, np.int64)[:, 0] for piece in pieces)])
    return np.sort(places)


def _select(
    rows: sqlite3.Connection,
    what: str,
    status: str,
    condition: tuple[str | None, Sequence[Any] | Mapping[str, Any]],
    *,
    order: str = "",
) -> Iterator[list[Any]]:
    where, parameters = condition
    columns = ", ".join(f'images."{name}"' for name in ("key", *COLUMNS))
    inner = (
        f"SELECT {columns}, turn FROM images LEFT JOIN blocks ON blocks.key = images.block WHERE status = '{status}'"
    )
    last = f" ORDER BY {order}" if order else ""
    text = f"SELECT {what} FROM ({inner}) AS images WHERE (\n{where or '1'}\n){last}"
    rows.set_authorizer(_allow)
    rows.row_factory = sqlite3.Row if what == "*" else None
    try:
        cursor = rows.execute(text, parameters)
        while piece := cursor.fetchmany(AT_ONCE):
            yield piece
    except (sqlite3.Error, sqlite3.Warning, OverflowError, TypeError) as error:
        known = 'id, path, size, "row", "col", digest, label, "group", captions, meta'
        raise BadInput(
            f"the filter {where!r} is not SQL that can be used here ({error}). Its columns are {known}; type, for example: "
            "where='label = ? AND size > 1000', parameters=['dog']"
        ) from error
    finally:
        rows.set_authorizer(None)
        rows.row_factory = None


def _allow(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION):
        return sqlite3.SQLITE_DENY if second in ("load_extension", "writefile", "readfile") else sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and first in ("images", "blocks"):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def row_of(index: int, row: Any, specs: Mapping[int, str]) -> ImageRow:
    """Turn a row of SQLite into an `ImageRow`."""
    same = ("id", "path", "size", "row", "col", "digest", "label", "group", "status", "error")
    captions, meta = json.loads(row["captions"]), json.loads(row["meta"])
    words = (row["id"], row["label"], row["group"], row["error"], *captions, *meta)
    if not isinstance(captions, list) or not isinstance(meta, dict) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"the row of {row['id']!r} is not what was written")
    return ImageRow(
        index=index,
        captions=tuple(captions),
        meta=meta,
        source=specs.get(row["source"], ""),
        **{name: row[name] for name in same},
    )
