"""A live model object: taken out of what wraps it, refused where its weights are not plain ones, and read as towers over them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.host import Host, tensors_of, unsupported
from clip_anatomy.loading.image_encoders import ENCODERS
from clip_anatomy.loading.open_clip_towers import read_open_clip
from clip_anatomy.loading.quantised import is_quantised, quantised_formats
from clip_anatomy.loading.transformers_hosts import CLASSES, read_transformers

READERS: dict[tuple[str, str], Callable[[Any], Host]] = {
    ("open_clip", "CLIP"): read_open_clip,
    ("open_clip", "CustomTextCLIP"): read_open_clip,
    ("open_clip", "CoCa"): read_open_clip,
    **ENCODERS,
    **{("transformers", name): read_transformers for names in CLASSES.values() for name in names},
}
"""(library, class) → how it is read; a subclass is read as its base, and the parity proof says whether it changed anything."""

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
"""Wrappers of torch that change nothing of what is inside, and where it is; of averaged weights the average."""

ALTERED = {
    "lora_": ("adapters (LoRA)", "model = model.merge_and_unload()"),
    ".base_layer.": ("adapters", "model = model.merge_and_unload()"),
    "weight_mask": ("pruned layers", "torch.nn.utils.prune.remove(layer, 'weight') for each of them"),
    "weight_orig": ("spectral norms", "torch.nn.utils.remove_spectral_norm(layer) for each of them"),
    "weight_g": ("weight norms", "torch.nn.utils.remove_weight_norm(layer) for each of them"),
    "parametrizations.": (
        "parametrized layers",
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') for each of them",
    ),
    "qweight": ("quantised layers", "the same model in float32, float16 or bfloat16"),
    "weight.absmax": ("quantised layers", "the same model in float32, float16 or bfloat16"),
    "_flat_param": ("sharded weights (FSDP)", "the model with its full state dict, on one device"),
}
"""Part of a tensor's name → what put it there, and what to type: the layer computes something else than its weight says."""


def unwrapped(module: nn.Module) -> nn.Module:
    """Take a model out of torch's own wrappers (`torch.compile`, `DataParallel`); anything else is returned as it is."""
    while type(module).__name__ in WRAPPERS and type(module).__module__.startswith("torch."):
        module = getattr(module, WRAPPERS[type(module).__name__])
    return module


def read_host(module: nn.Module) -> Host:
    """Read a live model object as towers that borrow its own parameters.

    Args:
        module: open_clip's CLIP (or CustomTextCLIP with plain towers), transformers' CLIPModel, or a subclass of these.

    Raises:
        UnsupportedModel: anything else; the message names what was found, and what to pass where a CLIP is inside.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModel(
            f"found a TorchScript module ({type(module).__name__}), whose forward cannot be read. "
            "Load it with open_clip.create_model(..., jit=False)."
        )
    _refuse_altered(tensors_of(module))
    reader = _reader_of(module)
    if reader is None:
        library, name = type(module).__module__.split(".")[0], type(module).__name__
        inside = [(at, part) for at, part in module.named_modules() if _reader_of(part) is not None]
        if inside:
            part = inside[0][1]
            apart = [one for one, _ in inside if not any(one.startswith(f"{other}.") for other, _ in inside)]
            ways = " or ".join(f"load(model.{one})" for one in apart[:3])
            raise UnsupportedModel(
                f"found {library}.{name}, which holds a {type(part).__name__} and does something of its own with it. Type: {ways}"
            )
        raise unsupported(f"{library}.{name}")
    host, formats = reader(module), quantised_formats(module)
    if not formats:
        return host
    return replace(host, library=f"{host.library} (weights in {formats}, dequantised for the split)", exact=False)


def check_weights(module: nn.Module, what: str) -> None:
    """Raise UnsupportedModel unless the weights are plain floating-point tensors that hold numbers, all in one place.

    Args:
        module: the model.
        what: how the message calls it.
    """
    places: set[torch.device] = set()
    for name, tensor in module.named_parameters():
        places.add(tensor.device)
        if tensor.device.type == "meta" and any(hasattr(part, "_hf_hook") for part in module.modules()):
            raise UnsupportedModel(
                f"{what}: '{name}' is kept elsewhere by accelerate (offloading). Type: "
                "accelerate.hooks.remove_hook_from_submodules(model), which brings the weights back"
            )
        if tensor.device.type == "meta":
            raise UnsupportedModel(
                f"{what}: '{name}' is on the meta device, where tensors have shapes and no numbers. "
                "Type: model.to_empty(device='cpu'), then model.load_state_dict(...)"
            )
        if is_quantised(tensor):
            continue
        plain = type(tensor) in (nn.Parameter, Tensor)
        if not plain or not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = type(tensor).__name__ if not plain else f"{tensor.dtype}, {tensor.layout}"
            raise UnsupportedModel(
                f"{what}: '{name}' is a {kind}, not plain floating-point numbers. "
                "Open the same model in float32, float16 or bfloat16, on one device"
            )
    if len(places) > 1:
        raise UnsupportedModel(
            f"{what}: its weights lie on {', '.join(sorted(map(str, places)))}. Type: model.to('{sorted(map(str, places))[-1]}')"
        )


def refuse_dropout(module: nn.Module) -> None:
    """Raise UnsupportedModel while any part of the model drops something at random, as a model in training does."""
    for name, part in module.named_modules():
        rates = [getattr(part, key, 0.0) for key in ("p", "prob", "dropout", "drop_prob")] if part.training else []
        rate = max((rate for rate in rates if isinstance(rate, float)), default=0.0)
        if rate > 0:
            raise UnsupportedModel(
                f"found a model in training mode whose {name} ({type(part).__name__}) drops {rate:.0%} at random, so that it "
                "never gives the same embedding twice. Type: model.eval()"
            )


def kind_of(module: nn.Module, kinds: Mapping[tuple[str, str], Any]) -> tuple[str, str] | None:
    """Find the (library, class) of a module, or of what it is a subclass of, among some; None where it is none of them."""
    own = ((kind.__module__.split(".")[0], kind.__name__) for kind in type(module).__mro__)
    return next((one for one in own if one in kinds), None)


def _reader_of(module: nn.Module) -> Callable[[Any], Host] | None:
    kind = kind_of(module, READERS)
    return None if kind is None else READERS[kind]


def _refuse_altered(tensors: Mapping[str, Tensor]) -> None:
    for name in tensors:
        for part, (pattern, way_out) in ALTERED.items():
            if part in name:
                raise UnsupportedModel(
                    f"found {pattern} in the model ('{name}'): its layers compute something else than their weights say. "
                    f"Type: {way_out}"
                )
