"""What one forward recorded at the readout row: little enough to keep for every layer, enough to split the embedding exactly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import Step, readout_attention, step_values, walk, weighted_attention
from clip_anatomy.towers.layers import TransformerWeights, norms_behind
from clip_anatomy.towers.operations import frozen, inverse_deviation, norm, pool_mlp
from clip_anatomy.towers.readout import (
    Readout,
    embed_readout,
    pool_attention,
    pool_tokens,
    readout_of,
    row_weights,
)


@dataclass(frozen=True)
class Trace:
    """The readout row of every intermediate of one forward, in float32.

    The final LayerNorm is frozen at its full-model statistics, so that it is linear: a part c of the residual stream becomes
    ((c − mean c) · scale ⊙ γ) P in the joint space (Gandelsman et al. 2024, §3.1 and appendix A.1). Where an attention pool reads
    the tokens there are several rows, one for each of its heads, side by side on the last axis.
    """

    input_embedding: Float[Tensor, "image written"]  # written = row · width
    mixed: Float[Tensor, "image layer head source"]  # z_h = Σ_token a v; source = row · d
    mlp: Float[Tensor, "image mlp written"]  # one of each layer; none in a CLIP-ResNet
    stream: Float[Tensor, "image written"]  # the readout row of the last residual stream
    scale: Float[
        Tensor, " image"
    ]  # 1/σ of the last norm; 1 where none follows the rows, or their weights already hold it
    mass: Float[Tensor, "image row"]  # Σ of row weights: how often a bias of every row counts
    embedding: Float[Tensor, "image embed"]  # the host's own formula
    pool_mlp: Float[
        Tensor, "image pool_mlp pooled"
    ]  # what the MLP behind an attention pool wrote; none where there is none
    spread: Float[Tensor, "image layer row"] | None = (
        None  # Σ of row weights · 1/σ of post-norm attention, or of the norms of the stream behind it, where blocks have some
    )
    betas: Float[Tensor, "image layer written"] | None = None  # what β of the norms of the stream wrote


@dataclass(frozen=True)
class LayerReading:
    """What the heads of one layer read for the readout row; attention and values are computed when they are asked for.

    Attributes:
        layer: which layer.
        tokens: what the layer was given.
        mixed: z_h = Σ_token shares · v at the readout row, or at each of the rows side by side.
        own: which token the readout row itself is; 0 where it is the first, or none of them.
        attention: how much the readout row (the weighted mean of rows) looks at each token, in float32.
        values: what each token offers.
        shares: how much of each token's value is in each row of `mixed`: attention, with what is frozen behind it.
    """

    layer: int
    tokens: Float[Tensor, "image token channel"]
    mixed: Float[Tensor, "image head source"]
    own: Int[Tensor, " image"] | int
    attention: Callable[[], Float[Tensor, "image head token"]]
    values: Callable[[], Float[Tensor, "image head token d"]]
    shares: Callable[[], Float[Tensor, "image head row token"]]


def read_step(
    tower: TransformerWeights,
    step: Step,
    readout: Readout,
    mixed: Float[Tensor, "image head source"] | None = None,
    weights: Float[Tensor, "image row token"] | None = None,
) -> LayerReading:
    """Compute what one block of a transformer read.

    Args:
        tower: the tower.
        step: what the block computed.
        readout: which rows are read.
        mixed: what the heads wrote into the rows, where that was known at the end only.
        weights: and the rows' weights, with what is frozen in the stream behind the layer.
    """

    def shares() -> Tensor:
        if readout.index is not None:
            attention = readout_attention(tower, step, readout)[:, :, None]
            return attention if step.gain is None else attention * step.gain[:, None, None, None]
        counts = weights if weights is not None else readout.weights
        assert counts is not None
        counts = counts if counts.dim() == 3 else counts[:, None]
        counts = counts if step.gain is None else counts * step.gain[:, None]
        return weighted_attention(tower, step, counts, readout.visible)

    return LayerReading(
        layer=step.layer,
        tokens=step.before,
        mixed=step.mixed if mixed is None else mixed,
        own=0 if readout.index is None else readout.index,
        attention=lambda: readout_attention(tower, step, readout),
        values=lambda: step_values(tower, step),
        shares=shares,
    )


def record(tower: TransformerWeights, inputs: Tensor, each: Callable[[LayerReading], None] | None = None) -> Trace:
    """Run one tower and keep what the exact split needs.

    Args:
        tower: image or text tower.
        inputs: pixels [image, 3, row, col] or token ids [text, token].
        each: called with what every layer read, for what must be contracted while its tensors live. Where the rows' weights are
            known at the end only, what the layers wrote into every token is held until then (a few numbers per layer, token and
            channel; never anything of tokens²), and it is called at the end.
    """
    with torch.no_grad():
        x = embed_inputs(tower, inputs)
        readout = readout_of(tower, inputs, x.shape[1])
        return _late(tower, x, readout, each) if readout.late else _known_rows(tower, x, readout, each)


def _known_rows(
    tower: TransformerWeights, x: Tensor, readout: Readout, each: Callable[[LayerReading], None] | None
) -> Trace:
    start = readout.rows(x).float()
    mixed: list[Tensor] = []
    wrote: list[Tensor] = []
    spread: list[Tensor] = []
    row = x[:, 0]
    for step in walk(tower, x, readout):
        mixed.append(step.mixed.float())
        wrote.append(step.mlp.float())
        if step.spread is not None:
            spread.append(step.spread.float()[:, None])
        if each is not None:
            each(read_step(tower, step, readout))
        row = step.readout
        del step
    stream = row.float()
    mass = torch.ones_like(stream[:, :1]) if readout.weights is None else readout.weights.sum(1, keepdim=True)
    embedding = embed_readout(tower, row, None, readout)
    return Trace(
        input_embedding=start,
        mixed=torch.stack(mixed, 1),
        mlp=torch.stack(wrote, 1),
        stream=stream,
        scale=(stream.var(-1, unbiased=False) + tower.ln_post.eps).rsqrt(),
        mass=mass.float(),
        embedding=embedding.float(),
        pool_mlp=stream[:, None, :][:, :0],
        spread=torch.stack(spread, 1) if spread else None,
    )


def _late(tower: TransformerWeights, x: Tensor, readout: Readout, each: Callable[[LayerReading], None] | None) -> Trace:
    """Hold what every layer wrote into every token, and sum it over the tokens when their weights are known."""
    held: list[_Held] = []
    after = x
    for step in walk(tower, x, readout):
        assert step.after is not None
        after = step.after
        # What ln1 gave is not read again where values are there: every tensor that is held costs fresh pages of memory.
        kept = None if each is None else replace(step, normed=step.before)
        held.append(_Held(step.mixed, step.mlp, step.spread, kept, step.passed))
        del step
    weights = row_weights(tower, after, readout).float()
    passing, start = _passing(held, weights)
    mixed: list[Tensor] = []
    wrote: list[Tensor] = []
    spread: list[Tensor] = []
    betas: list[Tensor] = []
    for layer, one in enumerate(_released(held)):
        attention, mlp = passing[layer]
        rows = attention @ one.mixed.flatten(2).float()  # [image, row, head · d]
        mixed.append(rows.unflatten(-1, (tower.heads, tower.d)).transpose(1, 2).flatten(2))
        wrote.append(_onwards(tower, layer, mlp @ one.mlp.float(), mlp=True).flatten(1))
        if tower.blocks[layer].in_stream:
            spread.append(attention.sum(-1))
            betas.append(_betas(tower, layer, spread[-1], mlp.sum(-1), weights.sum(-1)).flatten(1))
        elif one.spread is not None:
            spread.append((weights @ one.spread.float()[..., None])[..., 0])
        if each is not None and one.step is not None:
            each(read_step(tower, one.step, readout, mixed[-1], attention))
        del one
    embedding, added, scale = _behind(tower, after, readout)
    first = start @ x.float()
    if tower.blocks[0].in_stream:
        first = _onwards(tower, 0, frozen(tower.blocks[0].ln1, first))
    return Trace(
        input_embedding=first.flatten(1),
        mixed=torch.stack(mixed, 1),
        mlp=torch.stack(wrote, 1),
        stream=(weights @ after.float()).flatten(1),
        scale=scale,
        mass=weights.sum(-1),
        embedding=embedding,
        pool_mlp=added,
        spread=torch.stack(spread, 1) if spread else None,
        betas=torch.stack(betas, 1) if betas else None,
    )


def _passing(held: Sequence["_Held"], weights: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """How much each token of what every layer's attention and MLP write counts in the rows, and of the first stream.

    The rows' weights, times 1/σ of each norm of the stream that is still to come.
    """
    each: list[tuple[Tensor, Tensor]] = []
    for one in reversed(held):
        passed = [inverse.to(weights.dtype)[:, None] for inverse in one.passed]
        for inverse in passed[2:]:
            weights = weights * inverse
        mlp = weights
        attention = mlp * passed[1] if passed else mlp
        weights = attention * passed[0] if passed else mlp
        each.append((attention, mlp))
    return each[::-1], weights


def _onwards(tower: TransformerWeights, layer: int, x: Tensor, *, mlp: bool = False) -> Tensor:
    """Carry what stands in the stream behind a layer's attention, or behind its MLP, through the frozen norms to come."""
    for one in norms_behind(tower.blocks, layer, mlp=mlp):
        x = frozen(one, x)
    return x


