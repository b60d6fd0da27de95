"""From the last residual stream to the joint space: which rows are read, and how one vector is made of them.

One row (class token, end-of-text token), the mean of the patches, or attention pooling: one learned query, whose attention A and the
norm in front of it, 1/σ_n of each token, are frozen. Then the embedding is a sum over the tokens' streams x_n again,

    pooled = Σ_row [ Σ_n A[row, n] / σ_n · ((x_n − mean) ⊙ γ) + β ] W_V^row W_O^row + biases  (+ the pool's MLP, a part of its own)

with one row of weights for each head of the pool. So every head of every layer has its share, not only those of the pool.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip_anatomy.towers.layers import AttentionPooling, TransformerWeights, WordEmbedding
from clip_anatomy.towers.operations import inverse_deviation, linear, norm, pool_mlp, widened
from clip_anatomy.towers.positions import rotations


@dataclass(frozen=True)
class Readout:
    """Which rows of the residual stream the embedding is read from: one row per image, a weighted sum of rows, or all of them.

    Attributes:
        index: the row of each image.
        weights: of the sum; where they are known at the end only (`late`), what they would be if all tokens counted the same.
        column: the index, where it is the same for every image: a slice is cheaper than a gather.
        late: every row is handed on, for who learns their weights at the end.
        visible: which tokens can be looked at at all; None for every one.
        rotation: sine and cosine of every place's turns, where the tower has rotary positions.
    """

    index: Int[Tensor, " image"] | None = None
    weights: Float[Tensor, "image token"] | None = None
    column: int | None = None
    late: bool = False
    visible: Bool[Tensor, "image token"] | None = None
    rotation: Float[Tensor, "2 place d"] | None = None

    def rows(self, x: Float[Tensor, "image token *rest"]) -> Float[Tensor, "image *rest_or_all"]:
        """Read the rows: [image, token, …] → [image, …], a tensor of its own (a view would keep all tokens alive)."""
        return x if self.late else self.one_row(x)

    def one_row(self, x: Float[Tensor, "image token *rest"]) -> Float[Tensor, "image *rest"]:
        """Read one row for each image, also where all are handed on: then their plain mean."""
        if self.column is not None:
            return x[:, self.column].clone()
        if self.index is not None:
            return x[torch.arange(x.shape[0], device=x.device), self.index]
        assert self.weights is not None
        return torch.einsum("bn,bn...->b...", self.weights.to(x.dtype), x)


def readout_of(tower: TransformerWeights, inputs: Tensor, tokens: int) -> Readout:
    """Find the readout rows of a batch: the class token, the patches, or the end-of-text token; and what can be looked at."""
    n, rotation, visible = inputs.shape[0], None, None
    if tower.rotary is not None:
        grid = (inputs.shape[2] // tower.patch[0], inputs.shape[3] // tower.patch[1])
        rotation = rotations(tower.rotary, grid)
    if isinstance(tower.embedding, WordEmbedding):
        visible = _not_padding(tower.embedding, inputs, tokens)
    if tower.pool in ("mean", "attention"):
        first = tower.own if tower.pool == "mean" else 0
        weights = torch.full((n, tokens), 1 / (tokens - first), device=inputs.device)
        weights[:, :first] = 0
        if visible is not None and tower.pool == "mean":
            counted = visible.to(torch.promote_types(tower.dtype, torch.float32))
            weights = counted / counted.sum(1, keepdim=True)
        return Readout(None, weights, None, tower.weighs_late, visible, rotation)
    if tower.pool == "argmax":
        index = inputs.argmax(1)
    elif tower.pool == "eos":
        index = (inputs == tower.eos).int().argmax(1)
    else:
        column = tokens - 1 if tower.pool == "last" else 0
        index = torch.full((n,), column, device=inputs.device)
        if tower.weighs_late:  # one row of many that are normalised on
            weights = F.one_hot(index, tokens).to(torch.promote_types(tower.dtype, torch.float32))
            return Readout(None, weights, None, True, visible, rotation)
        return Readout(index, None, column, False, visible, rotation)
    return Readout(index, None, None, False, visible, rotation)


def keeping(readout: Readout, kept: Bool[Tensor, "image token"]) -> Readout:
    """Take tokens away from a forward: nothing looks at them, and no mean counts them. Positions stay as they were."""
    visible = kept if readout.visible is None else kept & readout.visible
    if readout.weights is None:
        return replace(readout, visible=visible)
    weights = readout.weights * kept
    return replace(readout, visible=visible, weights=weights / weights.sum(1, keepdim=True))


def _not_padding(embedding: WordEmbedding, ids: Tensor, tokens: int) -> Bool[Tensor, "text token"] | None:
    if embedding.pad is None:
        return None
    not_padding = ids != embedding.pad
    return F.pad(not_padding, (embedding.pad_shift, tokens - ids.shape[1] - embedding.pad_shift), value=True)


def visible_to_row(tower: TransformerWeights, readout: Readout, tokens: int) -> Bool[Tensor, "image token"] | None:
    """Which tokens the readout row may look at (True), or None when all."""
    if not tower.causal:
        return readout.visible
    assert readout.index is not None
    before = torch.arange(tokens, device=readout.index.device) <= readout.index[:, None]
    return before if readout.visible is None else before & readout.visible


def pool_query(pool: AttentionPooling) -> Float[Tensor, "row d"]:
    """Compute what the pool's heads ask, the same for every image."""
    latent = pool.latent if pool.ln_latent is None else norm(pool.ln_latent, pool.latent)
    query = latent if pool.query is None else linear(pool.query, latent)
    query = query.unflatten(0, (pool.heads, pool.d))
    return query if pool.norm_query is None else norm(pool.norm_query, query)


