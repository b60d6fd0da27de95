"""The forward of a tower: every intermediate is named where it is computed.

`embed_image` / `embed_text` make the first residual stream, `walk` yields one `Step` per block, `embed_readout` turns the
last stream into the joint-space embedding. There are no hooks: who wants an intermediate reads it off the step, and what
nobody keeps is freed before the next block starts.

    pixels ─▶ embed_image ─┐
                           ├─▶ residual stream [image, token, width] ─▶ walk ─▶ Step, Step, … ─▶ embed_readout ─▶ [image, embed]
    token ids ▶ embed_text ┘

The last block is computed for the readout row alone when one row is read (class token, end-of-text token): its keys are folded
into the query (W_Kᵀ q) and its values out of the sum (W_V Σ a x), so that it costs 1/token of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip_anatomy.towers.layers import (
    Activation,
    Block,
    Linear,
    Norm,
    PatchEmbedding,
    TransformerWeights,
    WordEmbedding,
)
from clip_anatomy.towers.positions import position

QUERY_BLOCK = 64  # rows of attention held at once where the mean of all rows is needed


@dataclass(frozen=True)
class Readout:
    """Which rows of the residual stream the embedding is read from: one row per image, a weighted sum of rows, or all of them.

    With neither index nor weights every row is handed on, for who learns their weights at the end only.
    """

    index: Int[Tensor, " image"] | None = None
    weights: Float[Tensor, "image token"] | None = None
    column: int | None = None  # the index, where it is the same for every image: a slice is cheaper than a gather

    def rows(self, x: Float[Tensor, "image token *rest"]) -> Float[Tensor, "image *rest_or_all"]:
        """Read the rows: [image, token, …] → [image, …], a tensor of its own (a view would keep all tokens alive)."""
        if self.column is not None:
            return x[:, self.column].clone()
        if self.index is not None:
            return x[torch.arange(x.shape[0], device=x.device), self.index]
        if self.weights is None:
            return x
        return torch.einsum("bn,bn...->b...", self.weights.to(x.dtype), x)

    @property
    def mass(self) -> Float[Tensor, " image"] | float:
        """Σ of the row weights: how often a bias that every row receives is counted."""
        return 1.0 if self.weights is None else self.weights.sum(1)


@dataclass(frozen=True)
class Step:
    """Everything one block computed. `None` where the folded last block never needed it."""

    layer: int
    before: Float[Tensor, "image token width"]  # residual stream into the block
    normed: Float[Tensor, "image token width"]  # ln1 of it
    query: Float[Tensor, "image head token d"] | None
    key: Float[Tensor, "image head token d"] | None
    value: Float[Tensor, "image head token d"] | None
    attention: Float[Tensor, "image head token"] | None  # readout row of the attention, where it was computed
    mixed: Float[Tensor, "image *row head d"]  # z_h = Σ_token a v at the readout row
    mlp: Float[Tensor, "image *row width"]  # what the MLP wrote into the readout row
    after: Float[Tensor, "image token width"] | None  # residual stream out of the block
    readout: Float[Tensor, "image *row width"]  # its readout row


def linear(layer: Linear, x: Tensor) -> Tensor:
    """Apply a borrowed linear layer over the last axis."""
    return F.linear(x, layer.weight, layer.bias)


def norm(layer: Norm, x: Tensor) -> Tensor:
    """LayerNorm in the dtype of its own weights (half-precision models keep theirs in float32), back to x's."""
    y = F.layer_norm(x.to(layer.weight.dtype), layer.weight.shape, layer.weight, layer.bias, layer.eps)
    return y.to(x.dtype)


def activate(kind: Activation, x: Tensor) -> Tensor:
    """Apply the MLP's nonlinearity."""
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


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


