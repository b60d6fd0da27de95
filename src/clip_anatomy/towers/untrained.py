"""Whether weights look as they were drawn: the largest singular value of a learned matrix stands far above that of a random one.

A matrix of independent entries has no direction that stands out: its largest singular value is √rows + √columns times their
standard deviation, up to a few percent (Marchenko and Pastur 1967; Geman 1980). Training puts what was learned into a few
directions above that edge (Martin and Mahoney 2021, "Implicit self-regularization in deep neural networks"). Measured, as the
median over matrices whose rows are brought to mean 0 and length 1: 1.0 for any random initialisation, 1.6 and more for what
was trained.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LOOKS_TRAINED", "looks_untrained", "weight_edge"]

LOOKS_TRAINED = 1.2
LEAST = 8  # rows and columns of a matrix that is asked
MOST = 8  # matrices of a tower that are asked, evenly over its depth
STEPS = 16  # of the power iteration


def weight_edge(*towers: Any) -> float:
    """Return the largest singular value of the weights, as a multiple of a random matrix's; the median over some of them.

    Args:
        towers: dataclasses that hold weights.

    Returns:
        About 1 for random weights; NaN without a matrix of eight rows and columns.
    """
    known = [matrix for tower in towers for matrix in _some([*_matrices(tower)])]
    return median(map(_edge, known)) if known else float("nan")


def looks_untrained(*towers: Any) -> bool:
    """Say whether weights look as they were drawn, and not as they were learned."""
    return weight_edge(*towers) < LOOKS_TRAINED


def _edge(weight: Float[Tensor, "row col"]) -> float:
    """Compare the largest singular value with that of a random matrix of the same shape, drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    known = weight.detach().float().cpu()
    if min(known.shape) > 1024:  # a corner of a large matrix is as random as the whole, or as little
        known = known[:1024, :1024]
    drawn = torch.randn(known.shape, generator=generator)
    return _largest(known) / max(_largest(drawn), 1e-30)


def _largest(weight: Float[Tensor, "row col"]) -> float:
    rows = weight - weight.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    vector = torch.ones(rows.shape[1], 1) + torch.linspace(0, 1, rows.shape[1])[:, None]
    for _ in range(STEPS):
        vector = rows.T @ (rows @ vector)
        vector = vector / vector.norm().clamp_min(1e-30)
    return float((rows @ vector).norm())


def _matrices(value: Any) -> Iterator[Tensor]:
    """Find every weight of eight rows and columns or more, kernels as a row for each output channel."""
    if isinstance(value, Tensor):
        if value.dim() > 1 and value.is_floating_point() and min(value.shape[0], value[0].numel()) >= LEAST:
            yield value.flatten(1)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _matrices(one)
    elif is_dataclass(value):
        for one in fields(value):
            yield from _matrices(getattr(value, one.name))


def _some(matrices: list[Tensor]) -> list[Tensor]:
    step = max(1, -(-len(matrices) // MOST))
    return matrices[::step]
