"""Names of files as people type them, the hash of the project, and the one way to read JSON and to write a file whole or not at all."""

import codecs
import errno
import hashlib
import json
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from clip_anatomy.errors import BadInput, ClipAnatomyError, OutputError, reading
from clip_anatomy.partial_output import held_file, sweep

__all__ = [
    "digest", "digest_of_file", "flush", "is_there", "mapped_array", "opened", "path_of", "random_number", "read_json", "read_lines", "read_safetensors", "resolved", "text_lines",
    "write_safetensors", "write_text", "written_whole",
]  # fmt: skip

HashInput = str | bytes | memoryview
FILE_CHUNK = 2**20  # bytes read at once
LARGEST_JSON = 2**30  # bytes
LONGEST_LINE, LARGEST_TEXT = 2**20, 2**28  # characters of a line, and of a text that is read whole


def path_of(name: str | Path) -> Path:
    """Take a name as people type it: `~` is their home; a name that only begins like one (`~$draft.png`) stays as it is.

    Example:
        >>> path_of("~$draft.png").name
        '~$draft.png'
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def resolved(path: Path) -> Path:
    """Follow all links of a path; one that leads round in a circle stays a name, for whoever opens it to say what it is."""
    return Path(os.path.realpath(path))


def is_there(path: Path) -> bool:
    """Tell whether a file or folder is there; one with a name that no file can have (too long, with a zero byte) is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def opened(path: Path) -> BinaryIO:
    """Open a file to read its bytes. A pipe that lies where a file belongs is not waited for, unless it was typed as /dev/stdin or /dev/fd/N.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    piped = path.parent in (Path("/dev"), Path("/dev/fd"))
    handle = os.open(path, os.O_RDONLY | (0 if piped else getattr(os, "O_NONBLOCK", 0)) | getattr(os, "O_BINARY", 0))
    if piped or stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, "it is no file", str(path))


def digest(
    content: HashInput | Iterable[HashInput],
    *,
    size: int = 16,
    key: str = "",
    algorithm: Literal["blake2b", "sha256"] = "blake2b",
) -> str:
    """Hash bytes or text (as UTF-8), in one piece or in many: the only hash of names, stores, edits and caches.

    Args:
        content: what is hashed; pieces count as if they were joined.
        size: bytes of the hash.
        key: hexadecimal key of the hash, where the same content has another name under another key.
        algorithm: SHA-256 (cut to `size`) where a person may compare with another tool, or files hold names of it already.

    Returns:
        2 · size hexadecimal digits.

    Example:
        >>> digest("a red circle", size=4) == digest(["a red ", b"circle"], size=4)
        True
    """
    pieces = [content] if isinstance(content, str | bytes | memoryview) else content
    blake2b = algorithm == "blake2b"
    total = hashlib.blake2b(key=bytes.fromhex(key), digest_size=size) if blake2b else hashlib.sha256()
    for piece in pieces:
        total.update(piece.encode() if isinstance(piece, str) else piece)
    return total.hexdigest()[: 2 * size]


def digest_of_file(path: Path) -> str:
    """Hash the bytes of a file, a chunk at a time."""
    with opened(path) as file:
        return digest(iter(partial(file.read, FILE_CHUNK), b""))


def random_number(seed: int, name: str, *, size: int = 8) -> int:
    """Draw a number of `size` bytes that depends on the seed and the name alone: the same on every machine."""
    return int.from_bytes(bytes.fromhex(digest(f"{seed} {name}".encode("utf-8", "replace"), size=size)), "little")


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


@contextmanager
def written_whole(path: Path, instead: str = "Give a path in a folder that exists and has room") -> Generator[Path]:
    """Write one file whole or not at all: yield a name beside `path`, flush it at the end, and move it into place.

    What a killed run left beside `path` is taken away first. A link at `path` is replaced, not followed.

    Args:
        path: the file; its folder must exist.
        instead: what to do where it cannot be written.

    Yields:
        An empty file, to be written by its name.

    Raises:
        OutputError: the place cannot be written; nothing is left behind.
    """
    from safetensors import SafetensorError

    if "\0" in str(path):
        raise OutputError(f"{path} cannot be written (a name holds no zero byte). {instead}")
    try:
        sweep(path.parent, path.name)
        with held_file(path.parent, path.name) as temporary:
            mode = temporary.stat().st_mode
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.chmod(mode)  # safetensors' own files are for one's own eyes only
            temporary.replace(path)
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written ({error}). {instead}") from error


def mapped_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """Map a new `.npy` file for writing, its room on the disk taken at once.

    A mapped file is full of holes: a disk that fills up while they are written ends the process (SIGBUS), no exception does.

    Raises:
        OSError: there is no room.
    """
    values = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return values


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_safetensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> Path:
    """Write tensors and string metadata; see `written_whole`."""
    from safetensors.torch import save_file

    with written_whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)
    return path


def read_json(
    path: Path, instead: str, *, of: type = dict, kind: type[ClipAnatomyError] = BadInput, largest: int = LARGEST_JSON
) -> Any:
    """Read JSON of bounded size and any depth: the one boundary of all JSON files.

    Args:
        path: the file.
        instead: what to do or type instead, where it cannot be read.
        of: what it must hold: an object (dict), a list, or anything (object).
        kind: the error to raise.
        largest: bytes; a larger file is not read at all.

    Raises:
        ClipAnatomyError: of that kind: no such file, too large, not JSON, or something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_text(path, '{"label": "cat"}')
        >>> read_json(path, "Write it anew")
        {'label': 'cat'}
    """
    with reading(path, instead, kind):
        size = path.stat().st_size
        if size > largest:
            raise kind(f"{path} has {size:,} bytes, {largest:,} are read. {instead}")
        with opened(path) as file:
            content = json.loads(file.read())  # UTF-8 or UTF-16, with or without a byte order mark
        if not isinstance(content, of):
            raise kind(f"{path} holds a JSON {type(content).__name__}; a {of.__name__} was expected. {instead}")
        return content


def text_lines(
    path: Path,
    instead: str = "Type a text file in UTF-8",
    kind: type[ClipAnatomyError] = BadInput,
    errors: str = "strict",
) -> Iterator[str]:
    """Read a text file line by line, each of bounded length: the one boundary of lists and tables, however large they are.

    Args:
        path: the file.
        instead: what to do or type instead, where it cannot be read.
        kind: the error to raise.
        errors: what becomes of bytes that are no UTF-8, as for `open`; a byte order mark says that it is UTF-16. NUL characters are left out.

    Raises:
        ClipAnatomyError: of that kind: no such file, not text, or a line without an end.
    """
    with reading(path, instead, kind), path.open("rb") as raw:
        marked = raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel and PowerShell write
        with TextIOWrapper(raw, "utf-16" if marked else "utf-8-sig", errors, newline="") as file:
            while line := file.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise kind(f"{path} has a line of more than {LONGEST_LINE:,} characters. {instead}")
                yield line.replace("\0", "")


def read_lines(
    path: Path,
    instead: str = "Type a text file in UTF-8",
    kind: type[ClipAnatomyError] = BadInput,
    errors: str = "strict",
) -> list[str]:
    """Read the lines of a text file that hold something, stripped; see `text_lines`.

    Raises:
        ClipAnatomyError: as there, or too large a file.
    """
    lines, size = list[str](), 0
    for line in text_lines(path, instead, kind, errors):
        size += len(line)
        if size > LARGEST_TEXT:
            raise kind(f"{path} has more than {LARGEST_TEXT:,} characters, which are read at most. {instead}")
        if line.strip():
            lines.append(line.strip())
    return lines


def read_safetensors(path: Path, kind: str, made_by: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a file whose metadata say `format: kind`.

    Raises:
        BadInput: no such file, not safetensors, or another kind; says what to type instead.
    """
    from safetensors import safe_open

    if not path.exists():
        raise BadInput(f"{path} does not exist. Make it with {made_by}")
    with (
        reading(path, f"It is not a readable safetensors file: make it anew with {made_by}"),
        opened(path),
        safe_open(path, "pt") as handle,
    ):
        about = dict(handle.metadata() or {})
        if about.get("format") != kind:
            raise BadInput(
                f"{path} holds {about.get('format', 'something else')!r}, not {kind!r}. Make one with {made_by}"
            )
        tensors: dict[str, torch.Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return tensors, about
