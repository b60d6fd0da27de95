"""Slopes of many texts' cosines from one graph: vector–Jacobian products, all texts together.

`torch.func.vjp` does the same and loads the compiler for it, several seconds on its first call; plain autograd under `vmap` does not.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Pull", "graph_of", "pulled"]

Pull = Callable[[Tensor], tuple[Tensor, ...]]


def graph_of(function: Callable[..., Any], *inputs: Tensor) -> tuple[Pull, Any]:
    """Run a function once with a graph.

    Args:
        function: gives a tensor, or a tensor and something else.
        inputs: what slopes are wanted of.

    Returns:
        What pulls slopes back through the tensor, one per input; and the something else, out of the graph.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = function(*leaves)
    value, rest = found if isinstance(found, tuple) else (found, None)

    def pull(slope: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, leaves, slope, retain_graph=True)

    return pull, rest.detach() if isinstance(rest, Tensor) else rest


def pulled(pull: Pull, unit: Float[Tensor, "text embed"], images: int) -> tuple[Tensor, ...]:
    """Slopes of each image's cosine with each text: a leading text axis before every input's own.

    Example:
        >>> pull, _ = graph_of(lambda x: x * torch.tensor([2.0, 3.0]), torch.ones(1, 2))
        >>> pulled(pull, torch.eye(2), 1)[0][:, 0].tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return torch.func.vmap(pull)(unit[:, None].expand(-1, images, -1))
