"""The first residual stream: pixels or token ids to tokens, and where each of them stands."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.towers.layers import PatchEmbedding, TransformerWeights, WordEmbedding
from clip_anatomy.towers.operations import norm
from clip_anatomy.towers.positions import position


def embed_image(
    tower: TransformerWeights, pixels: Float[Tensor, "image 3 row col"]
) -> Float[Tensor, "image token width"]:
    """Preprocessed pixels to the residual stream into block 0. Rows and cols are multiples of the patch."""
    e = tower.embedding
    assert isinstance(e, PatchEmbedding)
    if e.stem is not None:
        patches = e.stem.run(pixels)
    else:
        assert e.weight is not None
        patches = F.conv2d(pixels.to(e.weight.dtype), e.weight, e.bias, stride=e.patch)
    grid = (patches.shape[2], patches.shape[3])
    patches = patches.flatten(2).transpose(1, 2)
    front = [] if e.class_token is None else [e.class_token[None]]
    front += [] if e.registers is None else [e.registers]
    own = torch.cat(front).to(patches.dtype) if front else None
    if e.position is not None:
        table = position(e, grid).to(patches.dtype)
        placed = len(table) - patches.shape[1]  # how many of the tokens in front have a position vector
        patches = patches + table[placed:]
        own = own if own is None or not placed else torch.cat([own[:placed] + table[:placed], own[placed:]])
    x = patches if own is None else torch.cat([own.expand(patches.shape[0], -1, -1), patches], dim=1)
    x = x if tower.ln_pre is None else norm(tower.ln_pre, x)
    if not e.blank:
        return x
    first = e.own - e.blank
    return torch.cat([x[:, :first], x.new_zeros(len(x), e.blank, x.shape[2]), x[:, first:]], 1)


def embed_text(tower: TransformerWeights, ids: Int[Tensor, "text token"]) -> Float[Tensor, "text all_tokens width"]:
    """Token ids to the residual stream into block 0."""
    e = tower.embedding
    assert isinstance(e, WordEmbedding)
    x = F.embedding(ids, e.weight).to(tower.dtype)
    x = x if e.scale == 1 else x * e.scale
    x = x if e.segment is None else x + e.segment.to(x.dtype)
    if e.counted:
        not_padding = (ids != e.pad).int()
        places = F.embedding(not_padding.cumsum(1) * not_padding, e.position).to(tower.dtype)
        return x + places if tower.ln_pre is None else norm(tower.ln_pre, x + places)
    if e.class_token is not None:
        x = torch.cat([x, e.class_token.to(x.dtype).expand(x.shape[0], 1, -1)], 1)
    x = x + e.position[: x.shape[1]].to(tower.dtype)
    return x if tower.ln_pre is None else norm(tower.ln_pre, x)


def embed_inputs(tower: TransformerWeights, inputs: Tensor) -> Float[Tensor, "image token width"]:
    """Pixels or token ids, whichever the tower takes, to the residual stream into block 0."""
    return embed_image(tower, inputs) if tower.kind == "image" else embed_text(tower, inputs)
