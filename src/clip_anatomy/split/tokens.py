"""Per-token parts, contracted with texts while the tower runs.

⟨text, part of (head, token)⟩ = scale · a[head, token] · v[head, token] · (W_O^h direction): texts are carried back to the d
numbers a head writes, tokens are never carried forward to the joint space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.split.layernorm import Convention, out_bias, pull_back, shared_term
from clip_anatomy.towers.forward import Readout, Step, causal_mask, linear
from clip_anatomy.towers.resnet import ImageTower, ResNet, run_resnet, transformer
from clip_anatomy.towers.trace import Trace, record, trace_pool
from clip_anatomy.towers.transformer import Tower, WordEmbedding

QUERY_BLOCK = 64  # rows of attention held at once where the mean of all rows is needed


@dataclass(frozen=True)
class TokenSource:
    """What is needed to run a tower again: the tower, of any kind, and its inputs (pixels or token ids)."""

    network: ImageTower
    inputs: Tensor

    @property
    def tower(self) -> Tower:
        """The tower where it is a transformer; raises UnsupportedModel for a CLIP-ResNet."""
        return transformer(self.network)


def token_count(tower: ImageTower, inputs: Tensor) -> int:
    """Number of tokens a batch has: patches and class token (or mean token), or the columns of the token ids."""
    if isinstance(tower, ResNet):
        row, col = tower.patch
    elif isinstance(tower.embedding, WordEmbedding):
        return inputs.shape[1]
    else:
        row, col = tower.embedding.weight.shape[2:]
    return (inputs.shape[2] // row) * (inputs.shape[3] // col) + 1


def readout_attention(tower: Tower, step: Step, readout: Readout) -> Float[Tensor, "image head token"]:
    """Attention of the readout row(s) to every token, in float32: one row, or the weighted mean over rows."""
    if step.attention is not None:
        return step.attention
    assert step.query is not None
    assert step.key is not None
    key = step.key.transpose(-1, -2)
    if readout.index is not None:
        query = readout.rows(step.query.transpose(1, 2))[:, :, None]  # [image, head, 1, d]
        scores = (query @ key).squeeze(2).float() * tower.d**-0.5
        mask = causal_mask(tower, readout, key.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1)
    assert readout.weights is not None
    total = torch.zeros(key.shape[0], key.shape[1], key.shape[-1], device=key.device)
    for first in range(0, key.shape[-1], QUERY_BLOCK):
        block = slice(first, first + QUERY_BLOCK)
        attention = ((step.query[:, :, block] @ key).float() * tower.d**-0.5).softmax(-1)
        total += torch.einsum("bq,bhqn->bhn", readout.weights[:, block], attention)
    return total


def values(tower: Tower, step: Step) -> Float[Tensor, "image head token d"]:
    """Values of every token; the folded last block computes them here."""
    if step.value is not None:
        return step.value
    v = linear(tower.blocks[step.layer].value, step.normed)
    return v.unflatten(2, (tower.heads, tower.d)).transpose(1, 2)


def head_directions(
    tower: ImageTower, layer: int, direction: Float[Tensor, "text width"]
) -> Float[Tensor, "head d text"]:
    """Directions of the residual stream carried back through W_O^h to what each head writes."""
    block = tower.blocks[layer]
    scaled = direction if block.scale_attention is None else direction * block.scale_attention.float()
    return (scaled @ block.out.weight.float()).unflatten(1, (tower.heads, tower.d)).permute(1, 2, 0)


def token_contributions(
    source: TokenSource,
    text: Float[Tensor, "text embed"],
    convention: Convention,
    *,
    only_readout: bool = False,
    each: Callable[[Step, Readout], None] | None = None,
) -> tuple[Float[Tensor, "image layer head token text"], Trace]:
    """Contribution of every (layer, head, token) to the cosine with each text, and the trace of the same forward.

    Args:
        source: tower and inputs.
        text: embeddings of the other tower, of any length.
        convention: how LayerNorm's mean and the biases are shared.
        only_readout: keep the readout token alone (class-to-class attention): token axis of length 1.
        each: called with every step too, for what else is wanted of the same forward (a CLIP-ResNet has none).

    Returns:
        Contributions and trace.
    """
    tower = source.network
    with torch.no_grad():
        unit = torch.nn.functional.normalize(text.float(), dim=-1).to(tower.device)
        direction = pull_back(tower, unit, convention)
        if isinstance(tower, ResNet):
            result, trace = _from_pool(tower, source.inputs, direction, only_readout=only_readout)
        else:
            result, trace = _from_blocks(tower, source.inputs, direction, only_readout=only_readout, each=each)
        result *= trace.scale.view(-1, 1, 1, 1, 1)
        if convention == "official":
            result += _official_shares(tower, trace, unit, direction, tokens=token_count(tower, source.inputs))
        result /= trace.embedding.norm(dim=-1).view(-1, 1, 1, 1, 1)
    return result, trace


def _from_blocks(
    tower: Tower,
    inputs: Tensor,
    direction: Float[Tensor, "text width"],
    *,
    only_readout: bool,
    each: Callable[[Step, Readout], None] | None,
) -> tuple[Float[Tensor, "image layer head token text"], Trace]:
    found: list[Tensor] = []

    def contract(step: Step, readout: Readout) -> None:
        if each is not None:
            each(step, readout)
        attention = readout_attention(tower, step, readout)
        value = values(tower, step)
        if only_readout:
            index = 0 if readout.index is None else readout.index
            rows = torch.arange(len(attention), device=attention.device)
            attention, value = attention[rows, :, index][:, :, None], value[rows, :, index][:, :, None]
        dots = value.float() @ head_directions(tower, step.layer, direction)
        found.append(dots.mul_(attention[..., None]))

    trace, _ = record(tower, inputs, contract)
    return torch.stack(found, 1), trace


def _from_pool(
    tower: ResNet, inputs: Tensor, direction: Float[Tensor, "text width"], *, only_readout: bool
) -> tuple[Float[Tensor, "image 1 head token text"], Trace]:
    """The same for the attention pool of a CLIP-ResNet; token 0 is the mean token, which is the one that asks."""
    pooled = run_resnet(tower, inputs)
    tokens, attention = (
        (pooled.tokens[:, :1], pooled.attention[..., :1]) if only_readout else (pooled.tokens, pooled.attention)
    )
    value = linear(tower.pool.value, tokens).unflatten(2, (tower.heads, tower.d)).transpose(1, 2).float()
    dots = (value @ head_directions(tower, 0, direction)).mul_(attention[..., None])
    return dots[:, None], trace_pool(pooled)


def _official_shares(
    tower: ImageTower, trace: Trace, unit: Tensor, direction: Tensor, *, tokens: int
) -> Float[Tensor, "image layer 1 1 text"]:
    """b_O, the mean and β, spread over heads and tokens."""
    biases = torch.stack([out_bias(block, tower.width, trace.input_embedding.device) for block in tower.blocks])
    written = (biases @ direction.T)[None] * (trace.scale * trace.mass)[:, None, None]  # [image, layer, text]
    shared = (shared_term(tower, trace) @ unit.T)[:, None]
    return ((written + shared) / (tower.heads * tokens))[:, :, None, None]
