"""How much of a head the words of one concept explain: a third opinion of its role, in closed form from moments.

Head Pursuit (Basile et al., NeurIPS 2025) picks words of one concept greedily and asks how much of a head's outputs their span
explains. With squares as the measure (theirs are absolute values) that is a function of the second moment M and the unit words d alone:

    pick j = argmax d_jᵀ R M R d_j,   R = I − Q Qᵀ over the picks so far;        share = 1 − tr(R M R) / tr(M)

M is the covariance: what a head writes for every picture alike says nothing of what it tells apart. Words count with all of their
length, also what lies outside of the space that the head writes into. The control is what the same words explain of the other
heads of the layer: some concepts explain something of any head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy.naming.grammar import BOTH
from clip_anatomy.naming.textspan import check_pool
from clip_anatomy.split.moments import Moments

__all__ = ["WORDS", "ConceptShare", "concept_shares", "pursuit_shares"]

WORDS = 10  # picked of each concept: as many as the texts that a head is judged by


class ConceptShare(NamedTuple):
    """What the words of one concept explain of a head, and of the other heads of its layer (None: there are none)."""

    concept: str
    share: float
    others: float | None


def concept_shares(
    moments: Moments, pool_embeddings: "Tensor | NDArray[Any]", properties: Sequence[str], words: int = WORDS
) -> dict[tuple[int, int], tuple[ConceptShare, ...]]:
    """Measure every concept on every head.

    Args:
        moments: of heads.
        pool_embeddings: unit texts [text, embed].
        properties: the concept of each text, "" where nobody knows; texts about several are left out.
        words: picked of each concept.

    Returns:
        (layer, head) → concepts, those first that explain most beyond the other heads of the layer.

    Example:
        >>> x = torch.tensor([[3.0, 0.1, 0.0], [-3.0, 0.1, 0.0], [0.0, -0.2, 0.0]])
        >>> moments = Moments.of(torch.stack([x, x.roll(1, 1)], 1)[:, None])
        >>> result = concept_shares(moments, torch.eye(3)[:2], ["colour", "size"])
        >>> [(one.concept, round(one.share, 2), round(one.others, 2)) for one in result[0, 0]]
        [('colour', 1.0, 0.0), ('size', 0.0, 1.0)]
    """
    pool = check_pool(pool_embeddings, moments)
    names = sorted({name for name in properties if name and BOTH not in name})
    covariance = moments.covariance
    layers, heads = covariance.shape[:2]
    total = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    shares = torch.zeros(layers, heads, len(names), dtype=torch.float64)
    for place, name in enumerate(names):
        texts = pool[[at for at, given in enumerate(properties) if given == name]]
        for layer in range(layers):
            inside = texts.T if moments.basis is None else moments.basis.rows[layer] @ texts.T  # [head, d, text]
            second_moment = inside.mT @ covariance[layer] @ inside
            shares[layer, :, place] = pursuit_shares(second_moment, texts @ texts.T, words) / total[layer].clamp_min(
                1e-300
            )
    by_head: dict[tuple[int, int], tuple[ConceptShare, ...]] = {}
    for layer in range(layers):
        others = (shares[layer].sum(0) - shares[layer]) / max(heads - 1, 1)
        for head in range(heads):
            order = (shares[layer, head] - others[head]).argsort(descending=True, stable=True).tolist()
            by_head[moments.layers[layer], head] = tuple(
                ConceptShare(names[at], float(shares[layer, head, at]), float(others[head, at]) if heads > 1 else None)
                for at in order
            )
    return by_head


def pursuit_shares(
    second_moment: Float64[Tensor, "head text text"], gram: Float64[Tensor, "text text"], words: int
) -> Float64[Tensor, " head"]:
    """Sum what each pick adds: tr(M) − tr(R M R), from T M Tᵀ and T Tᵀ alone, of all heads side by side.

    Both are deflated by each pick: with q = R t_j / ‖R t_j‖, g = R T q and b = R T M q,  T R M R Tᵀ loses g bᵀ + b gᵀ − (qᵀMq) g gᵀ.
    """
    left, lengths = second_moment.clone(), gram.expand_as(second_moment).clone()
    explained = torch.zeros(len(second_moment), dtype=torch.float64)
    rows = torch.arange(len(second_moment))
    floor = 1e-9 * gram.diagonal().max()
    for _ in range(min(words, len(gram))):
        free = lengths.diagonal(dim1=-2, dim2=-1)
        score = left.diagonal(dim1=-2, dim2=-1).where(
            free > floor, -1.0
        )  # what lies in the picks' span adds rounding only
        best = score.argmax(1)
        root = free[rows, best].clamp_min(floor).sqrt()[:, None]
        alive = (score[rows, best] > 0)[:, None]
        g, b = lengths[rows, :, best] / root * alive, left[rows, :, best] / root * alive
        gain = b[rows, best] / root[:, 0]
        explained += gain
        outer = g[:, :, None] * (b - gain[:, None] / 2 * g)[:, None]
        left -= outer + outer.mT
        lengths -= g[:, :, None] * g[:, None]
    return explained
