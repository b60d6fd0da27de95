"""The directions that a head can write into: as many as its weights allow, and none of rounding.

A threshold on the spectrum cannot tell the smallest direction of a head from rounding where a few channels of the last LayerNorm are large. But the
dimension is known: the head's width (and three more for "official"), less what its weights leave empty.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.moments import Moments

__all__ = ["frame_of_head", "numerical_rank", "ranks_of_heads"]

# Float32 contributions carry a relative noise of 2⁻²³ per coordinate; an eigenvalue of E[xxᵀ] sees its square.
NOISE = 4 * torch.finfo(torch.float32).eps ** 2

ROUNDING = 64 * torch.finfo(torch.float32).eps  # weights are multiplied in float32


def numerical_rank(uncentred: Float64[Tensor, "*batch d d"]) -> Int64[Tensor, "*batch"]:
    """Count the eigenvalues of E[xxᵀ] that stand above the rounding noise of float32 contributions."""
    values = torch.linalg.eigvalsh(uncentred)
    return (values > NOISE * values[..., -1:].clamp(min=1e-300)).sum(-1)


def ranks_of_heads(moments: Moments) -> Int64[Tensor, "layer head"]:
    """Count the directions that each head writes into: known from its weights where the moments have their frames, else from the spectrum.

    Never more than there are images; 0 for a head that writes nothing.
    """
    frames = _frames_of(moments)
    if frames is None:
        return numerical_rank(moments.uncentred)
    # The factor is triangular: its diagonal says how far each of a head's inputs writes from what those before it span. Held against that
    # input's own length, not against the largest singular value, which a few large channels of the last norm multiply.
    apart = frames.factor.diagonal(dim1=-2, dim2=-1).abs()
    known = (apart > ROUNDING * frames.factor.norm(dim=-1)[..., : apart.shape[-1]]).sum(-1).clamp(max=moments.count)
    return torch.where(moments.uncentred.diagonal(dim1=-2, dim2=-1).sum(-1) > 0, known, 0)


def frame_of_head(moments: Moments, at: tuple[int, int], rank: int) -> Float64[Tensor, "rank d"]:
    """Return the strongest directions of one head, among those that it can write into.

    Args:
        moments: of the heads.
        at: place of its layer, and its number.
        rank: how many.

    Returns:
        Top eigenvectors of E[xxᵀ] as rows: the right singular vectors of the uncentred data.
    """
    uncentred, frames = moments.uncentred[at], _frames_of(moments)
    inside = None if frames is None or moments.basis is not None else frames.rows[at]
    if inside is not None:
        uncentred = inside @ uncentred @ inside.T
    top = torch.linalg.eigh(uncentred).eigenvectors.flip(1)[:, :rank].T.contiguous()
    return top if inside is None else top @ inside


def _frames_of(moments: Moments) -> HeadBasis | None:
    """Return the frames of the heads' weights; None where they are not known, or a head can write anywhere."""
    frames = moments.frames if moments.basis is None else moments.basis
    return None if frames is None or frames.whole else frames
