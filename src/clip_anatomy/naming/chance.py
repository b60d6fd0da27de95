"""What an atlas would have said by chance: the same figures from texts that have nothing to do with the heads.

The pool is turned by a random rotation of the joint space: every text keeps its length, its likeness to every other text and its
property, and points anywhere. What such texts explain of a head, and how clear a role they give it, is the level that a name
must stand above.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.naming.roles import roles
from clip_anatomy.naming.textspan import check_pool, textspan
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.moments import Moments

__all__ = ["SHUFFLES", "ChanceLevel", "chance_levels", "rotated"]

SHUFFLES = 3


@dataclass(frozen=True)
class ChanceLevel:
    """What shuffled texts reach on one head, mean over the shuffles.

    Attributes:
        explained: share of its variance that its first texts explain.
        role: share of the evidence of the property that leads; None where no text has a property.
    """

    explained: float
    role: float | None


def rotated(pool: Float64[Tensor, "text embed"], seed: int) -> Float64[Tensor, "text embed"]:
    """Turn all texts of a pool by one random rotation."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(pool.shape[1], pool.shape[1], dtype=torch.float64, generator=generator)
    return pool @ torch.linalg.qr(square).Q


def chance_levels(
    span: TextSpanResult,
    moments: Moments,
    pool_embeddings: Tensor,
    properties: Sequence[str],
    *,
    shuffles: int = SHUFFLES,
    progress: Progress | None = None,
) -> dict[tuple[int, int], ChanceLevel]:
    """Span every head with shuffled texts.

    Args:
        span: what `textspan` found; as many texts are picked as its heads are judged by.
        moments: the moments behind it.
        pool_embeddings: the same pool [text, embed].
        properties: what each text is about.
        shuffles: rotations.
        progress: told which shuffle it is.

    Returns:
        (layer, head) → levels, for the heads that the span covers.
    """
    pool, heads, tell = check_pool(pool_embeddings, moments), list(span.heads()), progress or silent
    first = min(span.top_k, span.texts_per_head)
    explained: dict[tuple[int, int], list[float]] = {at: [] for at in heads}
    leading: dict[tuple[int, int], list[float]] = {at: [] for at in heads}
    for seed in range(shuffles):
        tell("chance: shuffled texts", seed, shuffles)
        texts = rotated(pool, seed)
        random_span = textspan(moments, texts, first, heads=heads, threshold=span.threshold, top_k=span.top_k)
        random_roles = roles(random_span, moments, texts, properties) if any(properties) else {}
        for layer, head in heads:
            explained[layer, head].append(
                float(random_span.cumulative[random_span.layers.index(layer), head, first - 1])
            )
            if (layer, head) in random_roles:
                leading[layer, head].append(random_roles[layer, head].leading_share)
    return {at: ChanceLevel(fmean(explained[at]), fmean(leading[at]) if leading[at] else None) for at in heads}
