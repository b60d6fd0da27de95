"""One writer a store: an operating-system lock on a file, which vanishes with the process that held it."""

import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clip_anatomy.errors import OutputError, StoreError

__all__ = ["writing"]

NAME = "lock"


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Hold the store's lock.

    The file stays behind when a process is killed, the lock on it does not: a stale file is simply taken over.

    Raises:
        StoreError: another process is writing; says which.
        OutputError: the folder cannot be written.
    """
    path = folder / NAME
    try:
        file = path.open("a+")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error}). Type the path of a folder that you may write"
        ) from error
    with file:
        try:
            _lock(file)
        except OSError as error:
            raise StoreError(
                f"{folder} is being written by another process ({_holder(path)}). Wait until it is done, or stop it, and "
                "type the same command again"
            ) from error
        try:
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}, file)
            file.flush()
        except OSError:  # a full disk must not keep us from reading, or from freeing some
            pass
        yield


def _holder(path: Path) -> str:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _lock(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        getattr(msvcrt, "locking")(file.fileno(), getattr(msvcrt, "LK_NBLCK"), 1)  # noqa: B009 - absent elsewhere
        return
    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
