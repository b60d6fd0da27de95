"""PEARL's second half: scores spread over the picture, along its edges and among texts that agree (text-aware Laplacian propagation).

    (C + L) F = C Z     by conjugate gradients from F = Z
    p = softmax of Z over the texts;  C = max(0.05, max p)² (1 + pᵀ S p);  S = rows of softmax(cosines of the texts / 0.5) + 10 · 1, summing to 1
    L: graph Laplacian of neighbours i, j with weights min(1, exp(−5 |g_i − g_j| / mean of that direction) (1 + p_iᵀ S p_j)),  g: grey levels

**The class prior of the release does nothing**: its product reads the diagonal of S alone, where the 10 makes all entries nearly equal
(above 0.91), so that texts that are alike do not help each other. `prior="released"` is that, `prior="full"` the product of the formula.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec

TEMPERATURE, OWN, EDGES, LEAST = 0.5, 10.0, 5.0, 0.05


def class_prior(text: Float[Tensor, "text embed"], prior: str) -> Float[Tensor, "text text"]:
    """Compute S of texts of any length: how much they speak for each other; for "released" its diagonal."""
    if prior not in ("released", "full"):
        raise BadSpec(f"prior={prior!r} is not known. Type: prior='released', 'full' or 'none'")
    unit = F.normalize(text.float(), dim=-1)
    affinity = (unit @ unit.T / TEMPERATURE).softmax(-1) + OWN * torch.eye(len(text), device=text.device)
    affinity = affinity / affinity.sum(-1, keepdim=True)
    return affinity if prior == "full" else affinity.diagonal().diag()


def grey_levels(
    pixels: Float[Tensor, "image 3 row col"], grid: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "image 1 _row _col"]:
    """Compute the luminance of each patch from preprocessed pixels, 0 to 1."""
    share = pixels.new_tensor((0.299, 0.587, 0.114))
    colours = pixels * pixels.new_tensor(std)[:, None, None] + pixels.new_tensor(mean)[:, None, None]
    return F.adaptive_avg_pool2d((colours * share[:, None, None]).sum(1, keepdim=True), grid)


def spread_along(
    logits: Float[Tensor, "image text row col"],
    grey: Float[Tensor, "image 1 row col"],
    similar: Float[Tensor, "text text"],
    rounds: int = 25,
) -> Float[Tensor, "image text row col"]:
    """Solve (C + L) F = C Z for scores Z, so many rounds of conjugate gradients.

    Args:
        logits: Z, on the scale of the softmax.
        grey: levels of the picture.
        similar: from `class_prior`.
        rounds: of conjugate gradients.
    """
    chance = logits.softmax(1)
    spoken = torch.einsum("cd,bdrk->bcrk", similar, chance)
    sure = chance.amax(1, keepdim=True).clamp_min(LEAST) ** 2
    sure = sure * (1 + (chance * spoken).sum(1, keepdim=True).clamp(0, 1))
    weights = [_edges(grey, chance, spoken, axis) for axis in (2, 3)]

    def applied(x: Tensor) -> Tensor:
        total = sure * x
        for axis, weight in zip((2, 3), weights, strict=True):
            flow = weight * x.diff(dim=axis)
            pad = (0, 0, 1, 1) if axis == 2 else (1, 1)
            total = total - F.pad(flow, pad).diff(dim=axis)
        return total

    spread = logits
    rest = sure * logits - applied(spread)
    way, square = rest, rest.square().sum((1, 2, 3), keepdim=True)
    for _ in range(rounds):
        ahead = applied(way)
        step = square / ((way * ahead).sum((1, 2, 3), keepdim=True) + 1e-12)
        spread, rest = spread + step * way, rest - step * ahead
        fresh = rest.square().sum((1, 2, 3), keepdim=True)
        way, square = rest + fresh / (square + 1e-12) * way, fresh
    return spread


def _edges(grey: Tensor, chance: Tensor, spoken: Tensor, axis: int) -> Tensor:
    """Weights between neighbours along one axis, the later one's probabilities against what the earlier one's speak for."""
    count = grey.shape[axis] - 1
    change = grey.diff(dim=axis).abs()
    mean = change.mean((1, 2, 3), keepdim=True) if count else change
    agree = (chance.narrow(axis, 1, count) * spoken.narrow(axis, 0, count)).sum(1, keepdim=True).clamp(0, 1)
    return (torch.exp(-EDGES * change / (mean + 1e-6)) * (1 + agree)).clamp(0, 1)
