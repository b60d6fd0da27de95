"""What makes a store survive kills: one writer at a time, files flushed to the disk, one clear error where that cannot be."""

import json
import os
import socket
import sqlite3
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_anatomy.errors import MissingExtra, OutputError, StoreError
from clip_anatomy.store import rows as sql

__all__ = ["LOCK", "flush", "one_clear_error", "sole_writer"]

LOCK = "lock"


@contextmanager
def sole_writer(folder: Path) -> Generator[None]:
    """Hold the store's lock, which the operating system lets go of when the process ends, however it ends.

    The file stays behind when a process is killed, the lock on it does not: a stale file is simply taken over.

    Raises:
        StoreError: another process is writing; says which.
        OutputError: the folder cannot be written.
        MissingExtra: filelock is missing, or too old.
    """
    try:
        from filelock import lock_descriptor
    except ImportError as error:
        raise MissingExtra("filelock", "library") from error
    path = folder / LOCK
    try:
        file = path.open("a+")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error}). Type the path of a folder that you may write"
        ) from error
    with file:
        if not lock_descriptor(file.fileno(), blocking=False):
            raise StoreError(
                f"{folder} is being written by another process ({_holder(path)}). Wait until it is done, or stop it, and "
                "type the same command again"
            )
        try:
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}, file)
            file.flush()
        except OSError:  # a full disk must not keep us from reading, or from freeing some
            pass
        yield


def _holder(path: Path) -> str:
    try:
        holder: dict[str, Any] = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


@contextmanager
def one_clear_error(folder: Path) -> Generator[None]:
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
