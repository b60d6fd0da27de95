"""An attention pool split at itself: what each of its own heads wrote, of every token, whatever made the tokens.

`decompose` follows what all layers wrote through the pool; this is the coarser split of the pool alone, which is exact without
freezing any norm (Gandelsman and others split SigLIP so: clip_text_span, compute_siglip).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.split.layernorm import pooled_to_joint
from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import walk
from clip_anatomy.towers.operations import inverse_deviation, linear, norm, pool_mlp
from clip_anatomy.towers.readout import leave, pool_attention, pool_tokens, readout_of
from clip_anatomy.towers.transformer import Transformer

__all__ = ["PoolParts", "pool_parts"]


@dataclass(frozen=True)
class PoolParts:
    """An embedding as the sum of what an attention pool's heads, its MLP and its biases wrote.

    Attributes:
        tokens: what each head of the pool wrote of each token, value biases included (attention sums to 1).
        mlp: what the MLP behind it wrote; zero where there is none.
        bias: of the pool's projection, and what stands behind it.
        embedding: what the host returns.
    """

    tokens: Float[Tensor, "image token head embed"]
    mlp: Float[Tensor, "image embed"]
    bias: Float[Tensor, "image embed"]
    embedding: Float[Tensor, "image embed"]

    @property
    def heads(self) -> Float[Tensor, "image head embed"]:
        """What each head of the pool wrote."""
        return self.tokens.sum(1)


def pool_parts(tower: Transformer, pixels: Float[Tensor, "image 3 row col"]) -> PoolParts:
    """Split what an attention pool wrote over its own heads and the tokens that they looked at.

    Args:
        tower: one that is read out by an attention pool.
        pixels: preprocessed.

    Raises:
        UnsupportedModel: it is read out otherwise.
    """
    pool = tower.pooling
    if pool is None:
        raise UnsupportedModel(
            f"this tower is read out by {tower.pool!r}, not by an attention pool. Type decompose(clip, images)"
        )
    with torch.no_grad():
        x = embed_inputs(tower, pixels)
        for step in walk(tower, x, readout_of(tower, pixels, x.shape[1])):
            assert step.after is not None
            x = step.after
            del step
        normed = norm(tower.ln_post, x)
        attention = pool_attention(pool, normed)
        value = linear(pool.value, normed).unflatten(-1, (pool.heads, pool.d)).float()
        out = pool.out.weight.float().unflatten(1, (pool.heads, pool.d))
        wrote = torch.einsum("bhn,bnhd,ehd->bnhe", attention.float(), value, out)
        u = pool_tokens(pool, normed, attention)
        added = pool_mlp(pool, u)
        pooled = u if added is None else u + added
        scale = torch.ones(len(u), device=u.device)
        last = torch.zeros(tower.embed, device=u.device)
        if pool.norm is not None:
            scale = inverse_deviation(pool.norm, pooled).float()
            last = leave(tower, pool.norm.bias).float()
            pooled = norm(pool.norm, pooled)
        elif tower.projection_bias is not None:
            last = tower.projection_bias.float()
        own = torch.zeros_like(u) if pool.out.bias is None else pool.out.bias.expand_as(u)
        mlp = torch.zeros_like(u) if added is None else added
        return PoolParts(
            tokens=pooled_to_joint(tower, wrote) * scale[:, None, None, None],
            mlp=pooled_to_joint(tower, mlp.float()) * scale[:, None],
            bias=pooled_to_joint(tower, own.float()) * scale[:, None] + last,
            embedding=leave(tower, pooled).float(),
        )
