"""TextSpan from moments alone: which texts span what a head writes.

Source: Gandelsman, Efros, Steinhardt, "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR
2024), §4.1, algorithm 1. The published code needs every contribution of every image; the picks are a function of three
moments per head (C is the covariance):

    frame      top `rank` eigenvectors of E[xxᵀ] (the right singular vectors of the uncentred data)
    t_j        the text embeddings in that frame, not normalised again
    repeat     j = argmax t_jᵀ C t_j;   q = t_j/‖t_j‖;   C ← (I − qqᵀ) C (I − qqᵀ);   t ← t − (t·q) q
    x ≈ mean + Σ_k q_k q_kᵀ (x − mean)

The scores are updated, not recomputed: with v = C q − (qᵀCq/2) q they fall by 2 (t·q)(t·v), and since every q is
orthogonal to the ones before, t·q and t·v may be taken with the texts as they were at the start. So a pick costs two
products with a constant matrix. All of it in float64: the order of near ties must not hang on rounding.
"""

import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy.errors import BadInput, reading
from clip_anatomy.naming.greedy_selection import greedy
from clip_anatomy.naming.head_frames import NOISE, frame_of_head, ranks_of_heads
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.number_ranges import whole
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.moments import Moments

__all__ = ["RankWarning", "check_pool", "texts_in", "textspan"]


MOST_TEXTS = 10_000  # picks of a head


class RankWarning(UserWarning):
    """A rank was asked for that keeps directions of pure rounding noise."""


@public
def textspan(
    moments: Moments,
    pool_embeddings: "Tensor | NDArray[Any]",
    texts_per_head: int = 60,
    rank: int | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    *,
    threshold: float = 0.3,
    top_k: int = 10,
    progress: Progress | None = None,
) -> TextSpanResult:
    """Name heads by TextSpan: pick, one after the other, the texts that explain most of what is left of a head's variance.

    Time and memory do not depend on the number of images behind the moments. One head's texts are held at a time.

    Args:
        moments: statistics of head contributions.
        pool_embeddings: text embeddings [text, embed], of unit length as in the paper (a longer text scores higher).
        texts_per_head: how many texts to pick for each head (the paper's main setting is 60).
        rank: how many directions of a head to search. Default: as many as it has, at most d (+ 3 for "official").
        heads: (layer, head) pairs, layers numbered as in the model. Default: all.
        threshold: heads whose first `top_k` picks explain less of the variance than this are called unnamed.
        top_k: see `threshold`.
        progress: called after each head.

    Returns:
        TextSpanResult: picks and figures per (layer, head).

    Raises:
        BadInput: pool of another width, nothing to pick from, no such head.

    Warns:
        RankWarning: `rank` is above the true rank of a head.

    Example:
        >>> from clip_anatomy.split.moments import Moments
        >>> x = torch.tensor([[2.0, 0.1], [-2.0, 0.1], [0.0, -0.2]])[:, None, None]
        >>> span = textspan(Moments.of(x), torch.eye(2), texts_per_head=2)
        >>> span.indices.tolist(), [round(v, 3) for v in span.cumulative[0, 0].tolist()]
        ([[[0, 1]]], [0.993, 1.0])
    """
    tell = progress or silent
    pool = check_pool(pool_embeddings, moments)
    if texts_per_head < 1 or (rank is not None and rank < 1):
        raise BadInput(
            f"texts_per_head={texts_per_head}, rank={rank}: give 1 or more. Type texts_per_head=60, rank=None"
        )
    whole("texts_per_head", texts_per_head, 1, MOST_TEXTS)
    whole("top_k", top_k, 1, MOST_TEXTS)
    if moments.count < 2:
        raise BadInput(f"moments of {moments.count} images have no variance to explain: take them over two or more.")
    chosen = _chosen_heads(moments, heads)
    layers, width, d = moments.mean.shape
    true_rank = ranks_of_heads(moments)
    used = true_rank if rank is None else torch.full_like(true_rank, min(rank, d))
    _warn_above_rank(rank, true_rank, chosen)
    shape = (layers, width, texts_per_head)
    span = TextSpanResult(
        torch.full(shape, -1),
        *(torch.zeros(shape, dtype=torch.float64) for _ in range(4)),
        runner_up=torch.full(shape, -1),
        margin=torch.zeros(shape, dtype=torch.float64),
        directions=torch.zeros(*shape, d, dtype=torch.float64),
        mean=moments.mean,
        rank=torch.zeros(layers, width, dtype=torch.int64),
        unnamed=torch.zeros(layers, width, dtype=torch.bool),
        threshold=threshold,
        top_k=top_k,
        count=moments.count,
        layers=moments.layers,
        convention=moments.convention,
        basis=moments.basis,
    )
    covariance = moments.covariance
    for done, at in enumerate(chosen, 1):
        _fill(span, at, pool, covariance[at], frame=frame_of_head(moments, at, int(used[at])))
        tell("picking texts", done, len(chosen))
    return span


