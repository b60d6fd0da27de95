"""A tower whose embedding goes through one more linear map: vision transformers without texts, read in the space of a CLIP.

    embedding = parts · P,  y = W embedding + b      ─▶      y = parts · (P Wᵀ) + b

The map takes the place of the projection, so every part is read through it, exactly.
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, UnsupportedModel
from clip_anatomy.towers.host_tower import HostTower
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import KINDS, Transformer


@runtime_checkable
class LinearMap(Protocol):
    """y = W x + b, as `align` fits one."""

    @property
    def weight(self) -> Tensor:
        """W [channel, embed]."""
        ...

    @property
    def intercept(self) -> Tensor:
        """b [channel]."""
        ...


def mapped(tower: Tower, weight: Float[Tensor, "channel embed"], bias: Float[Tensor, " channel"]) -> Tower:
    """Put a linear map behind a tower.

    Args:
        tower: whose own projection, if it has one, is joined with the map.
        weight: W.
        bias: b.

    Raises:
        UnsupportedModel: a tower without a projection of its own kind: a CLIP-ResNet, or one that is not split.
        BadInput: a map of other embeddings, or numbers that are not finite.
    """
    if not isinstance(tower, Transformer | HostTower) or tower.architecture == "whole":
        raise UnsupportedModel(
            f"this {tower.kind} tower is {KINDS[tower.architecture]}; a map can be read through only where a projection ends the tower. "
            "Type a vision transformer"
        )
    if weight.dim() != 2 or weight.shape[1] != tower.embed or bias.shape != weight.shape[:1]:
        raise BadInput(
            f"the map is {list(weight.shape)} with {list(bias.shape)} constants; [channel, {tower.embed}] and [channel] were expected, from "
            "embeddings of this model. Type align(STORE_OF_THIS_MODEL, STORE_OF_A_CLIP)"
        )
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise BadInput("the map holds numbers that are not finite. Fit it again")
    wide = weight.to(tower.device, torch.float64)
    own = torch.eye(tower.embed, dtype=torch.float64, device=tower.device)
    projection = own if tower.projection is None else tower.projection.double()
    constant = bias.to(wide) if tower.projection_bias is None else bias.to(wide) + wide @ tower.projection_bias.double()
    made = {"projection": (projection @ wide.T).to(tower.dtype), "projection_bias": constant.to(tower.dtype)}
    if isinstance(tower, Transformer):
        return replace(tower, **made)
    return replace(tower, embed=len(wide), **made)