def _betas(tower: TransformerWeights, layer: int, attention: Tensor, mlp: Tensor, last: Tensor) -> Tensor:
    """Compute what β of a layer's own norms of the stream write into the rows, given how often each counts there [image, row]."""
    block = tower.blocks[layer]
    wrote = _onwards(tower, layer, block.ln1.bias.float()) * attention[..., None]
    wrote = wrote + _onwards(tower, layer, block.ln2.bias.float(), mlp=True) * mlp[..., None]
    return wrote if block.norm_after is None else wrote + block.norm_after.bias.float() * last[..., None]


@dataclass(frozen=True)
class _Held:
    """What one block wrote into every token, and all of it where its attention is asked for."""

    mixed: Float[Tensor, "image token head d"]
    mlp: Float[Tensor, "image token width"]
    spread: Float[Tensor, "image token"] | None
    step: Step | None
    passed: tuple[Float[Tensor, "image token"], ...] = ()


def _released(held: list[_Held]) -> Iterator[_Held]:
    """Hand out what is held in order, and forget each."""
    held.reverse()
    while held:
        yield held.pop()


def _behind(tower: TransformerWeights, after: Tensor, readout: Readout) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embedding, what the pool's MLP wrote, and 1/σ of the norm behind the pool."""
    embedding, one = embed_readout(tower, after, after, readout).float(), torch.ones(len(after), device=after.device)
    pool = tower.pooling
    if pool is None:
        return embedding, after.float()[:, :0], one
    normed = norm(tower.ln_post, after)
    u = pool_tokens(pool, normed, pool_attention(pool, normed))
    added = pool_mlp(pool, u)
    pooled = u if added is None else u + added
    scale = one if pool.norm is None else inverse_deviation(pool.norm, pooled).float()
    return embedding, u.float()[:, None][:, :0] if added is None else added.float()[:, None], scale
