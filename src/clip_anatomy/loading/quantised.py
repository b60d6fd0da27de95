"""Layers whose weights are kept in 8 or 4 bits, as the floating-point numbers that they stand for: what the split is made of.

torchao's tensors, bitsandbytes' 8-bit and 4-bit layers, and torch's own dynamically quantised ones. The user's layers stay as they are
and run as the host; dequantised weights are copies.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (nn.Parameter, Tensor)


def is_quantised(tensor: Tensor) -> bool:
    """Say whether a parameter holds numbers in a format that is known here."""
    kind = type(tensor)
    return kind not in PLAIN and (
        kind.__name__ in ("Params4bit", "Int8Params") or kind.__module__.startswith("torchao.")
    )


def quantised_formats(module: nn.Module) -> str:
    """Name the formats of a module's quantised weights, as its libraries call them; "" where all are plain."""
    formats = {type(p).__name__ for p in module.parameters() if is_quantised(p)}
    formats |= {"qint8" for _ in _dynamic(module)}
    return ", ".join(sorted(formats))


def dequantised(module: nn.Module) -> dict[str, Tensor]:
    """Give the quantised weights of a module by name, each as the numbers that it stands for, in the type of the plain ones."""
    plain = next((p.dtype for p in module.parameters() if type(p) in PLAIN and p.is_floating_point()), torch.float32)
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for at, layer in module.named_modules():
            for name, tensor in layer.named_parameters(recurse=False):
                if is_quantised(tensor):
                    tensors[f"{at}.{name}".lstrip(".")] = _numbers(layer, tensor).detach().to(plain)
        for at, layer in _dynamic(module):
            tensors[f"{at}.weight"] = layer.weight().dequantize().to(plain)
            if layer.bias() is not None:
                tensors[f"{at}.bias"] = layer.bias().detach().to(plain)
    return tensors


def _numbers(layer: Any, tensor: Any) -> Tensor:
    if type(tensor).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

        return dequantize_4bit(tensor.data, tensor.quant_state)
    if (
        type(tensor).__name__ == "Int8Params"
    ):  # numbers of ±127 and a largest value of each row, which a first forward moves
        scales = tensor.SCB if tensor.SCB is not None else layer.state.SCB
        return tensor.data.float() * scales.float()[:, None] / 127
    return tensor.dequantize()


def _dynamic(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if type(layer).__module__.startswith("torch.ao.nn.quantized.dynamic") and callable(
            getattr(layer, "weight", None)
        ):
            yield name, layer
