"""What it takes to say that something is on the disk: flushed files, and one clear error where that cannot be."""

import os
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from clip_anatomy.errors import OutputError, StoreError
from clip_anatomy.store import rows as sql

__all__ = ["flush", "saving"]


@contextmanager
def saving(folder: Path) -> Generator[None]:
    """Turn a full or vanished disk into one clear error."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        raise OutputError(
            f"{folder} cannot be written any more ({error}). Everything committed so far is kept. Free some space or bring "
            "the disk back, and type the same command again: it goes on"
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{folder / sql.NAME} is damaged ({error}). Type: clip-anatomy verify {folder}") from error


def flush(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            continue
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
