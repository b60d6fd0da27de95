"""Weight files: safetensors, or torch files read weights-only. No pickle code ever runs."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.errors import BadCheckpoint, reading
from clip_anatomy.files import read_json as read_json_file

OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}  # extra entries of OpenAI's own files
MOST_LAYERS, LARGEST_SIZE = 1_000, 10**8
DEEPEST = 5  # mappings around a state dict
RESNET_MARK = "visual.attnpool.positional_embedding"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        path: `.safetensors`, or a `.pt` / `.pth` / `.bin` that torch can load weights-only (what training scripts wrap
            around it is taken off: a dict with one state dict in it, a prefix of all names).

    Returns:
        Name → tensor.

    Raises:
        BadCheckpoint: missing, empty, damaged, TorchScript, a pickle of anything else, or not finite.
    """
    with reading(path, "Download or save it again", BadCheckpoint):
        if not path.is_file():
            raise BadCheckpoint(f"{path} is not a file. Type the path of a .safetensors or .pt file.")
        if path.stat().st_size == 0:
            raise BadCheckpoint(f"{path} is empty. Download or save it again.")
        state = _without_shared_prefix(_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path))
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
    return _state_inside(loaded, path)


def _state_inside(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict of a checkpoint: the whole of it, or the one entry that is one, however deep (`state_dict`, `model`, `ema` …)."""
    states = _states(loaded)
    if not states:
        others = (
            [key for key, one in loaded.items() if not isinstance(one, Tensor)] if isinstance(loaded, Mapping) else []
        )
        among = f", with {others[0]!r} among its entries" if others and len(others) < len(loaded) else ""
        raise BadCheckpoint(
            f"{path} holds no state dict (a {type(loaded).__name__} instead{among}). Type: torch.save(model.state_dict(), 'weights.pt')"
        )
    chosen = next((keys for keys in states if keys[-1:] == ("state_dict",) or len(states) == 1), None)
    if chosen is None:
        first = "".join(f"[{key!r}]" for key in next(iter(states)))
        raise BadCheckpoint(
            f"{path} holds several state dicts: {', '.join('.'.join(map(str, keys)) for keys in states)}. "
            f"Save the one you mean: torch.save(torch.load(FILE){first}, 'weights.pt')"
        )
    return {k: v if isinstance(v, Tensor) else torch.tensor(v) for k, v in states[chosen].items()}


def _states(loaded: Any) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Return the state dicts that lie least deep in a checkpoint, by the keys that lead to them: trainers wrap what launchers wrapped."""
    level: dict[tuple[Any, ...], Any] = {(): loaded}
    for _ in range(DEEPEST):
        if found := {keys: one for keys, one in level.items() if _is_state(one)}:
            return found
        inside = {keys: dict(enumerate(one)) if isinstance(one, list | tuple) else one for keys, one in level.items()}
        level = {(*k, key): v for k, one in inside.items() if isinstance(one, Mapping) for key, v in one.items()}
    return {}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and any(isinstance(one, Tensor) for one in value.values())
        and all(isinstance(key, str) and isinstance(one, Tensor | int) for key, one in value.items())
    )


def _without_shared_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what every name begins with: `module.`, `_orig_mod.`, the attribute under which a training script kept its CLIP.

    Raises:
        BadCheckpoint: a CLIP stands under a prefix and something else beside it.
    """
    while len({name.partition(".")[0] for name in state}) == 1 and all("." in name for name in state):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    prefix = next((name.removesuffix("logit_scale") for name in state if name.endswith(".logit_scale")), "")
    if prefix:
        others = [name for name in state if not name.startswith(prefix)]
        raise BadCheckpoint(
            f"the tensors of the CLIP begin with {prefix!r}, and others stand beside them ({', '.join(others[:3])}). "
            f"Save the CLIP alone: torch.save(model.{prefix.rstrip('.')}.state_dict(), 'weights.pt')"
        )
    return state


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


def check_sizes(config: Mapping[Any, Any], what: object) -> None:
    """Raise BadCheckpoint for a number of a config that no model has, before anything of that size is made."""
    for key, value in config.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            most = MOST_LAYERS if "layers" in str(key) or key == "depth" else LARGEST_SIZE
            if isinstance(one, Mapping):
                check_sizes(one, what)
            elif isinstance(one, int) and abs(one) > most:
                raise BadCheckpoint(
                    f"the config of {what} says {key}={one}: at most {most:,} can be meant. Bring back the original config"
                )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON config, or raise BadCheckpoint."""
    return read_json_file(
        path, "It is not a readable JSON config of a model; a JSON object was expected", kind=BadCheckpoint
    )
