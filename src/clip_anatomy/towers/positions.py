"""Where tokens stand: position vectors of a grid of patches, resampled to another one as the host does, and rotary angles."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.towers.layers import PatchEmbedding, Resampling, Rotary

__all__ = ["position", "resample_position", "rotations"]


def position(embedding: PatchEmbedding, grid: tuple[int, int]) -> Float[Tensor, "token width"]:
    """Return the position vectors for a grid of patches: the model's own, or resampled into a new tensor as its host does."""
    assert embedding.position is not None
    return resample_position(embedding.position, embedding.grid, grid, embedding.resampling)


def resample_position(
    table: Float[Tensor, "old_token width"], old: tuple[int, int], new: tuple[int, int], resampling: Resampling
) -> Float[Tensor, "token width"]:
    """Fit position vectors (some for the tokens in front, then one per place) of one grid to another one.

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
    front = len(table) - old[0] * old[1]
    first, rest = table[:front], table[front:]
    places = rest.reshape(1, *old, -1).permute(0, 3, 1, 2)
    places = places.to(torch.promote_types(places.dtype, torch.float32))
    if resampling == "bicubic":
        resampled = F.interpolate(places, size=new, mode="bicubic", align_corners=False)
    else:
        mode = resampling.removesuffix("-antialias")
        resampled = F.interpolate(places, size=new, mode=mode, align_corners=False, antialias=True)
    return torch.cat([first, resampled.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1).to(first.dtype)])


def rotations(rotary: Rotary, grid: tuple[int, int]) -> Float[Tensor, "2 place d"]:
    """Sine and cosine of every place's turns, in float32.

    Half of a head's pairs turn with one coordinate, half with the other: angle = frequency · (coordinate + offset), coordinates
    stretched to the reference grid (Sun et al. 2023, EVA-CLIP; Fang et al. 2024, EVA-02).
    """
    if rotary.table is not None and grid == rotary.grid:
        return torch.stack(rotary.table.float().chunk(2, -1))
    frequencies = rotary.frequencies.float()
    axes = [torch.arange(n, device=frequencies.device, dtype=torch.float32) + rotary.offset for n in grid]
    if rotary.reference is not None:
        axes = [axis / n * of for axis, n, of in zip(axes, grid, rotary.reference, strict=True)]
    row, col = torch.meshgrid(*(axis + rotary.shift for axis in axes), indexing="ij")
    order = (col, row) if rotary.columns_first else (row, col)
    angle = torch.cat([axis.flatten()[:, None] * frequencies for axis in order], -1)
    angle = torch.cat([angle, angle], -1) if rotary.halves else angle.repeat_interleave(2, -1)
    return torch.stack([angle.sin(), angle.cos()])
