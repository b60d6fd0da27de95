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
from clip_anatomy.files import path_of

REPORT = "index.html"


@dataclass(frozen=True)
class Kind:
    """What a folder of output holds.

    Attributes:
        noun: what it is called.
        mark: its JSON file, whose `schema` says that a folder is ours.
        schema: that schema.
        names: everything that such a folder may hold: what the new one lacks is taken away with the old one. Empty where the
            names vary; then those count that the old mark lists under `files`.
    """

    noun: str
    mark: str
    schema: str
    names: tuple[str, ...] = ()

    def owns(self, folder: Path) -> bool:
        """Tell whether the mark of this kind is in a folder."""
        try:
            with (folder / self.mark).open("rb") as file:
                return self.schema.encode() in file.read(200)
        except OSError:
            return False

    def written(self, folder: Path) -> tuple[str, ...]:
        """Return the names that an earlier run may have written: the new run takes their place."""
        if self.names or not self.owns(folder):
            return self.names
        try:
            names = json.loads((folder / self.mark).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return ()
        return tuple(name for name in names if isinstance(name, str) and Path(name).name == name)


@dataclass(frozen=True)
class Staging:
    """A folder beside `out`, where everything is written first."""

    out: Path
    folder: Path

    @property
    def files(self) -> list[str]:
        """Names of what was written so far."""
        return sorted(path.name for path in self.folder.iterdir())

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
def staged(out: Path, kind: Kind) -> Generator[Staging]:
    """Write into a staging folder; leaving without an error moves what is in it to `out`, one atomic rename each.

    Fails where `out` cannot be written before any work is done. Files in `out` that are not ours stay; after an error, or
    Ctrl-C, nothing is left behind.

    Args:
        out: the folder to make or to fill.
        kind: what will be in it.

    Yields:
        The staging folder.

    Raises:
        OutputError: `out` cannot be written, or holds a page of something else.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "new"
        >>> with staged(out, Kind("note", "note.json", "a-note/1")) as staging:
        ...     staging.write("a.txt", "whole")
        >>> [p.name for p in out.iterdir()]
        ['a.txt']
    """
    out = path_of(out)
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file; a folder was expected. Type: --out {out}-{kind.noun}")
        if out.is_dir() and not kind.owns(out):
            theirs = [name for name in (REPORT, *kind.names) if (out / name).exists()]
            if theirs:
                raise OutputError(
                    f"{out} holds files of something else: {theirs[0]} was not written by clip-anatomy as its "
                    f"{kind.noun}. Type another folder: --out NAME"
                )
        # Beside `out`, or in it where it exists already: renames stay within one file system either way.
        beside = next(p for p in (out, *out.absolute().parents) if p.exists())
        folder = beside / f".{out.name or kind.noun}.partial-{secrets.token_hex(4)}"
        folder.mkdir()
    except OutputError:
        raise
    except (OSError, ValueError) as e:
        raise _failed(out, e) from e
    try:
        try:
            yield Staging(out, folder)
            _publish(folder, out, kind)
        except OutputError:
            raise
        except OSError as e:
            raise _failed(out, e) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, out: Path, kind: Kind) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(out)
        return
    # The page comes last, so that it never names a picture that is not there yet.
    last, earlier = (kind.mark, REPORT), kind.written(out)
    new = sorted((p.name for p in folder.iterdir()), key=lambda name: (name in last, name))
    old = folder / ".old"
    old.mkdir()
    for name in [*new, *(name for name in earlier if name not in new)]:
        if name in earlier and (out / name).exists():
            (out / name).rename(old / name)
        if name in new:
            (folder / name).replace(out / name)


def write_file(path: Path, content: str | bytes) -> None:
    """Write one file whole or not at all; its folder is made if it is not there.

    Raises:
        OutputError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content if isinstance(content, bytes) else content.encode())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}). Type a path that you may write") from error


def as_json(value: dict[str, Any]) -> str:
    """JSON as every verb prints it: one top-level key a line, plain ASCII, no NaN."""
    rows = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def slug(text: str) -> str:
    """Return a piece of a file's name: at most 40 small ASCII letters and digits.

    Example:
        >>> slug("My cat, at home!"), slug("猫")
        ('my-cat-at-home', 'x')
    """
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in text[:200].lower())
    return "-".join(part for part in letters.split("-") if part)[:40].rstrip("-") or "x"


def _failed(place: Path, error: Exception) -> OutputError:
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return OutputError(f"{place} cannot be written: {why}. Type a folder that you may write: --out NAME")
