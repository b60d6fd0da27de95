"""What every head wrote of what it read from some source tokens, in the joint space."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.split.layernorm import centre, out_bias, shared_term, to_joint, write_heads
from clip_anatomy.split.parts import Parts
from clip_anatomy.towers.trace import LayerReading

__all__ = ["token_parts"]


def token_parts(parts: Parts, tokens: Mapping[int, Sequence[int]]) -> Float[Tensor, "image layer head embed"]:
    """Tell what every head wrote of what it read from some tokens; with all tokens it is `parts.heads`.

    Costs one forward. Not divided by ‖embedding‖, like all of `Parts`.

    Args:
        parts: the split of some images.
        tokens: layer → tokens, 0 the class token; layers that are not named stay zero.
    """
    tower = parts.source.network
    if tower.architecture != "transformer":
        raise UnsupportedModel(
            "source tokens and class-to-class attention are replaced in transformers only; this is a ResNet. Type heads, for example 0.3"
        )
    every = tower.token_count(parts.source.inputs)
    wrote: list[Tensor] = []

    def write(reading: LayerReading) -> None:
        chosen = list(tokens.get(reading.layer, ()))
        attention = reading.attention()[:, :, chosen].float()
        value = reading.values()[:, :, chosen].float()
        wrote.append(write_heads(tower, tower.blocks[reading.layer], torch.einsum("ihn,ihnd->ihd", attention, value)))

    with torch.no_grad():
        trace = tower.trace(parts.source.inputs, write)
        scale = trace.scale[:, None, None, None]
        found = torch.stack(wrote, 1)
        if parts.convention == "centered":
            return to_joint(tower, centre(found) * scale)
        biases = torch.stack([out_bias(block, tower.width, found.device) for block in tower.blocks])
        spread = biases[None, :, None] * trace.mass[:, None, None, None] * scale
        shares = (to_joint(tower, spread) + shared_term(tower, trace)[:, None, None]) / (tower.heads * every)
        many = torch.tensor([len(tokens.get(layer, ())) for layer in range(tower.layers)], device=found.device)
        return to_joint(tower, found * scale) + shares * many[None, :, None, None]
