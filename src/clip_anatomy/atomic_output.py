"""Output that is there whole or not at all: built in a folder beside, then moved in."""

import json
import unicodedata
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clip_anatomy import run_record
from clip_anatomy.errors import ClipAnatomyError, OutputError
from clip_anatomy.files import opened, path_of, read_json, written_whole
from clip_anatomy.partial_output import held_folder, sweep

REPORT = "index.html"
MARKS = tuple(
    f"{name}.json"
    for name in (
        "ablate", "align", "atlas", "concepts", "explain", "explain-text", "film", "heatmap", "mutual", "pairs", "paths", "refer", "repair",
        "search", "segment", "tiles",
    )
)  # fmt: skip
"""Files that mark folders with drawings in them."""


@dataclass(frozen=True)
class Kind:
    """What a folder of output holds.

    Attributes:
        noun: what it is called.
        mark: its JSON file, whose `schema` says that a folder is ours.
        schema: that schema.
        names: everything that such a folder may hold: what the new one lacks is taken away with the old one. Empty where the
            names vary; then those count that the old mark lists under `files`. What is neither named nor listed stays.
    """

    noun: str
    mark: str
    schema: str
    names: tuple[str, ...] = ()

    def owns(self, folder: Path) -> bool:
        """Tell whether the mark of this kind is in a folder."""
        try:
            with opened(folder / self.mark) as file:
                return self.schema.encode() in file.read(200)
        except OSError:
            return False

    def written(self, folder: Path) -> tuple[str, ...]:
        """Return the names that an earlier run may have written: the new run takes their place."""
        if self.names or not self.owns(folder):
            return self.names
        try:
            names: Any = read_json(folder / self.mark, "").get("files")
        except ClipAnatomyError:
            return ()
        return tuple(name for name in names if _is_inside(name)) if isinstance(names, list) else ()


@dataclass(frozen=True)
class AtomicOutput:
    """A folder beside `out`, where everything is written before it is moved in."""

    out: Path
    folder: Path

    @property
    def files(self) -> list[str]:
        """Names of what was written so far, with forward slashes."""
        return listed(self.folder)

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file, apart from where it will be.

        Raises:
            OutputError: the disk is full, or the folder vanished.
        """
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        try:
            (self.folder / name).write_bytes(data)
        except OSError as e:
            raise _failed(self.out / name, e) from e


def listed(folder: Path) -> list[str]:
    """List all files under a folder that is being filled, with forward slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def atomic_output(out: Path, kind: Kind) -> Generator[AtomicOutput]:
    """Write into a folder beside; leaving without an error moves what is in it to `out`, one atomic rename each.

    Fails where `out` cannot be written before any work is done. Files in `out` that are not ours stay; after an error, or
    Ctrl-C, nothing is left behind, and what a killed run left is taken away by the next.

    Args:
        out: the folder to make or to fill.
        kind: what will be in it.

    Yields:
        The folder beside.

    Raises:
        OutputError: `out` cannot be written, or holds a page of something else.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "new"
        >>> with atomic_output(out, Kind("note", "note.json", "a-note/1")) as output:
        ...     output.write("a.txt", "whole")
        >>> [p.name for p in out.iterdir()]
        ['a.txt']
    """
    out = path_of(out)
    name = out.name or kind.noun
    with ExitStack() as stack:
        try:
            _refuse_foreign(out, kind)
            # Beside `out`, or in it where it exists already: renames stay within one file system either way.
            beside = next(p for p in (out, *out.absolute().parents) if p.exists())
            for place in {beside, out.absolute().parent}:
                sweep(place, name)
            folder = stack.enter_context(held_folder(beside, name))
        except OutputError:
            raise
        except (OSError, ValueError) as error:
            raise _failed(out, error) from error
        try:
            yield AtomicOutput(out, folder)
            _publish(folder, out, kind)
            run_record.write(out)
        except OutputError:
            raise
        except OSError as error:
            raise _failed(out, error) from error


