"""Stability of the picked texts: TextSpan again on bootstrap resamples of the images.

Images were dealt at random into chunks when the moments were taken; drawing chunks with replacement is a bootstrap over
images in blocks, and needs no second pass. All resamples of a head share one matrix of texts: a pick costs one product.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.greedy_selection import greedy
from clip_anatomy.naming.head_frames import frame_of_head, ranks_of_heads
from clip_anatomy.naming.textspan import check_pool, texts_in
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.moments import Moments

__all__ = ["Stability", "stability"]

BLOCK = 32  # resamples at a time: bounds memory at BLOCK scores per text


@dataclass(frozen=True)
class Stability:
    """How often each pick is picked again; zero where there is no pick.

    Attributes:
        anywhere: share of the resamples whose span holds the text at any place.
        in_place: share of the resamples that pick it at the same place or before.
        resamples: how many were drawn.
        chunks: how many chunks of images they were drawn from.
    """

    anywhere: Float64[Tensor, "layer head pick"]
    in_place: Float64[Tensor, "layer head pick"]
    resamples: int
    chunks: int


def stability(
    moments: Moments,
    span: TextSpanResult,
    pool_embeddings: "Tensor | NDArray[Any]",
    resamples: int = 100,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stability:
    """Measure how often each pick is picked again on bootstrap resamples of the images.

    Args:
        moments: the moments behind `span`, taken with chunks (`Moments.of(..., chunks=32)`).
        span: what `textspan` found.
        pool_embeddings: the same pool [text, embed].
        resamples: how many times to draw as many chunks as there are, with replacement.
        seed: of the draws.
        progress: called after each head.

    Returns:
        Stability, shares in 0..1 on the span's axes.

    Raises:
        BadInput: fewer than two chunks hold images.
    """
    tell = progress or silent
    pool = check_pool(pool_embeddings, moments)
    cells = moments.ungrouped
    counts = cells.counts[0].double()
    filled = int((counts > 0).sum())
    if filled < 2:
        raise BadInput(f"moments of {filled} chunk(s) cannot be resampled: take them with Moments.of(..., chunks=32)")
    if resamples < 1:
        raise BadInput(f"resamples={resamples}: type resamples=100")
    chunks = len(counts)
    draws = np.random.default_rng(seed).multinomial(chunks, np.full(chunks, 1 / chunks), size=resamples)
    weights = torch.from_numpy(draws.astype(np.float64))
    weights = weights[weights @ counts > 1]  # a draw of nothing but empty chunks says nothing
    anywhere, in_place = torch.zeros_like(span.margin), torch.zeros_like(span.margin)
    heads = [(span.layers.index(layer), head) for layer, head in span.heads()]
    if moments.layers != span.layers:
        raise BadInput(
            f"span of layers {list(span.layers)}, moments of {list(moments.layers)}: give those of the span."
        )
    ranks = ranks_of_heads(moments)
    for done, at in enumerate(heads, 1):
        frame = frame_of_head(moments, at, int(ranks[at]))
        if len(frame) and bool((span.indices[at] >= 0).any()):
            texts = texts_in(pool, frame, span.basis, at)
            means = cells.means[0, :, at[0], at[1]] @ frame.T
            scatters = frame @ cells.scatters[0, :, at[0], at[1]] @ frame.T
            rank = int(span.rank[at])
            picked = torch.zeros(len(weights), span.texts_per_head, span.texts_per_head, dtype=torch.bool)
            for start in range(0, len(weights), BLOCK):
                block = slice(start, start + BLOCK)
                covariance, uncentred = _resampled(weights[block], counts, means, scatters)
                subspace = None if rank >= len(frame) else _projector(uncentred, rank)
                again = greedy(texts, covariance, min(span.texts_per_head, len(frame)), subspace).indices
                picked[block, :, : again.shape[1]] = span.indices[at][None, :, None] == again[:, None]
            picked &= (span.indices[at] >= 0)[None, :, None]
            anywhere[at] = picked.any(2).double().mean(0)
            in_place[at] = picked.tril().any(2).double().mean(0)
        tell("resampling", done, len(heads))
    return Stability(anywhere, in_place, resamples, chunks)


def _resampled(
    weights: Float64[Tensor, "resample chunk"],
    counts: Float64[Tensor, " chunk"],
    means: Float64[Tensor, "chunk d"],
    scatters: Float64[Tensor, "chunk d d"],
) -> tuple[Float64[Tensor, "resample d d"], Float64[Tensor, "resample d d"]]:
    """Covariance and E[xxᵀ] of each resample, about the common mean first so that nothing large cancels."""
    middle = (counts[:, None] * means).sum(0) / counts.sum()
    gap = means - middle
    n = weights @ counts
    about = torch.einsum("rc,cij->rij", weights, scatters + counts[:, None, None] * gap[:, :, None] * gap[:, None])
    shift = (weights * counts) @ gap / n[:, None]
    scatter = about - n[:, None, None] * shift[:, :, None] * shift[:, None]
    mean = middle + shift
    return scatter / (n - 1)[:, None, None], scatter / n[:, None, None] + mean[:, :, None] * mean[:, None]


def _projector(uncentred: Float64[Tensor, "resample d d"], rank: int) -> Float64[Tensor, "resample d d"]:
    top = torch.linalg.eigh(uncentred).eigenvectors[:, :, -rank:]
    return top @ top.transpose(1, 2)
