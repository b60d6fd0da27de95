"""What makes a store survive kills: one writer at a time, files flushed to the disk, one clear error where that cannot be."""

import json
import os
import socket
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_anatomy.errors import MissingExtra, OutputError, StoreError
from clip_anatomy.files import opened
from clip_anatomy.store import rows as sql

__all__ = ["LOCK", "is_marked", "one_clear_error", "sole_writer"]

LOCK = "lock"
MARK = "clip-anatomy"


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
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error}). Type the path of a folder that you may write"
        ) from error
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            raise StoreError(
                f"{folder} is being written by another process ({_holder(path)}). Wait until it is done, or stop it, and "
                "type the same command again"
            )
        new = not is_marked(folder)
        try:
            holder = {MARK: "store", "pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
            # Over what stands there, and cut afterwards: at no moment is the mark missing.
            file.truncate(file.write(json.dumps(holder).encode()))
        except OSError as error:
            if new:
                raise OutputError(
                    f"{folder} cannot be written ({error}). Free some space, and type the same command again"
                ) from error
        yield


def is_marked(folder: Path) -> bool:
    """Whether a writer of ours was here: before `store.json` is there, its lock is the only mark of a store."""
    try:
        with opened(folder / LOCK) as file:
            return f'"{MARK}": "store"'.encode() in file.read(200)
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        with opened(path) as file:
            holder: dict[str, Any] = json.loads(file.read(10_000))
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
