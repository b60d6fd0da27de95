"""Position vectors of a grid of patches, at the model's own size and resampled to another one as its host does."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.towers.layers import PatchEmbedding, Resampling

__all__ = ["position", "resample_position"]


def position(embedding: PatchEmbedding, grid: tuple[int, int]) -> Float[Tensor, "token width"]:
    """Return the position vectors for a grid of patches: the model's own, or resampled into a new tensor as its host does."""
    return resample_position(embedding.position, embedding.grid, grid, embedding.resampling)


def resample_position(
    table: Float[Tensor, "old_token width"], old: tuple[int, int], new: tuple[int, int], resampling: Resampling
) -> Float[Tensor, "token width"]:
    """Fit position vectors (one for the readout token, then one per place) of one grid to another one.

    Args:
        table: the model's own.
        old: its grid, (row, col).
        new: the grid wanted.
        resampling: as the host does: "bicubic-antialias" is open_clip's `resize_pos_embed` and timm's
            `resample_abs_pos_embed`, "bicubic" is transformers' `interpolate_pos_encoding`. The two differ upwards too,
            since torch's antialiased filter has another kernel (Keys' a = −0.5 instead of −0.75).
    """
    if new == old:
        return table
    first, rest = table[:1], table[1:]
    places = rest.reshape(1, *old, -1).permute(0, 3, 1, 2)
    places = places.to(torch.promote_types(places.dtype, torch.float32))
    antialias = resampling == "bicubic-antialias"
    resampled = F.interpolate(places, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([first, resampled.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1).to(first.dtype)])
