"""Weight files: safetensors, or torch files read weights-only. No pickle code ever runs."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.errors import BadCheckpoint
from clip_anatomy.files import read_json as read_json_file

OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}  # extra entries of OpenAI's own files
RESNET_MARK = "visual.attnpool.positional_embedding"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        path: `.safetensors`, or a `.pt` / `.pth` / `.bin` that torch can load weights-only (nested `state_dict` and `module.`
            prefixes of training checkpoints are unwrapped).

    Returns:
        Name → tensor.

    Raises:
        BadCheckpoint: missing, empty, damaged, TorchScript, a pickle of anything else, or not finite.
    """
    if not path.is_file():
        raise BadCheckpoint(f"{path} is not a file. Type the path of a .safetensors or .pt file.")
    if path.stat().st_size == 0:
        raise BadCheckpoint(f"{path} is empty. Download or save it again.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    check_finite(state, path.name)
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as e:
        raise BadCheckpoint(f"{path} is not a whole safetensors file ({e}). Download or save it again.") from e


def _read_torch(path: Path) -> dict[str, Tensor]:
    if _is_torchscript(path):
        raise BadCheckpoint(
            f"{path} is a TorchScript archive, which runs code when it is loaded. Save its state dict from a machine where "
            "you trust it: torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt'), or type "
            "load('open_clip:ViT-B-32-quickgelu/openai')"
        )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise BadCheckpoint(
            f"{path} holds Python objects, not only tensors; it is not loaded, because loading it could run code. "
            "Save the weights alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from e
    except Exception as e:  # garbage makes the unpickler raise anything
        raise BadCheckpoint(f"{path} is not a torch weights file ({type(e).__name__}). Save it again.") from e
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor | int) for v in state.values()):
        raise BadCheckpoint(f"{path} holds no state dict (a {type(loaded).__name__} instead). Save model.state_dict().")
    named = {str(k): v if isinstance(v, Tensor) else torch.tensor(v) for k, v in state.items()}
    if all(k.startswith("module.") for k in named):
        named = {k.removeprefix("module."): v for k, v in named.items()}
    return named


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Raise BadCheckpoint naming the first tensor that holds NaN or infinity (attention masks may)."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and "attn_mask" not in name and not torch.isfinite(tensor).all():
            raise BadCheckpoint(
                f"{what}: the tensor '{name}' holds NaN or infinity. Download or save the weights again."
            )


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is OpenAI's own: it carries three extra integers."""
    return set(state) >= OPENAI_MARKS and has_open_clip_names(state)


def has_open_clip_names(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the image tower's tensors are called as in open_clip and OpenAI's code: a ViT or a ResNet."""
    return "visual.class_embedding" in state or RESNET_MARK in state


def strip_marks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without OpenAI's extra integers."""
    return {k: v for k, v in state.items() if k not in OPENAI_MARKS}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON config, or raise BadCheckpoint."""
    return read_json_file(
        path, "It is not a readable JSON config of a model; a JSON object was expected", kind=BadCheckpoint
    )