def _refuse_foreign(out: Path, kind: Kind) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; a folder was expected. Type: out='{out}-{kind.noun}'")
    if out.is_dir() and not kind.owns(out):
        theirs = [name for name in (REPORT, kind.mark, *kind.names) if (out / name).exists()]
        if theirs:
            raise OutputError(
                f"{out} holds files of something else: {theirs[0]} was not written by clip-anatomy as its "
                f"{kind.noun}. Type another folder: out=NAME"
            )


def _publish(folder: Path, out: Path, kind: Kind) -> None:
    """Move everything in. Whatever moment a kill comes at, the mark stays in `out`, and lists what is ours there."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(out)
        return
    earlier = kind.written(out)
    # The page comes after the pictures, so that it never names one that is not there; the mark last, since it lists what is ours.
    new = sorted(listed(folder), key=lambda name: (name == kind.mark, name == REPORT, name))
    for name in {*new, *earlier}:
        _refuse_links(out, name)
    if not kind.names:
        _list_first(out, kind, new)
    for name in new:
        if name == kind.mark:
            _remove(out, {*earlier} - {*new})
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(out / name)


def _remove(out: Path, names: set[str]) -> None:
    """Take away files of ours, and the folders that are empty without them."""
    for name in names:
        if not (out / name).is_dir():
            (out / name).unlink(missing_ok=True)
        for parent in list(PurePosixPath(name).parents)[:-1]:
            with suppress(OSError):  # what a person put there stays
                (out / parent).rmdir()


def _list_first(out: Path, kind: Kind, new: list[str]) -> None:
    """Let the mark that is there list the new files too, before any of them comes in."""
    mark = read_json(out / kind.mark, "") if kind.owns(out) else {"schema": kind.schema}
    listed_before = kind.written(out)
    if set(new) - set(listed_before):
        with written_whole(out / kind.mark) as temporary:
            temporary.write_text(as_json({**mark, "files": sorted({*new, *listed_before})}), encoding="utf-8")


def _refuse_links(out: Path, name: str) -> None:
    """Raise OutputError where a folder on the way to a file is a link: what it leads to is not ours."""
    for parent in list(PurePosixPath(name).parents)[:-1]:
        if (out / parent).is_symlink():
            raise OutputError(f"{out / parent} is a link, which is not followed. Type another folder: out=NAME")


def _is_inside(name: object) -> bool:
    """Whether a name from a mark stays inside its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def made_here(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder is an output or a store of this program, by its mark.

    Args:
        folder: where.
        files: the names in it.
    """
    if {"store.json", "rows.sqlite"} <= {*files} or {"shards.json", "basis.safetensors"} <= {*files}:
        return True
    return any(Kind("", name, "clip-anatomy/").owns(folder) for name in MARKS if name in files)


def write_file(path: Path, content: str | bytes) -> None:
    """Write one file whole or not at all; its folder is made if it is not there.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _failed(path, error) from error
    with written_whole(path, "Type a path that you may write") as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def as_json(value: dict[str, Any]) -> str:
    """JSON as every verb prints it: one top-level key a line, plain ASCII, no NaN."""
    rows = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def slug(text: str, most: int = 60) -> str:
    """Write a piece of a file's name: small letters, marks and digits of any script, at most `most` bytes of UTF-8.

    Example:
        >>> slug("My cat, at home!"), slug("Ein Bär"), slug("猫 と 犬"), slug("…")
        ('my-cat-at-home', 'ein-bär', '猫-と-犬', 'x')
    """
    composed = unicodedata.normalize("NFC", text[:400]).lower()
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else "-" for c in composed)
    joined = "-".join(part for part in kept.split("-") if part)
    return joined.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore").rstrip("-") or "x"


def _failed(place: Path, error: Exception) -> OutputError:
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return OutputError(f"{place} cannot be written: {why}. Type a folder that you may write: out=NAME")
