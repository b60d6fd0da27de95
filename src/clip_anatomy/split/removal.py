"""What taking patches or words away does to an embedding: first-order effects over random subsets, and the interactions of two sides.

FIxLIP (Baniecki et al., NeurIPS 2025) explains ν(M) = cos(image with the patches M, text with the words M) by the second-order
polynomial in the masks that fits best when every player is kept with probability p. Because ν is bilinear in the two unit
embeddings and the players are independent, its interaction of patch i and word j is the product of two *first-order* fits,

    e_ij = β_i · γ_j        β = argmin Σ_M p^|M| (1−p)^(n−|M|) ‖f(M) − β_0 − Σ_{i ∈ M} β_i‖²,  γ likewise of the text

so m forwards a side are enough, and β of one picture serves any number of texts. Standard errors are those of least squares
(sandwich, HC1) of both sides, carried through the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.progress import Progress, silent
from clip_anatomy.results import Compact
from clip_anatomy.towers.forward import encode
from clip_anatomy.towers.transformer import Transformer

__all__ = ["Removal", "RemovalGame", "interactions"]

ENUMERATED = 10  # up to so many players every subset is run, and nothing is estimated
BATCH = 64


@dataclass(frozen=True, repr=False)
class Removal(Compact):
    """What each player adds to a unit embedding, on average over the subsets of the others.

    Attributes:
        effects: β.
        kept: the probability of a player to be kept.
        forwards: how many subsets were run.
        explained: share of the variance over subsets that the first-order fit explains.
        pull: how each subset's embedding enters each effect: effects = pull @ embeddings.
        residuals: embeddings minus fit, scaled up for the degrees of freedom; zeros where every subset was run.
    """

    effects: Float64[Tensor, "player embed"]
    kept: float
    forwards: int
    explained: float
    pull: Float64[Tensor, "player mask"] = field(repr=False)
    residuals: Float64[Tensor, "mask embed"] = field(repr=False)


@dataclass
class RemovalGame:
    """The subsets of one input that were run so far, and the embeddings they gave.

    Attributes:
        tower: the transformer.
        inputs: pixels or token ids of one picture or text.
        players: the tokens of each player; tokens of none are always there.
        kept: p, the probability of a player to be kept.
        seed: of the subsets.
    """

    tower: Transformer
    inputs: Tensor
    players: Sequence[Sequence[int]]
    kept: float
    seed: int

    def __post_init__(self) -> None:
        """Begin with no subset, or with all of them where they are few."""
        count, self._generator = len(self.players), torch.Generator().manual_seed(self.seed)
        self.complete = count <= ENUMERATED
        self._masks = torch.zeros(0, count, dtype=torch.bool)
        self._embeddings = torch.zeros(0, self.tower.embed, dtype=torch.float64)
        if self.complete:
            every = torch.arange(2**count)[:, None] >> torch.arange(count)
            self._run((every & 1).bool(), silent)

    def more(self, count: int, progress: Progress | None = None) -> None:
        """Run so many subsets more; nothing where all were run."""
        if not self.complete:
            drawn = torch.rand(count, len(self.players), generator=self._generator) < self.kept
            self._run(drawn, progress or silent)

    def __len__(self) -> int:
        """Count the subsets that were run."""
        return len(self._masks)

    def fit(self) -> Removal:
        """Fit the embeddings by the players that were kept."""
        masks, embeddings = self._masks.double(), self._embeddings
        size = masks.sum(1)
        weights = (
            self.kept**size * (1 - self.kept) ** (masks.shape[1] - size) if self.complete else torch.ones(len(masks))
        )
        weights = weights.double() / weights.sum()
        design = torch.cat([torch.ones(len(masks), 1), masks], 1).double()
        pull = torch.linalg.pinv(design * weights.sqrt()[:, None]) * weights.sqrt()
        rest = embeddings - design @ (pull @ embeddings)
        spread = embeddings - weights @ embeddings
        share = 1 - float((weights @ rest.square()).sum() / (weights @ spread.square()).sum().clamp_min(1e-300))
        free = len(masks) - design.shape[1]
        scaled = rest * 0 if self.complete else rest * (len(masks) / max(free, 1)) ** 0.5
        return Removal((pull @ embeddings)[1:], self.kept, len(masks), share, pull[1:], scaled)

    def _run(self, masks: Bool[Tensor, "mask player"], tell: Progress) -> None:
        at = torch.full((self.tower.token_count(self.inputs),), -1)
        for player, tokens in enumerate(self.players):
            at[list(tokens)] = player
        there = torch.cat([masks, torch.ones(len(masks), 1, dtype=torch.bool)], 1)[:, at]  # −1: the column of ones
        rows: list[Tensor] = []
        with torch.no_grad():
            for first in range(0, len(there), BATCH):
                some = there[first : first + BATCH].to(self.inputs.device)
                same = self.inputs.expand(len(some), *self.inputs.shape[1:])
                rows.append(normalize(encode(self.tower, same, some).double(), dim=-1).cpu())
                tell("taking parts away", first + len(some), len(there))
        empty = ~there.any(1)  # of nothing at all there is no embedding
        embeddings = torch.cat(rows) if rows else self._embeddings
        embeddings[empty] = 0
        self._masks, self._embeddings = torch.cat([self._masks, masks]), torch.cat([self._embeddings, embeddings])


def interactions(a: Removal, b: Removal) -> tuple[Float64[Tensor, "part_a part_b"], Float64[Tensor, "part_a part_b"]]:
    """Compute β_i · γ_j and its standard error.

    Var(β̂·γ̂) = γᵀ Cov(β̂) γ + βᵀ Cov(γ̂) β + tr(Cov(β̂) Cov(γ̂)); each of the first two, taken at the estimates, holds the third once too often.
    """
    effects = a.effects @ b.effects.T
    of_a = a.pull.square() @ (a.residuals @ b.effects.T).square()
    of_b = (a.effects @ b.residuals.T).square() @ b.pull.square().T
    both = a.pull.square() @ (a.residuals @ b.residuals.T).square() @ b.pull.square().T
    return effects, (of_a + of_b - both).clamp_min(0).sqrt()
