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
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.layers import Block, Norm, TransformerWeights
from clip_anatomy.towers.operations import (
    add_linear,
    before_attention,
    linear,
    mlp,
    norm_and_deviation,
    of_heads,
    project_in,
    project_out,
    project_query_and_keys,
    widened,
)
from clip_anatomy.towers.readout import Readout, embed_readout, keeping, readout_of, visible_to_row

QUERY_BLOCK = 64  # rows of attention held at once where the mean of all rows is needed


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
    mixed: Float[Tensor, "image *row head d"]  # z_h = Σ_token a v at the readout row, times `gain`
    mlp: Float[Tensor, "image *row width"]  # what the MLP wrote into the readout row
    after: Float[Tensor, "image token width"] | None  # residual stream out of the block
    readout: Float[Tensor, "image *row width"]  # its readout row
    gain: Float[Tensor, "image *token"] | None = (
        None  # 1/σ of norms behind Σ a v: at the readout row, or at every token
    )
    spread: Float[Tensor, "image *row"] | None = (
        None  # 1/σ of the norm over what the attention wrote, in post-norm blocks
    )
    passed: tuple[Float[Tensor, "image token"], ...] = ()  # 1/σ of the norms that the stream itself went through here


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


def _full_step(tower: TransformerWeights, block: Block, layer: int, x: Tensor, readout: Readout) -> Step:
    passed: list[Tensor] = []
    normed = _pass(block.ln1, x, passed) if block.in_stream else before_attention(block, x)
    q, k, v = project_in(tower, block, normed, readout.rotation)
    mask = _mask(tower, readout, x.shape[1])
    causal = tower.causal and mask is None
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)
    here = _readout_rows(x, readout) if block.fixed is not None else None
    if block.fixed is not None and here is not None:
        held = here & block.fixed.heads.repeat_interleave(tower.d)
        mixed = torch.where(held, block.fixed.mixed.to(mixed.dtype).flatten(), mixed)
    if block.norm_mixed is None and block.norm_written is None:
        onto = normed if block.in_stream else x
        middle, gain, spread = add_linear(onto, block.out, mixed, block.scale_attention), None, None
    else:
        wrote, gain, spread = _through_norms(block, mixed)
        middle = x + wrote
    if block.in_stream:
        middle = _pass(block.ln2, middle, passed)
    wrote = mlp(tower, block, x, middle)
    if block.fixed is not None and block.fixed.mlp is not None and here is not None:
        wrote = torch.where(here, block.fixed.mlp.to(wrote.dtype), wrote)
    after = middle + wrote
    if block.norm_after is not None:
        after = _pass(block.norm_after, after, passed)
    if gain is None or readout.index is None:
        z = readout.rows(mixed if gain is None else mixed * gain[..., None].to(mixed.dtype))
    else:
        gain = readout.rows(gain)
        z = readout.rows(mixed) * gain[:, None].to(mixed.dtype)
    return Step(
        layer=layer,
        before=x,
        normed=normed,
        query=q,
        key=k,
        value=v,
        attention=None,
        mixed=z.unflatten(-1, (tower.heads, tower.d)),
        mlp=readout.rows(wrote),
        after=after,
        readout=readout.rows(after),
        gain=gain,
        spread=None if spread is None else readout.rows(spread),
        passed=tuple(passed),
    )


def _pass(layer: Norm, x: Float[Tensor, "image token width"], passed: list[Tensor]) -> Tensor:
    """Normalise the stream itself, and keep the 1/σ that is frozen."""
    y, inverse = norm_and_deviation(layer, x)
    passed.append(inverse)
    return y


def _readout_rows(x: Float[Tensor, "image token width"], readout: Readout) -> Bool[Tensor, "image token 1"]:
    """Mark the readout row of each image: where writes can be held."""
    assert readout.index is not None
    return (torch.arange(x.shape[1], device=x.device) == readout.index[:, None])[..., None]


def _mask(tower: TransformerWeights, readout: Readout, tokens: int) -> Bool[Tensor, "image 1 query token"] | None:
    """Which token may look at which, where that is more than all or those before it."""
    if readout.visible is None:
        return None
    mask = readout.visible[:, None, None].expand(-1, 1, tokens, -1)
    return mask & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril() if tower.causal else mask


