"""What is being written is held by a lock of its own, so that what a killed run left is known, and swept by the next one.

The lock belongs to the process: the operating system lets go of it however that ends. Where there are no such locks, nothing is swept.

    .NAME.partial-1a2b3c4d         a file or a folder on its way to NAME; a file is its own lock
    .NAME.partial-1a2b3c4d.lock    the lock and the mark of a folder: without it, the folder is somebody else's, whatever it is called
"""

import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["held_file", "held_folder", "is_partial", "sweep"]

LONGEST = 120  # bytes of a name that are repeated in the name of its partial
TRIES = 5
_LOCKS: Any = None if os.name == "nt" else import_module("fcntl")


@contextmanager
def held_file(beside: Path, name: str, ending: str = "") -> Generator[Path]:
    """Make a file that will be moved to `name`, hold it, and take it away at the end if it is still there.

    Raises:
        OSError: it cannot be made.
    """
    path, lock = beside, None
    for _ in range(TRIES):  # a sweep of another run may come between making and holding
        path = beside / f"{_beginning(name)}{secrets.token_hex(4)}{ending}"
        # Never through a link that somebody put there, and as readable as any file that `open` makes.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            lock = _hold(path)
            break
        except FileNotFoundError:
            continue
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def held_folder(beside: Path, name: str) -> Generator[Path]:
    """Make a folder that will be moved to `name`, hold it, and take it away at the end with what is left in it.

    Raises:
        OSError: it cannot be made.
    """
    with held_file(beside, name, ".lock") as lock:
        folder = lock.with_suffix("")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, name: str | None = None) -> None:
    """Take away what killed runs left in a folder while they wrote `name`, or anything; what is being written now stays."""
    try:
        partial = [path for path in folder.iterdir() if is_partial(path, name) and path.is_file()]
    except OSError:
        return
    for path in partial:
        try:
            lock = _hold(path)
        except OSError:  # being written
            continue
        if lock is None:
            return
        of_folder = path.with_suffix("")
        if path.suffix == ".lock" and not of_folder.is_symlink():
            shutil.rmtree(of_folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        os.close(lock)


def is_partial(path: Path, name: str | None = None) -> bool:
    """Whether a path is called like what is being written, and is no link."""
    beginning = r"\..+\.partial-" if name is None else re.escape(_beginning(name))
    return re.fullmatch(f"{beginning}[0-9a-f]{{8}}(\\.lock)?", path.name) is not None and not path.is_symlink()


def _beginning(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:LONGEST])}.partial-"


def _hold(path: Path) -> int | None:
    """Lock a file; None where there are no locks.

    Raises:
        BlockingIOError: another run holds it.
        FileNotFoundError: it was taken away meanwhile.
    """
    if _LOCKS is None:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        _LOCKS.flock(handle, _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
        if not os.fstat(handle).st_nlink:
            raise FileNotFoundError(path)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None  # a file system without locks
    return handle
