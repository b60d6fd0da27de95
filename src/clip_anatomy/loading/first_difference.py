"""Where a host's forward leaves ours: the first block, and where it can be told the head, after which the numbers are others.

Nothing is hooked into the host: a dispatch mode sees what every operation gives, whatever the module is called, and compares it with what our
blocks wrote. Used once a proof has failed, to say why.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clip_anatomy.loading.double_precision import in_double
from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import walk
from clip_anatomy.towers.readout import readout_of
from clip_anatomy.towers.transformer import Transformer

__all__ = ["first_difference"]

SAME = 1e-9  # relative, in double precision: of what both computed alike
NEAR = 1e-3  # of a difference that is one head's


class _Sought(NamedTuple):
    """What should come out of an operation of the host.

    Attributes:
        place: where in the model.
        stream: every token's numbers, flat; or one row's.
        row: which token the numbers are of; None for all.
        heads: what each head added, where these are numbers behind an attention.
    """

    place: str
    stream: Tensor
    row: int | None = None
    heads: Tensor | None = None


class _Watch(TorchDispatchMode):
    """Keep of every operation's results how near they come to what is sought."""

    def __init__(self, sought: list[_Sought], tokens: int) -> None:
        super().__init__()
        self.sought, self.tokens = sought, tokens
        self.apart: list[Tensor | None] = [None] * len(sought)
        """The smallest difference that was seen, for each."""
        self.when, self.now = [0] * len(sought), 0
        """After how many operations it was first seen."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and look at what it gives."""
        value = func(*args, **(kwargs or {}))
        self.now += 1
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Tensor) and one.dtype == torch.float64 and one.numel():
                self._compare(one.detach())
        return value

    def _compare(self, value: Tensor) -> None:
        for at, (_, ours, row, _) in enumerate(self.sought):
            if value.numel() != (ours.numel() if row is None else ours.numel() * self.tokens):
                continue
            theirs = value.reshape(-1) if row is None else value.reshape(self.tokens, -1)[row]
            known, apart = self.apart[at], theirs - ours
            if known is None or apart.norm() < known.norm():
                self.apart[at], self.when[at] = apart, self.now


def first_difference(tower: Transformer, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> str:
    """Say where a host's forward first differs from ours.

    Args:
        tower: ours.
        encode: the host's own.
        inputs: pixels or token ids; the first of them is looked at.

    Returns:
        "layer 3, head 5", "layer 3, attention", "layer 3, MLP", "what goes into layer 0" or "what follows the last layer".
    """
    sought: list[_Sought] = []

    def ours(x: Tensor) -> Tensor:
        stream = embed_inputs(tower, x)
        readout = readout_of(tower, x, stream.shape[1])
        row = None if readout.index is None else int(readout.index[0])
        for step in walk(tower, stream, readout, fold_last=False):
            if not step.layer:
                sought.append(_Sought("what goes into layer 0", step.before.flatten()))
            block = tower.blocks[step.layer]
            if row is not None and block.norm_mixed is None and block.norm_written is None:
                weight = block.out.weight.unflatten(1, (tower.heads, tower.d)).to(step.mixed.dtype)
                heads = torch.einsum("hd,whd->hw", step.mixed[0], weight)
                heads = heads if block.scale_attention is None else heads * block.scale_attention
                middle = (step.readout - step.mlp)[0]
                sought.append(_Sought(f"layer {step.layer}, attention", middle, row, heads))
            assert step.after is not None
            sought.append(_Sought(f"layer {step.layer}, MLP", step.after.flatten()))
        return stream

    with torch.no_grad():
        in_double(ours, inputs[:1])
    watch = _Watch(sought, sought[0].stream.numel() // tower.width)

    def theirs(x: Tensor) -> Tensor:
        with watch:
            return encode(x)

    in_double(theirs, inputs[:1])
    before = 0
    for one, apart, when in zip(sought, watch.apart, watch.when, strict=True):
        if apart is None or float(apart.norm()) > SAME * float(one.stream.norm()):
            return one.place if apart is None else _by_head(one, apart)
        if when <= before:  # what stood there before already: ours adds nothing
            return one.place
        before = when
    return "what follows the last layer"


def _by_head(sought: _Sought, apart: Tensor) -> str:
    """Name the head whose contribution the difference is, where it is that of one."""
    if sought.heads is None:
        return sought.place
    left = (apart + sought.heads).norm(dim=-1) / apart.norm()
    head = int(left.argmin())
    return (
        sought.place.replace("attention", f"head {head}, which is missing there") if left[head] < NEAR else sought.place
    )