def _through_norms(block: Block, mixed: Float[Tensor, "*rows width"]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute what the attention writes where norms stand on its way, and what they are when frozen: all their 1/σ, and the last one's."""
    gain, spread = torch.ones_like(mixed[..., 0]), None
    if block.norm_mixed is not None:
        mixed, gain = norm_and_deviation(block.norm_mixed, mixed)
    y = linear(block.out, mixed)
    if block.norm_written is not None:
        y, spread = norm_and_deviation(block.norm_written, y)
        gain = gain * spread
    return y if block.scale_attention is None else y * block.scale_attention, gain, spread


def _folded_step(tower: TransformerWeights, block: Block, layer: int, x: Tensor, readout: Readout) -> Step:
    normed = before_attention(block, x)
    if block.norm_key is None and readout.rotation is None:
        q = linear(block.query, readout.rows(normed)).unflatten(1, (tower.heads, tower.d))
        # q·(W_K x + b_K) = (W_Kᵀ q)·x + a constant that softmax removes: [head, width] instead of [token, width] keys.
        key = widened(block.key.weight).unflatten(0, (tower.heads, tower.d))
        folded = torch.einsum("bhd,hdw->bhw", widened(q) * tower.d**-0.5, key)
        scores = folded @ widened(normed).transpose(1, 2)
    else:  # keys are normalised or turned one by one
        q, k = project_query_and_keys(tower, block, readout.rows(normed), normed, readout.rotation)
        scores = (widened(q) * tower.d**-0.5 @ widened(k).transpose(-1, -2))[:, :, 0]
    mask = visible_to_row(tower, readout, x.shape[1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    attention = scores.softmax(-1)
    mean = attention.to(normed.dtype) @ normed
    z = torch.einsum("bhw,hdw->bhd", mean, block.value.weight.unflatten(0, (tower.heads, tower.d)))
    if block.value.bias is not None:
        z = z + block.value.bias.view(tower.heads, tower.d)
    if block.fixed is not None:
        z = torch.where(block.fixed.heads[:, None], block.fixed.mixed.to(z.dtype), z)
    if block.norm_mixed is None and block.norm_written is None:
        wrote, gain, spread = project_out(block, z.flatten(1)), None, None
    else:
        wrote, gain, spread = _through_norms(block, z.flatten(1))
        z = z * gain[:, None, None].to(z.dtype)
    before = readout.rows(x)
    middle = before + wrote
    wrote = mlp(tower, block, before, middle)
    if block.fixed is not None and block.fixed.mlp is not None:
        wrote = block.fixed.mlp.to(wrote.dtype).expand_as(wrote)
    return Step(layer, x, normed, None, None, None, attention, z, wrote, None, middle + wrote, gain, spread)


def readout_attention(tower: TransformerWeights, step: Step, readout: Readout) -> Float[Tensor, "image head token"]:
    """Attention of the readout row(s) to every token, in float32 or better: one row, or the weighted mean over rows."""
    if step.attention is not None:
        return step.attention
    assert step.query is not None
    assert step.key is not None
    if readout.index is not None:
        key = step.key.transpose(-1, -2)
        query = readout.rows(step.query.transpose(1, 2))[:, :, None]  # [image, head, 1, d]
        scores = (widened(query) * tower.d**-0.5 @ widened(key)).squeeze(2)  # widened first, as fused attention does
        mask = visible_to_row(tower, readout, key.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1)
    assert readout.weights is not None
    return weighted_attention(tower, step, readout.weights[:, None], readout.visible)[:, :, 0]


def weighted_attention(
    tower: TransformerWeights,
    step: Step,
    weights: Float[Tensor, "image row token"],
    visible: Bool[Tensor, "image token"] | None = None,
) -> Float[Tensor, "image head row token"]:
    """Attention of several weighted sums of rows, in float32 or better: never more than a few query rows of it are held at once."""
    assert step.query is not None
    assert step.key is not None
    key = step.key.transpose(-1, -2)
    total = widened(key.new_zeros(*key.shape[:2], weights.shape[1], key.shape[-1]))
    for first in range(0, key.shape[-1], QUERY_BLOCK):
        block = slice(first, first + QUERY_BLOCK)
        scores = widened(step.query[:, :, block]) * tower.d**-0.5 @ widened(key)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        attention = scores.softmax(-1)
        total += weights[:, None, :, block].to(attention.dtype) @ attention
    return total


def step_values(tower: TransformerWeights, step: Step) -> Float[Tensor, "image head token d"]:
    """Compute values of every token; the folded last block, which does without, has them computed here."""
    if step.value is not None:
        return step.value
    return of_heads(tower, tower.blocks[step.layer].value, step.normed)


def encode(
    tower: TransformerWeights, inputs: Tensor, kept: Bool[Tensor, "image token"] | None = None
) -> Float[Tensor, "image embed"]:
    """Compute the embedding alone, in the tower's dtype (what the host's encode_image / encode_text returns).

    Args:
        tower: the tower.
        inputs: pixels or token ids.
        kept: which tokens there are at all; the others are dropped behind the embedding, so that positions stay.
    """
    x = embed_inputs(tower, inputs)
    readout = readout_of(tower, inputs, x.shape[1])
    readout = readout if kept is None else keeping(readout, kept)
    row, after = x[:, 0], None
    for step in walk(tower, x, readout):
        row, after = step.readout, step.after if readout.late else None
        del step
    return embed_readout(tower, row, after, readout)
