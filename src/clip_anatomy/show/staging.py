"""Output that is there whole or not at all: built in a folder beside, then moved in."""

import json
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_anatomy.errors import OutputError

MARK = "explain.json"  # its `schema` says that a folder is ours
SCHEMA = "clip-anatomy/explain/1"
REPORT = "index.html"


@dataclass(frozen=True)
class Staging:
    """A folder beside `out`, where everything is written first."""

    out: Path
    folder: Path

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file into the staging folder.

        Raises:
            OutputError: the disk is full, or the folder vanished.
        """
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        try:
            (self.folder / name).write_bytes(data)
        except OSError as e:
            raise _failed(self.out / name, e) from e


@contextmanager
def staged(out: Path) -> Generator[Staging]:
    """Write into a staging folder; leaving without an error moves its files to `out`, one atomic rename each.

    Fails where `out` cannot be written before any work is done. Files in `out` that are not ours stay; after an error, or
    Ctrl-C, nothing is left behind.

    Args:
        out: the folder to make or to fill.

    Yields:
        The staging folder.

    Raises:
        OutputError: `out` cannot be written, or holds a report of something else.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "new"
        >>> with staged(out) as staging:
        ...     staging.write("a.txt", "whole")
        >>> [p.name for p in out.iterdir()]
        ['a.txt']
    """
    out = Path(out).expanduser()
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file; a folder was expected. Type: --out {out}-report")
        if out.is_dir() and not _ours(out) and (out / REPORT).exists():
            raise OutputError(
                f"{out / REPORT} is there and was not written by clip-anatomy. Type another folder: --out NAME"
            )
        # Beside `out`, or in it where it exists already: renames stay within one file system either way.
        beside = next(p for p in (out, *out.absolute().parents) if p.exists())
        folder = beside / f".{out.name or 'report'}.partial-{secrets.token_hex(4)}"
        folder.mkdir()
    except OutputError:
        raise
    except (OSError, ValueError) as e:
        raise _failed(out, e) from e
    try:
        yield Staging(out, folder)
        try:
            _publish(folder, out)
        except OSError as e:
            raise _failed(out, e) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, out: Path) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(out)
        return
    # The report comes last, so that it never names a picture that is not there yet.
    for file in sorted(folder.iterdir(), key=lambda p: (p.name in (MARK, REPORT), p.name)):
        file.replace(out / file.name)


def as_json(value: dict[str, Any]) -> str:
    """JSON as every verb prints it: one top-level key a line, plain ASCII, no NaN."""
    rows = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _ours(folder: Path) -> bool:
    try:
        with (folder / MARK).open("rb") as file:
            return SCHEMA.encode() in file.read(200)
    except OSError:
        return False


def _failed(place: Path, error: Exception) -> OutputError:
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return OutputError(f"{place} cannot be written: {why}. Type a folder that you may write: --out NAME")