def mlp(tower: TransformerWeights, block: Block, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Compute what the block's MLP writes, given the residual stream (its LayerNorm and LayerScale included)."""
    y = linear(block.down, activate(tower.activation, linear(block.up, norm(block.ln2, x))))
    return y if block.scale_mlp is None else y * block.scale_mlp


def project_out(block: Block, mixed: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Compute what the attention writes: out-projection of all heads' Σ a v side by side, and LayerScale."""
    y = linear(block.out, mixed)
    return y if block.scale_attention is None else y * block.scale_attention


def project_in(
    tower: TransformerWeights, block: Block, normed: Float[Tensor, "image token width"]
) -> tuple[
    Float[Tensor, "image head token d"], Float[Tensor, "image head token d"], Float[Tensor, "image head token d"]
]:
    """Query, key and value of every head, from ln1's output."""
    b, n, _ = normed.shape
    if block.qkv is not None:
        q, k, v = linear(block.qkv, normed).view(b, n, 3, tower.heads, tower.d).permute(2, 0, 3, 1, 4)
        return q, k, v
    q, k, v = (
        linear(p, normed).view(b, n, tower.heads, tower.d).transpose(1, 2)
        for p in (block.query, block.key, block.value)
    )
    return q, k, v


def embed_image(
    tower: TransformerWeights, pixels: Float[Tensor, "image 3 row col"]
) -> Float[Tensor, "image token width"]:
    """Preprocessed pixels to the residual stream into block 0. Rows and cols are multiples of the patch."""
    e = tower.embedding
    assert isinstance(e, PatchEmbedding)
    patches = F.conv2d(pixels.to(e.weight.dtype), e.weight, stride=e.weight.shape[2:])
    grid = (patches.shape[2], patches.shape[3])
    patches = patches.flatten(2).transpose(1, 2)
    cls = e.class_token.to(patches.dtype).expand(patches.shape[0], 1, -1)
    x = torch.cat([cls, patches], dim=1) + position(e, grid).to(patches.dtype)
    return x if tower.ln_pre is None else norm(tower.ln_pre, x)


def embed_inputs(tower: TransformerWeights, inputs: Tensor) -> Float[Tensor, "image token width"]:
    """Turn pixels or token ids, whichever the tower takes, into the residual stream into block 0."""
    return embed_image(tower, inputs) if tower.kind == "image" else embed_text(tower, inputs)


def embed_text(tower: TransformerWeights, ids: Int[Tensor, "text token"]) -> Float[Tensor, "text token width"]:
    """Token ids to the residual stream into block 0."""
    e = tower.embedding
    assert isinstance(e, WordEmbedding)
    x = F.embedding(ids, e.weight).to(tower.dtype) + e.position[: ids.shape[1]].to(tower.dtype)
    return x if tower.ln_pre is None else norm(tower.ln_pre, x)


def readout_of(tower: TransformerWeights, inputs: Tensor, tokens: int) -> Readout:
    """Find the readout rows of a batch: the class token, the mean of the patches, or the end-of-text token."""
    n = inputs.shape[0]
    if tower.pool == "mean":
        weights = torch.full((n, tokens), 1 / (tokens - 1), device=inputs.device)
        weights[:, 0] = 0
        return Readout(None, weights)
    if tower.pool == "argmax":
        index = inputs.argmax(1)
    elif tower.pool == "eos":
        index = (inputs == tower.eos).int().argmax(1)
    else:
        column = tokens - 1 if tower.pool == "last" else 0
        return Readout(torch.full((n,), column, device=inputs.device), None, column)
    return Readout(index, None)


def causal_mask(tower: TransformerWeights, readout: Readout, tokens: int) -> Bool[Tensor, "image token"] | None:
    """Tell which tokens the readout row may look at (True), or None when all."""
    if not tower.causal:
        return None
    assert readout.index is not None
    return torch.arange(tokens, device=readout.index.device) <= readout.index[:, None]


def walk(
    tower: TransformerWeights, x: Float[Tensor, "image token width"], readout: Readout, *, fold_last: bool = True
) -> Iterator[Step]:
    """Run the blocks and yield what each computed.

    Args:
        tower: the tower.
        x: residual stream into block 0, from `embed_image` or `embed_text`.
        readout: the rows the embedding is read from.
        fold_last: compute the last block for the readout row alone (needs `readout.index`).

    Yields:
        One `Step` per block. Keep what you need: each step's tensors are freed with it.
    """
    for layer, block in enumerate(tower.blocks):
        last = layer == tower.layers - 1
        fold = last and fold_last and readout.index is not None
        step = _folded_step(tower, block, layer, x, readout) if fold else _full_step(tower, block, layer, x, readout)
        if step.after is not None:
            x = step.after
        yield step
        del step  # while the next block runs, only who kept something of this one pays for it


def widened(x: Tensor) -> Tensor:
    """Take half precision, too coarse for a softmax over many tokens, to float32; double stays double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _full_step(tower: TransformerWeights, block: Block, layer: int, x: Tensor, readout: Readout) -> Step:
    normed = norm(block.ln1, x)
    q, k, v = project_in(tower, block, normed)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=tower.causal).transpose(1, 2).flatten(2)
    middle = add_linear(x, block.out, mixed, block.scale_attention)
    wrote = mlp(tower, block, middle)
    after = middle + wrote
    z = readout.rows(mixed).unflatten(-1, (tower.heads, tower.d))
    return Step(layer, x, normed, q, k, v, None, z, readout.rows(wrote), after, readout.rows(after))


def _folded_step(tower: TransformerWeights, block: Block, layer: int, x: Tensor, readout: Readout) -> Step:
    normed = norm(block.ln1, x)
    q = linear(block.query, readout.rows(normed)).unflatten(1, (tower.heads, tower.d))
    # q·(W_K x + b_K) = (W_Kᵀ q)·x + a constant that softmax removes: [head, width] instead of [token, width] keys.
    folded = torch.einsum("bhd,hdw->bhw", q * tower.d**-0.5, block.key.weight.unflatten(0, (tower.heads, tower.d)))
    scores = widened(folded @ normed.transpose(1, 2))
    mask = causal_mask(tower, readout, x.shape[1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    attention = scores.softmax(-1)
    mean = attention.to(normed.dtype) @ normed
    z = torch.einsum("bhw,hdw->bhd", mean, block.value.weight.unflatten(0, (tower.heads, tower.d)))
    if block.value.bias is not None:
        z = z + block.value.bias.view(tower.heads, tower.d)
    middle = readout.rows(x) + project_out(block, z.flatten(1))
    wrote = mlp(tower, block, middle)
    return Step(layer, x, normed, None, None, None, attention, z, wrote, None, middle + wrote)


def readout_attention(tower: TransformerWeights, step: Step, readout: Readout) -> Float[Tensor, "image head token"]:
    """Attention of the readout row(s) to every token, in float32 or better: one row, or the weighted mean over rows."""
    if step.attention is not None:
        return step.attention
    assert step.query is not None
    assert step.key is not None
    key = step.key.transpose(-1, -2)
    if readout.index is not None:
        query = readout.rows(step.query.transpose(1, 2))[:, :, None]  # [image, head, 1, d]
        scores = widened(query * tower.d**-0.5 @ key).squeeze(2)  # scaled first: half precision ends at 65,504
        mask = causal_mask(tower, readout, key.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1)
    assert readout.weights is not None
    total = widened(torch.zeros(key.shape[0], key.shape[1], key.shape[-1], device=key.device, dtype=key.dtype))
    for first in range(0, key.shape[-1], QUERY_BLOCK):
        block = slice(first, first + QUERY_BLOCK)
        attention = widened(step.query[:, :, block] * tower.d**-0.5 @ key).softmax(-1)
        total += torch.einsum("bq,bhqn->bhn", readout.weights[:, block].to(attention.dtype), attention)
    return total


def step_values(tower: TransformerWeights, step: Step) -> Float[Tensor, "image head token d"]:
    """Compute values of every token; the folded last block, which does without, has them computed here."""
    if step.value is not None:
        return step.value
    v = linear(tower.blocks[step.layer].value, step.normed)
    return v.unflatten(2, (tower.heads, tower.d)).transpose(1, 2)


def embed_readout(
    tower: TransformerWeights,
    stream: Float[Tensor, "image *row width"],
    after: Float[Tensor, "image token width"] | None,
    readout: Readout,
) -> Float[Tensor, "image embed"]:
    """Compute the joint-space embedding, in the host's own order of operations: pool, ln_post, projection.

    Args:
        tower: the tower.
        stream: the readout row of the last residual stream.
        after: all rows of it; needed only where every row is normalised before they are averaged.
        readout: which rows.
    """
    if readout.index is None and not tower.pool_before_norm:
        assert after is not None
        row = norm(tower.ln_post, after)[:, 1:].mean(1)
    else:
        row = norm(tower.ln_post, stream)
    y = row @ tower.projection.to(row.dtype)
    return y if tower.projection_bias is None else y + tower.projection_bias


def encode(tower: TransformerWeights, inputs: Tensor) -> Float[Tensor, "image embed"]:
    """Compute the embedding alone, in the tower's dtype (what the host's encode_image / encode_text returns)."""
    x = embed_inputs(tower, inputs)
    readout = readout_of(tower, inputs, x.shape[1])
    row, after = x[:, 0], None
    for step in walk(tower, x, readout):
        row, after = step.readout, step.after if readout.index is None else None
        del step
    return embed_readout(tower, row, after, readout)