def _fill(
    span: TextSpanResult,
    at: tuple[int, int],
    pool: Float64[Tensor, "text embed"],
    covariance: Float64[Tensor, "d d"],
    frame: Float64[Tensor, "rank d"],
) -> None:
    """Pick the texts of one head and write them into the (freshly made) arrays of `span`."""
    rank = len(frame)
    span.rank[at] = max(rank, 1)  # a head that never writes has rank 0, and is covered all the same
    total = covariance.trace()
    size = total + span.mean[at].square().sum()
    if rank == 0 or float(total) <= NOISE * float(size):  # writes nothing, or the same for every image
        span.unnamed[at] = True
        return
    texts = texts_in(pool, frame, span.basis, at)
    selection = greedy(texts, (frame @ covariance @ frame.T)[None], min(span.texts_per_head, rank))
    m = selection.indices.shape[1]
    span.indices[at][:m] = selection.indices[0]
    span.score[at][:m] = selection.score[0]
    span.explained_alone[at][:m] = selection.explained_alone[0] / total
    span.cumulative[at][:m] = selection.gain[0].cumsum(0) / total
    span.cumulative[at][m:] = span.cumulative[at][m - 1]
    span.runner_up[at][:m] = selection.runner_up[0]
    span.margin[at][:m] = selection.margin[0]
    span.directions[at][:m] = selection.directions[0] @ frame
    best = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).cumsum(0) / total
    span.pca_explained[at][:] = best[torch.arange(span.texts_per_head).clamp(max=len(best) - 1)]
    span.unnamed[at] = bool(span.cumulative[at][min(span.top_k, span.texts_per_head) - 1] < span.threshold)


def texts_in(
    pool: Float64[Tensor, "text embed"], frame: Float64[Tensor, "rank d"], basis: HeadBasis | None, at: tuple[int, int]
) -> Float64[Tensor, "rank text"]:
    """Return coordinates of all texts in one head's frame, one column per text (so that a pick reads memory in order)."""
    rows = frame if basis is None else frame @ basis.rows[at]
    return rows @ pool.T


def check_pool(pool_embeddings: "Tensor | NDArray[Any]", moments: Moments) -> Float64[Tensor, "text embed"]:
    """Bring a pool to float64 and refuse what cannot be compared with these moments."""
    with reading("pool embeddings", "Type: clip.encode_text(texts)"):
        pool = torch.as_tensor(pool_embeddings).detach().to("cpu", torch.float64)
    embed = moments.means.shape[-1] if moments.basis is None else moments.basis.embed
    if pool.ndim != 2 or pool.shape[0] < 1 or pool.shape[1] != embed:
        raise BadInput(
            f"pool embeddings of shape {list(pool.shape)}: give [text, {embed}], embeddings by the "
            "model of these moments, `clip.encode_text(texts)`."
        )
    if not bool(torch.isfinite(pool).all()):
        raise BadInput("pool embeddings hold numbers that are not finite: embed the texts again in float32.")
    return pool


def _chosen_heads(moments: Moments, heads: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    layers, width = moments.means.shape[2:4]
    if heads is None:
        return list(product(range(layers), range(width)))
    for layer, head in heads:
        if layer not in moments.layers or not 0 <= head < width:
            raise BadInput(
                f"head ({layer}, {head}) is not in these moments. Type (layer, head) with a layer of "
                f"{list(moments.layers)} and a head of 0..{width - 1}."
            )
    return [(moments.layers.index(layer), head) for layer, head in heads]


def _warn_above_rank(rank: int | None, true_rank: Int64[Tensor, "layer head"], chosen: list[tuple[int, int]]) -> None:
    true = [int(true_rank[at]) for at in chosen]
    above = [r for r in true if rank is not None and rank > r]
    if above:
        warnings.warn(
            f"rank={rank} is above the true rank of {len(above)} of {len(true)} heads (at most {max(above)}). A head "
            "of width d writes into d dimensions (d + 3 for convention 'even'): directions beyond those are rounding "
            "noise, and picks that use them differ from machine to machine. The published default of 80 fits heads "
            "that are 80 wide (ViT-H/14), not 64. Type rank=None for the true rank of each head.",
            RankWarning,
            stacklevel=3,
        )
