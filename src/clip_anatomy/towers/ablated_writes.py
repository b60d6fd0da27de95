"""Parts of a tower whose writes into the readout row are held at constants: the tower runs as if they always had written that.

Only the readout row's own write is held. What a head writes into the other tokens goes on, and every later block sees what the row has
become: that is a re-run, not a direct effect (Dyslexify, ICLR 2026, ablates heads in this way).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, UnsupportedModel
from clip_anatomy.towers.layers import FixedWrites, TransformerWeights
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer, as_transformer

__all__ = ["check_rerun", "with_fixed", "without_fixed"]

Weights = TypeVar("Weights", bound=TransformerWeights)


def check_rerun(tower: Tower, instead: str = "effect='direct'") -> Transformer:
    """Return the tower where the writes of its parts into one row can be held; `instead` is what to type where they cannot.

    Raises:
        UnsupportedModel: it is no transformer, reads many rows, or a norm stands between what its heads compute and what they write.
    """
    transformer = as_transformer(tower)
    if not transformer.has_class_token:
        raise UnsupportedModel(
            f"this tower reads all patches, it has no row of its own whose writes could be held. Type {instead}"
        )
    if any(block.norm_mixed is not None or block.norm_written is not None for block in transformer.blocks):
        raise UnsupportedModel(
            f"a norm stands behind this tower's heads, so that what one writes depends on the others. Type {instead}"
        )
    return transformer


def with_fixed(
    tower: Weights,
    heads: Mapping[tuple[int, int], Float[Tensor, " d"]],
    mlps: Mapping[int, Float[Tensor, " width"]],
) -> Weights:
    """Return the tower with some writes into the readout row held. Weights are borrowed as before.

    Args:
        tower: one that reads one row.
        heads: (layer, head) → what it computes instead of Σ a v.
        mlps: layer → what its MLP writes instead.

    Raises:
        BadInput: values of another width.
    """
    blocks = list(tower.blocks)
    for layer in sorted({layer for layer, _ in heads} | set(mlps)):
        which = torch.zeros(tower.heads, dtype=torch.bool, device=tower.device)
        mixed = torch.zeros(tower.heads, tower.d, device=tower.device, dtype=tower.dtype)
        for head in range(tower.heads):
            if (layer, head) in heads:
                which[head], mixed[head] = True, _fitting(heads[layer, head], tower.d, f"head {layer}.{head}").to(mixed)
        mlp = _fitting(mlps[layer], tower.width, f"mlp {layer}").to(mixed) if layer in mlps else None
        blocks[layer] = replace(blocks[layer], fixed=FixedWrites(which, mixed, mlp))
    return replace(tower, blocks=tuple(blocks))


def without_fixed(tower: Weights) -> Weights:
    """Return the tower as it is by itself."""
    if all(block.fixed is None for block in tower.blocks):
        return tower
    return replace(tower, blocks=tuple(replace(block, fixed=None) for block in tower.blocks))


def _fitting(values: Tensor, width: int, name: str) -> Tensor:
    if tuple(values.shape) != (width,):
        raise BadInput(
            f"{name}: a mean of {list(values.shape)} numbers was given, [{width}] was expected. Type Means.of(clip, images)"
        )
    return values
