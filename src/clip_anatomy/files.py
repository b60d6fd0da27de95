"""Names of files as people type them, the hash of the project, and safetensors files written whole or not at all."""

import hashlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from clip_anatomy.errors import BadInput, OutputError

__all__ = ["digest", "digest_of_file", "path_of", "random_number", "read_safetensors", "write_safetensors"]

HashInput = str | bytes | memoryview
FILE_CHUNK = 2**20  # bytes read at once


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
    with path.open("rb") as file:
        return digest(iter(partial(file.read, FILE_CHUNK), b""))


def random_number(seed: int, name: str, *, size: int = 8) -> int:
    """Draw a number of `size` bytes that depends on the seed and the name alone: the same on every machine."""
    return int.from_bytes(bytes.fromhex(digest(f"{seed} {name}".encode("utf-8", "replace"), size=size)), "little")


def write_safetensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> Path:
    """Write tensors and string metadata by a temporary file beside `path` and a rename.

    Raises:
        OutputError: the place cannot be written; nothing is left behind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be written ({error}): give a path in a folder that exists and has room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_safetensors(path: Path, kind: str, made_by: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a file whose metadata say `format: kind`.

    Raises:
        BadInput: no such file, not safetensors, or another kind; says what to type instead.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            about = dict(handle.metadata() or {})
            if about.get("format") != kind:
                raise BadInput(
                    f"{path} holds {about.get('format', 'something else')!r}, not {kind!r}. Make one with {made_by}"
                )
            tensors: dict[str, torch.Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist. Make it with {made_by}") from None
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is not a readable safetensors file ({error}). Make it anew with {made_by}") from error
    return tensors, about