def pool_attention(
    pool: AttentionPooling,
    normed: Float[Tensor, "image token width"],
    visible: Bool[Tensor, "image token"] | None = None,
) -> Float[Tensor, "image row token"]:
    """How much each head of the pool looks at each token it can see, in float32 or better.

    Keys are folded into the query (W_Kᵀ q) where nothing stands between them, as in the last block of one readout row.
    """
    query = widened(pool_query(pool)) * pool.d**-0.5
    if pool.norm_key is None:
        folded = torch.einsum("rd,rdw->rw", query, widened(pool.key.weight).unflatten(0, (pool.heads, pool.d)))
        scores = folded @ widened(normed).transpose(1, 2)
    else:
        key = norm(pool.norm_key, linear(pool.key, normed).unflatten(-1, (pool.heads, pool.d)))
        scores = torch.einsum("rd,bnrd->brn", query, widened(key))
    return (scores if visible is None else scores.masked_fill(~visible[:, None], float("-inf"))).softmax(-1)


def pool_tokens(
    pool: AttentionPooling, normed: Float[Tensor, "image token width"], attention: Float[Tensor, "image row token"]
) -> Float[Tensor, "image pooled"]:
    """u = out(Σ_token a v): values are folded out of the sum."""
    mean = attention.to(normed.dtype) @ normed  # [image, row, width]
    mixed = torch.einsum("brw,rdw->brd", mean, pool.value.weight.unflatten(0, (pool.heads, pool.d))).flatten(1)
    return linear(pool.out, mixed if pool.value.bias is None else mixed + pool.value.bias)


def row_weights(
    tower: TransformerWeights, after: Float[Tensor, "image token width"], readout: Readout
) -> Float[Tensor, "image row token"]:
    """How much each token of the last stream counts in each row, the frozen 1/σ of its normalisation included."""
    if tower.pooling is not None:
        counts = pool_attention(tower.pooling, norm(tower.ln_post, after))
    else:
        assert readout.weights is not None
        counts = widened(readout.weights[:, None])
    return counts * inverse_deviation(tower.ln_post, after)[:, None]


def leave(tower: TransformerWeights, row: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows embed"]:
    """Return the projection into the joint space."""
    y = row if tower.projection is None else row @ tower.projection.to(row.dtype)
    return y if tower.projection_bias is None else y + tower.projection_bias.to(y.dtype)


def embed_readout(
    tower: TransformerWeights,
    stream: Float[Tensor, "image *row width"],
    after: Float[Tensor, "image token width"] | None,
    readout: Readout,
) -> Float[Tensor, "image embed"]:
    """Return the joint-space embedding, in the host's own order of operations: pool, ln_post, projection.

    Args:
        tower: the tower.
        stream: the readout row of the last residual stream.
        after: all rows of it; needed only where every row is normalised before they are summed.
        readout: which rows.
    """
    if not readout.late:
        return leave(tower, norm(tower.ln_post, stream))
    assert after is not None
    normed = norm(tower.ln_post, after)
    if tower.pooling is not None:
        return behind_pool(
            tower, pool_tokens(tower.pooling, normed, pool_attention(tower.pooling, normed, readout.visible))
        )
    if readout.weights is None or (readout.visible is None and tower.pool == "mean"):
        return leave(tower, normed[:, tower.own :].mean(1))
    return leave(tower, torch.einsum("bn,bnw->bw", readout.weights.to(normed.dtype), normed))


def behind_pool(tower: TransformerWeights, u: Float[Tensor, "*rows pooled"]) -> Float[Tensor, "*rows embed"]:
    """Compute what becomes of the vector that an attention pool wrote: its MLP, its norm, the projection."""
    assert tower.pooling is not None
    added = pool_mlp(tower.pooling, u)
    pooled = u if added is None else u + added
    return leave(tower, pooled if tower.pooling.norm is None else norm(tower.pooling.norm, pooled))


def embed_each(tower: TransformerWeights, tokens: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows embed"]:
    """Every token of the last stream in the joint space, as if it alone were read."""
    normed = norm(tower.ln_post, tokens)
    if tower.pooling is None:
        return leave(tower, normed)
    return behind_pool(tower, linear(tower.pooling.out, linear(tower.pooling.value, normed)))
