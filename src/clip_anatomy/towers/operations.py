"""The few operations that every tower is made of, over borrowed weights."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.towers.layers import (
    Activation,
    AttentionPooling,
    Block,
    Linear,
    Norm,
    Registers,
    TransformerWeights,
)


def linear(layer: Linear, x: Tensor) -> Tensor:
    """Apply a borrowed linear layer over the last axis."""
    return F.linear(x, layer.weight, layer.bias)


def norm(layer: Norm, x: Tensor) -> Tensor:
    """LayerNorm in the dtype of its own weights (half-precision models keep theirs in float32), back to x's."""
    y = F.layer_norm(x.to(layer.weight.dtype), layer.weight.shape, layer.weight, layer.bias, layer.eps)
    return y.to(x.dtype)


def inverse_deviation(layer: Norm, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows"]:
    """1/σ of a LayerNorm, in float32 or better: what is frozen when a norm is made linear."""
    x = widened(x)
    return ((x - x.mean(-1, keepdim=True)).square().mean(-1) + layer.eps).rsqrt()


def norm_and_deviation(
    layer: Norm, x: Float[Tensor, "*rows width"]
) -> tuple[Float[Tensor, "*rows width"], Float[Tensor, "*rows"]]:
    """LayerNorm and its 1/σ, in one pass over memory unless half precision would round what is frozen."""
    if layer.weight.dtype not in (torch.float32, torch.float64):
        return norm(layer, x), inverse_deviation(layer, x)
    wide = x.to(layer.weight.dtype)
    y, _, inverse = torch.native_layer_norm(wide, layer.weight.shape, layer.weight, layer.bias, layer.eps)
    return y.to(x.dtype), inverse[..., 0]


def frozen(layer: Norm, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Compute what a LayerNorm makes of a part when its 1/σ is frozen and left out: centred, times γ; in float32 or better."""
    x = widened(x)
    return (x - x.mean(-1, keepdim=True)) * layer.weight.to(x.dtype)


def activate(kind: Activation, x: Tensor) -> Tensor:
    """Return the MLP's nonlinearity."""
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if kind == "relu":
        return F.relu(x)
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def widened(x: Tensor) -> Tensor:
    """Take half precision, too coarse for a softmax over many tokens, to float32; double stays double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def add_linear(
    x: Float[Tensor, "*rows width"], layer: Linear, y: Float[Tensor, "*rows in"], scale: Tensor | None
) -> Float[Tensor, "*rows width"]:
    """x + scale · linear(y): without LayerScale the product is accumulated onto x + b, one pass over memory fewer."""
    if scale is not None:
        return x + linear(layer, y) * scale
    if not x.dtype == y.dtype == layer.weight.dtype:  # under autocast
        return x + linear(layer, y)
    base = x.clone() if layer.bias is None else x + layer.bias
    return base.flatten(0, -2).addmm_(y.flatten(0, -2), layer.weight.T).view_as(base)


def before_attention(block: Block, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Compute what the attention reads of the residual stream: ln1 of it, or (post-norm) itself."""
    return x if block.post_norm else norm(block.ln1, x)


def neurons(tower: TransformerWeights, block: Block, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows neuron"]:
    """Compute the activations of a block's MLP, given the residual stream; moved into registers where the block has some."""
    y = x if block.post_norm or block.in_stream else norm(block.ln2, x)
    y = y if block.norm_up is None else norm(block.norm_up, y)
    if block.gate is None:
        y = activate(tower.activation, linear(block.up, y))
    else:
        y = activate(tower.activation, linear(block.gate, y)) * linear(block.up, y)
    return y if block.registers is None else into_registers(y, block.registers, tower.own)


def into_registers(y: Float[Tensor, "*rows neuron"], moved: Registers, own: int) -> Float[Tensor, "*rows neuron"]:
    """Move the greatest activation (by magnitude) of some neurons from the patches into the last tokens in front of them.

    Jiang et al., "Vision Transformers Don't Need Trained Registers" (NeurIPS 2025), §4. Rows of the class token alone stay as they are.

    Args:
        y: activations [image, token, neuron]; or of fewer tokens, without the patches.
        moved: which neurons, and into how many tokens.
        own: tokens in front of the patches.
    """
    if y.dim() < 3 or y.shape[-2] <= own:
        return y
    some = y[..., moved.neurons]
    pool = some.flatten(-2)[..., None] if moved.shared else some
    most = pool.gather(-2, pool.abs().argmax(-2, keepdim=True)).expand_as(some[..., :1, :])
    front = slice(own - moved.tokens, own)
    y = y.clone()
    y[..., own:, moved.neurons] = 0
    y[..., front, moved.neurons] = most
    return y


def mlp(
    tower: TransformerWeights, block: Block, before: Float[Tensor, "*rows width"], middle: Float[Tensor, "*rows width"]
) -> Float[Tensor, "*rows width"]:
    """Compute what the block's MLP writes (its LayerNorms and LayerScale included).

    Args:
        tower: the tower.
        block: one of its blocks.
        before: the residual stream into the block, which a parallel block's MLP reads.
        middle: the stream behind the attention, which any other reads.
    """
    y = neurons(tower, block, before if block.parallel else middle)
    y = linear(block.down, y if block.norm_down is None else norm(block.norm_down, y))
    y = norm(block.ln2, y) if block.post_norm else y
    return y if block.scale_mlp is None else y * block.scale_mlp


def pool_mlp(pool: AttentionPooling, u: Float[Tensor, "*rows pooled"]) -> Float[Tensor, "*rows pooled"] | None:
    """Compute what the MLP behind an attention pool adds to what the pool wrote; None where there is none."""
    if pool.up is None or pool.down is None:
        return None
    y = u if pool.ln_mlp is None else norm(pool.ln_mlp, u)
    return linear(pool.down, activate(pool.activation, linear(pool.up, y)))


def project_out(block: Block, mixed: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Compute what the attention writes: out-projection of all heads' Σ a v side by side, with the norms around it, and LayerScale."""
    y = linear(block.out, mixed if block.norm_mixed is None else norm(block.norm_mixed, mixed))
    y = y if block.norm_written is None else norm(block.norm_written, y)
    return y if block.scale_attention is None else y * block.scale_attention


def project_in(
    tower: TransformerWeights,
    block: Block,
    normed: Float[Tensor, "image token width"],
    rotation: Float[Tensor, "2 place d"] | None = None,
) -> tuple[
    Float[Tensor, "image head token d"], Float[Tensor, "image head token d"], Float[Tensor, "image head token d"]
]:
    """Query, key and value of every head, from ln1's output: normalised and turned where the tower does so."""
    b, n, _ = normed.shape
    if block.qkv is not None:
        q, k, v = linear(block.qkv, normed).view(b, n, 3, tower.heads, tower.d).permute(2, 0, 3, 1, 4)
    else:
        q, k, v = (of_heads(tower, p, normed) for p in (block.query, block.key, block.value))
    if block.norm_query is not None and block.norm_key is not None:
        q, k = norm(block.norm_query, q), norm(block.norm_key, k)
    if rotation is not None:
        q, k = rotate(tower, q, rotation), rotate(tower, k, rotation)
    return q, k, v


def project_query_and_keys(
    tower: TransformerWeights,
    block: Block,
    row: Float[Tensor, "image width"],
    normed: Float[Tensor, "image token width"],
    rotation: Float[Tensor, "2 place d"] | None,
) -> tuple[Float[Tensor, "image head 1 d"], Float[Tensor, "image head token d"]]:
    """Query of one token, which is no place and is not turned, and every token's key: `project_in` for one row of attention."""
    q, k = of_heads(tower, block.query, row[:, None]), of_heads(tower, block.key, normed)
    if block.norm_query is not None and block.norm_key is not None:
        q, k = norm(block.norm_query, q), norm(block.norm_key, k)
    return q, k if rotation is None else rotate(tower, k, rotation)


def of_heads(
    tower: TransformerWeights, layer: Linear, x: Float[Tensor, "image token width"]
) -> Float[Tensor, "image head token d"]:
    """Apply a projection whose outputs are the heads side by side."""
    return linear(layer, x).unflatten(2, (tower.heads, tower.d)).transpose(1, 2)


def rotate(
    tower: TransformerWeights, x: Float[Tensor, "image head token d"], rotation: Float[Tensor, "2 place d"]
) -> Float[Tensor, "image head token d"]:
    """Turn queries or keys of the patches by their places; the tokens in front of them stay."""
    assert tower.rotary is not None
    sine, cosine = rotation
    front, places = x[:, :, : tower.own], x[:, :, tower.own :]
    if tower.rotary.halves:
        first, second = places.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-places[..., 1::2], places[..., ::2]], -1).flatten(-2)
    return torch.cat([front, (places * cosine + turned * sine).to(x.dtype)], 2)
