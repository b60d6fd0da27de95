"""The greedy choice of TextSpan on small matrices: one set of texts, any number of covariances side by side."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["GreedySelection", "greedy"]

# Scores this close count as equal: two columns of one product may differ in the last bits, and then the first text wins.
TIE = 1e-12
# Below this share of the first score only rounding is left of the covariance.
SPENT = 1e-13


@dataclass(frozen=True)
class GreedySelection:
    """Picks for each covariance, absolute (not shares). Where nothing is left: index −1 and zeros.

    Attributes:
        indices: picked texts, as columns of the texts.
        score: tᵀCt of each pick when it was picked.
        explained_alone: variance along the text by itself.
        gain: variance that the pick adds, qᵀCq.
        runner_up: the text with the second score.
        margin: 1 − second score / first score.
        directions: orthonormal q of each pick.
    """

    indices: Int64[Tensor, "batch pick"]
    score: Float64[Tensor, "batch pick"]
    explained_alone: Float64[Tensor, "batch pick"]
    gain: Float64[Tensor, "batch pick"]
    runner_up: Int64[Tensor, "batch pick"]
    margin: Float64[Tensor, "batch pick"]
    directions: Float64[Tensor, "batch pick d"]


def greedy(
    texts: Float64[Tensor, "d text"],
    covariances: Float64[Tensor, "batch d d"],
    picks: int,
    subspace: Float64[Tensor, "batch d d"] | None = None,
) -> GreedySelection:
    """Pick texts one after the other, deflating covariance and texts by each choice.

    Args:
        texts: one column per text.
        covariances: one problem each; they share the texts, so that a bootstrap costs one matrix product per pick.
        picks: how many to pick at most.
        subspace: an orthogonal projector per covariance: texts count only with their part inside. Default: all of the
            space.

    Returns:
        GreedySelection.
    """
    batch, d, _ = covariances.shape
    free = torch.eye(d, dtype=torch.float64).repeat(batch, 1, 1) if subspace is None else subspace.clone()
    left = free @ covariances @ free
    first = left.clone()
    # One covariance at a time keeps memory flat.
    score = torch.stack([(texts * (c @ texts)).sum(0) for c in left])  # [batch, text]
    selection = GreedySelection(
        torch.full((batch, picks), -1),
        *(torch.zeros(batch, picks, dtype=torch.float64) for _ in range(3)),
        runner_up=torch.full((batch, picks), -1),
        margin=torch.zeros(batch, picks, dtype=torch.float64),
        directions=torch.zeros(batch, picks, d, dtype=torch.float64),
    )
    floor = score.amax(1) * SPENT
    rows = torch.arange(batch)
    for k in range(picks):
        best, index = _first_best(score)
        alive = best > floor
        if not bool(alive.any()):
            break
        second, runner_up = _second(score, index, rows)
        chosen = texts[:, index].T  # [batch, d]
        # Projected twice: the second pass removes what rounding left of earlier choices.
        q = _unit(_apply(free, _apply(free, chosen))) * alive[:, None]
        cq = _apply(left, q)
        gain = (q * cq).sum(1)
        v = cq - q * (gain / 2)[:, None]
        projected = torch.cat([q, v]) @ texts  # the two products of a pick, as one
        score.addcmul_(projected[:batch], projected[batch:], value=-2)
        outer = _outer(q, v)
        left -= outer + outer.mT
        free -= _outer(q, q)
        selection.indices[:, k] = torch.where(alive, index, -1)
        selection.score[:, k] = best * alive
        selection.gain[:, k] = gain
        selection.runner_up[:, k] = torch.where(alive, runner_up, -1)
        selection.margin[:, k] = (1 - second.clamp(min=0) / best.clamp(min=1e-300)) * alive
        selection.directions[:, k] = q
    picked = texts.T[selection.indices.clamp(min=0)]  # [batch, pick, d]
    itself = _unit(picked if subspace is None else picked @ subspace)
    selection.explained_alone.copy_(((itself @ first) * itself).sum(-1) * (selection.indices >= 0))
    return selection


def _first_best(score: Tensor) -> tuple[Tensor, Tensor]:
    best = score.amax(1)
    near = score >= (best - best.abs() * TIE)[:, None]
    return best, near.to(torch.uint8).argmax(1)


def _second(score: Tensor, index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    if score.shape[1] < 2:
        return torch.zeros_like(score[:, 0]), torch.full_like(index, -1)
    best_score = score[rows, index].clone()
    score[rows, index] = -torch.inf
    second, runner_up = score.max(1)
    score[rows, index] = best_score
    return second, runner_up


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.bmm(matrices, vectors[:, :, None])[:, :, 0]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None, :]
