"""Any forward in double precision, whatever the model's own: weights are widened as each operation reads them.

In half precision, or after attention that turns on a hair, two forwards of the same function differ by as much as a missing head
does. In double precision rounding is about 1e-15, and what is left is a difference of the functions. The module runs as it is,
its own code and hooks included: nothing of it is copied, cast or switched, and one widened weight lives at a time.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class DoublePrecision(TorchDispatchMode):
    """A context in which every operation of this thread computes in float64, also where code asks for float32 or less.

    Libraries take LayerNorms, softmaxes and rotary angles to float32 of their own: such casts stay wide. New tensors are wide
    from the beginning. Views are handed on as they are, so that what is written through them is not lost.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to hide from its compiler torch would import it first, which takes three seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Widen what goes into one operation, run it, widen what comes out."""
        named = dict(kwargs or {})
        if func.is_view:
            return func(*args, **named)
        if isinstance(named.get("dtype"), torch.dtype) and named["dtype"].is_floating_point:
            named["dtype"] = torch.float64
        if func is torch.ops.aten.full.default and named.get("dtype") is None and isinstance(args[1], float):
            named["dtype"] = (
                torch.float64
            )  # a mask of transformers 4 is filled with the lowest double and names no type
        if func is not torch.ops.aten.embedding.default:  # a whole vocabulary is not widened for a few of its rows
            args, named = tree_map_only(Tensor, _double, args), tree_map_only(Tensor, _double, named)
        return tree_map_only(Tensor, _double, func(*args, **named))


class UncompiledDoublePrecision(DoublePrecision):
    """The same in a program that has torch's compiler, which is to leave it alone: torch wraps what a class itself defines, not what it inherits."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run one operation."""
        return super().__torch_dispatch__(func, types, args, kwargs)


class WideConvolutions(TorchFunctionMode):
    """Widen what goes into a convolution: torch compares the types of pixels and bias before any operation is dispatched."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch's."""
        named = dict(kwargs or {})
        if func in CONVOLUTIONS:
            args, named = tree_map_only(Tensor, _double, args), tree_map_only(Tensor, _double, named)
        return func(*args, **named)


def in_double(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Run an encoder without gradients in float64; on Apple's GPUs, which have none, in its own precision."""
    with torch.no_grad():
        if inputs.device.type == "mps":
            return encode(inputs)
        mode = UncompiledDoublePrecision if "torch._dynamo" in sys.modules else DoublePrecision
        with mode(), WideConvolutions():
            return encode(_double(inputs))


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
