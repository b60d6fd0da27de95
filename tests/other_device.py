"""A device that is not there: every tensor knows whether it is on it, and what mixes it with the processor's tensors fails as on a GPU.

torch has no accelerator without hardware or C++, so its place is taken by the name "meta": inside `OtherDevice()` a tensor that is made there, or sent
there, is an ordinary one of the processor with a mark, and says `device == OTHER`. Numbers are therefore those of the processor, bit for bit.
What fails here fails on a GPU: an operation over both kinds (but for numbers without axes, indices and copies), numpy of what is there, a
generator of the processor for numbers that are made there. Kernels, streams and autocast are not looked at.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

OTHER = torch.device("meta")
BETWEEN = {
    "to",
    "cpu",
    "copy_",
    "__getitem__",
    "__setitem__",
    "index_put_",
    "item",
    "tolist",
    "set_",
    "_has_compatible_shallow_copy_type",
}
LIKE_ITSELF = {"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"}


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def there(tensor: Tensor) -> bool:
    return bool(tensor.__dict__.get("_there", False))


def mark(value: Any, *, on: bool) -> Any:
    for tensor in tensors(value):
        tensor.__dict__["_there"] = on
    return value


class OtherDevice(TorchFunctionMode):
    """While it is on, "meta" is an accelerator of its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        given = list(tensors([args, kwargs]))
        if name == "__get__" and owner is Tensor.device:
            return OTHER if there(args[0]) else torch.device("cpu")
        if name == "__set__" and owner is Tensor.data:
            func(*args)
            return mark(args[0], on=there(args[1]))
        wanted, args, kwargs = self._asked(name, args, kwargs)
        if name in ("numpy", "__array__") and there(args[0]):
            raise TypeError("can't convert a tensor of another device to numpy. Use Tensor.cpu() first")
        if wanted == OTHER and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{name}: Expected a generator of the other device")
        kinds = {there(one) for one in given if one.dim()}
        if len(kinds) == 2 and name not in BETWEEN:
            shapes = [(list(one.shape), "other" if there(one) else "cpu") for one in given]
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, got {shapes}")
        on = (
            any(map(there, given[:1] if name in {*BETWEEN, *LIKE_ITSELF} else given))
            if wanted is None
            else wanted == OTHER
        )
        found = func(*args, **kwargs)
        if name == "__iter__":
            return iter([mark(one, on=on) for one in found])
        if wanted is not None and name in ("to", "cpu") and found is args[0] and there(args[0]) != on:
            found = found.detach().clone() if not found.requires_grad else found.clone()
        return found if not tuple(tensors(found)) else mark(found, on=on)

    @staticmethod
    def _asked(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, Any, dict[str, Any]]:
        """The device that a call names, and the call without it."""
        if name == "cpu":
            return torch.device("cpu"), args, kwargs
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = "cpu"
        if name == "to" and len(args) > 1:
            if isinstance(args[1], torch.device | str):
                device, args = args[1], (args[0], torch.device("cpu"), *args[2:])
            elif isinstance(args[1], Tensor):
                device = OTHER if there(args[1]) else torch.device("cpu")
        return (None if device is None else torch.device(device)), args, kwargs
