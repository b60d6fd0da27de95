"""A small cache on disk: bytes under names, shared by any number of processes. Losing it costs time and nothing else."""

import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clip_anatomy.files import digest

__all__ = ["DiskCache", "cache_folder"]

WAIT_SECONDS = 20.0
CHECKED = 16  # bytes of the checksum in front of a value: a flipped bit is another embedding
AT_ONCE = 500  # names in one question; SQLite takes some 30,000 at most


def cache_folder() -> Path:
    """Find the folder of caches: $CLIP_ANATOMY_CACHE, else the user's cache folder."""
    if folder := os.environ.get("CLIP_ANATOMY_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "clip-anatomy"


def _checksum(name: str, value: bytes) -> bytes:
    return bytes.fromhex(digest([name, b"\0", value], size=CHECKED))


@dataclass(frozen=True)
class DiskCache:
    """One SQLite file of name → bytes. One that cannot be written or read is simply empty.

    Attributes:
        path: the file; made on first use. None keeps nothing.

    Example:
        >>> import tempfile
        >>> cache = DiskCache(Path(tempfile.mkdtemp()) / "texts.sqlite")
        >>> cache.put({"a": b"one"})
        >>> cache.get(["a", "b"])
        {'a': b'one'}
    """

    path: Path | None

    def get(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read what is there of these names, as it was written; what was damaged since is not there."""
        wanted = list(dict.fromkeys(names))
        values: dict[str, bytes] = {}
        if self.path is None or not self.path.is_file():
            return values
        try:
            with closing(self._open()) as database:
                for start in range(0, len(wanted), AT_ONCE):
                    some = wanted[start : start + AT_ONCE]
                    marks = ",".join("?" * len(some))
                    for name, value in database.execute(f"SELECT name, value FROM kept WHERE name IN ({marks})", some):
                        if isinstance(value, bytes) and value[:CHECKED] == _checksum(name, value[CHECKED:]):
                            values[name] = value[CHECKED:]
        except (sqlite3.Error, OSError):
            return values
        return values

    def put(self, values: Mapping[str, bytes]) -> None:
        """Store these; the last writer of a name wins. A full disk or a folder that is read-only is no error."""
        if self.path is None or not values:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._write(values)
            except sqlite3.OperationalError:  # locked for too long, full, read-only: go on without
                return
            except sqlite3.DatabaseError:  # not a database (any more): a cache may be thrown away
                self.path.unlink(missing_ok=True)
                self._write(values)
        except (sqlite3.Error, OSError):
            return

    def _write(self, values: Mapping[str, bytes]) -> None:
        with closing(self._open()) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                "INSERT OR REPLACE INTO kept VALUES (?, ?)",
                [(name, _checksum(name, value) + value) for name, value in values.items()],
            )
            database.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        assert self.path is not None
        return sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
