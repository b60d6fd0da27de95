"""What every head wrote of what it read from some source tokens, in the joint space."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.split.layernorm import centered_to_joint, shared_term, to_joint, write_heads, written_biases
from clip_anatomy.split.parts import Parts
from clip_anatomy.towers.protocol import KINDS
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
            f"source tokens and class-to-class attention are replaced in transformers only; this is {KINDS[tower.architecture]}. "
            "Type heads, for example 0.0"
        )
    every = tower.token_count(parts.source.inputs)
    wrote: list[Tensor] = []

    def write(reading: LayerReading) -> None:
        chosen = list(tokens.get(reading.layer, ()))
        shares = reading.shares()[..., chosen].float()
        value = reading.values()[:, :, chosen].float()
        mixed = torch.einsum("ihrn,ihnd->ihrd", shares, value).flatten(2)
        wrote.append(joint(tower, write_heads(tower, reading.layer, mixed)))

    joint = centered_to_joint if parts.convention == "centered" else to_joint
    with torch.no_grad():
        trace = tower.trace(parts.source.inputs, write)
        of_tokens = torch.stack(wrote, 1) * trace.scale[:, None, None, None]
        if parts.convention == "centered":
            return of_tokens
        biases = to_joint(tower, written_biases(tower, trace) * trace.scale[:, None, None])[:, :, None]
        shares = (biases + shared_term(tower, trace)[:, None, None]) / (tower.heads * every)
        many = torch.tensor([len(tokens.get(layer, ())) for layer in range(tower.layers)], device=of_tokens.device)
        return of_tokens + shares * many[None, :, None, None]
