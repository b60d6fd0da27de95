"""Torch as if the program around had set nothing: the one place where its state is put aside, and put back.

    of the thread    autocast, inference mode, gradients on or off, the default device
    of the process   the default dtype, the precision of float32 products

The second kind is shared with other threads: who comes first sets it, who leaves last puts it back, so that two of our calls
never see each other's change.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

from clip_anatomy.errors import BadInput

__all__ = ["plain_torch"]

AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class _ProcessSetting:
    """A setting of the whole process, held at one value while anyone is inside."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], Any], wanted: Any) -> None:
        self._read, self._write, self._wanted = read, write, wanted
        self._lock, self._inside, self._before = Lock(), 0, wanted

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold it."""
        with self._lock:
            if not self._inside:
                self._before = self._read()
                if self._before != self._wanted:
                    self._write(self._wanted)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside and self._before != self._wanted:
                    self._write(self._before)


_process: list[_ProcessSetting] = []


@contextmanager
def plain_torch() -> Generator[None]:
    """Run what is inside without autocast, inference mode and gradients, on the CPU and in float32 where nothing else is said.

    Without torch in the process there is nothing to put aside, and it is not imported for that.

    Raises:
        BadInput: a transform of `torch.func` runs around.

    Example:
        >>> import torch
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), plain_torch():
        ...     (torch.eye(2) @ torch.eye(2)).dtype
        torch.float32
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack  # pyright: ignore[reportPrivateUsage]

    # Inside, no_grad would make every gradient zero.
    if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        raise BadInput(
            "torch.func (vmap, grad, jvp) runs around this call, and cannot look into it. Call it outside, with real tensors"
        )
    if any(type(mode).__name__ == "FakeTensorMode" for mode in _get_current_dispatch_mode_stack()):
        raise BadInput("a FakeTensorMode is on, where tensors have no numbers. Call it outside of that mode")
    if not _process:
        _process.append(_ProcessSetting(torch.get_default_dtype, torch.set_default_dtype, torch.float32))
        precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        _process.append(_ProcessSetting(*precision, "highest"))
    with ExitStack() as stack:
        for setting in _process:
            stack.enter_context(setting.held())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.no_grad())
        yield
