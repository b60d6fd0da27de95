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
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import LayerReading, Trace
from clip_anatomy.towers.transformer import Transformer, as_transformer


@dataclass(frozen=True)
class TokenSource:
    """What is needed to run a tower again: the tower, of any kind, and its inputs (pixels or token ids)."""

    network: Tower
    inputs: Tensor

    @property
    def tower(self) -> Transformer:
        """The tower where it is a transformer; raises UnsupportedModel for a CLIP-ResNet."""
        return as_transformer(self.network)


def head_directions(tower: Tower, layer: int, direction: Float[Tensor, "text width"]) -> Float[Tensor, "head d text"]:
    """Carry directions of the residual stream back through W_O^h to what each head writes."""
    block = tower.blocks[layer]
    scaled = direction if block.scale_attention is None else direction * block.scale_attention.float()
    return (scaled @ block.out.weight.float()).unflatten(1, (tower.heads, tower.d)).permute(1, 2, 0)


def token_contributions(
    source: TokenSource,
    text: Float[Tensor, "text embed"],
    convention: Convention,
    *,
    only_readout: bool = False,
    each: Callable[[LayerReading], None] | None = None,
) -> tuple[Float[Tensor, "image layer head token text"], Trace]:
    """Contribution of every (layer, head, token) to the cosine with each text, and the trace of the same forward.

    Args:
        source: tower and inputs.
        text: embeddings of the other tower, of any length.
        convention: how LayerNorm's mean and the biases are shared.
        only_readout: keep the readout token alone (class-to-class attention): token axis of length 1.
        each: called with what every layer read too, for what else is wanted of the same forward.

    Returns:
        Contributions and trace.
    """
    tower = source.network
    with torch.no_grad():
        unit = torch.nn.functional.normalize(text.float(), dim=-1).to(tower.device)
        direction = pull_back(tower, unit, convention)
        layers: list[Tensor] = []

        def contract(reading: LayerReading) -> None:
            if each is not None:
                each(reading)
            attention, value = reading.attention(), reading.values()
            if only_readout:
                rows = torch.arange(len(attention), device=attention.device)
                attention = attention[rows, :, reading.own][:, :, None]
                value = value[rows, :, reading.own][:, :, None]
            dots = value.float() @ head_directions(tower, reading.layer, direction)
            layers.append(dots.mul_(attention[..., None]))

        trace = tower.trace(source.inputs, contract)
        result = torch.stack(layers, 1)
        result *= trace.scale.view(-1, 1, 1, 1, 1)
        if convention == "official":
            result += _official_shares(tower, trace, unit, direction, tokens=tower.token_count(source.inputs))
        result /= trace.embedding.norm(dim=-1).view(-1, 1, 1, 1, 1)
    return result, trace


def _official_shares(
    tower: Tower, trace: Trace, unit: Tensor, direction: Tensor, *, tokens: int
) -> Float[Tensor, "image layer 1 1 text"]:
    """b_O, the mean and β, spread over heads and tokens."""
    biases = torch.stack([out_bias(block, tower.width, trace.input_embedding.device) for block in tower.blocks])
    written = (biases @ direction.T)[None] * (trace.scale * trace.mass)[:, None, None]  # [image, layer, text]
    shared = (shared_term(tower, trace) @ unit.T)[:, None]
    return ((written + shared) / (tower.heads * tokens))[:, :, None, None]
