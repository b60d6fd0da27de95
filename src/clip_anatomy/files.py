"""Names of files as people type them; safetensors files of statistics, written whole or not at all."""

import os
from pathlib import Path

import torch
from torch import Tensor

from clip_anatomy.errors import BadInput, OutputError

__all__ = ["path_of", "read_safetensors", "write_safetensors"]


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
