"""Attention alone: what the readout token looks at, whatever the text. The maps of all texts are the same."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.forward import Step, readout_attention, walk
from clip_anatomy.towers.operations import widened
from clip_anatomy.towers.readout import readout_of
from clip_anatomy.towers.transformer import Transformer


@dataclass(frozen=True)
class AttentionOptions:
    """Which attention.

    Attributes:
        layer: counted from the end if negative; the last by default.
    """

    layer: int = -1


@dataclass(frozen=True)
class RolloutOptions:
    """Where the product over layers begins.

    Attributes:
        start: first layer of it.
    """

    start: int = 0


def layer_of(tower: Transformer, layer: int, name: str) -> int:
    """Return a layer's number, counted from the front.

    Raises:
        BadSpec: the tower has no such layer.
    """
    if not -tower.layers <= layer < tower.layers:
        raise BadSpec(f"{name}={layer}: this model has layers 0 to {tower.layers - 1}. Type: {name}={tower.layers - 1}")
    return layer % tower.layers


def all_attention(step: Step) -> Float[Tensor, "image head query token"]:
    """Compute the whole attention of a block that ran for all rows."""
    assert step.query is not None
    assert step.key is not None
    scores = widened(step.query) @ widened(step.key).transpose(-1, -2) * step.query.shape[-1] ** -0.5
    return scores.softmax(-1).float()


def attention(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: AttentionOptions
) -> Float[Tensor, "image token text"]:
    """Average the readout token's attention to every patch over the heads."""
    tower = clip.image_tower
    layer = layer_of(tower, options.layer, "layer")
    x = embed_image(tower, pixels)
    readout = readout_of(tower, pixels, x.shape[1])
    for step in walk(tower, x, readout):
        if step.layer == layer:
            return _for_all(readout_attention(tower, step, readout).mean(1)[:, tower.own :], text)
    raise AssertionError("the layer was checked")


def rollout(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: RolloutOptions
) -> Float[Tensor, "image token text"]:
    """Multiply attention through the layers, half of each step staying where it is (Abnar & Zuidema 2020, §3)."""
    tower = clip.image_tower
    start = layer_of(tower, options.start, "start")
    x = embed_image(tower, pixels)
    readout = readout_of(tower, pixels, x.shape[1])
    rolled = torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)
    for step in walk(tower, x, readout, fold_last=False):
        if step.layer >= start:
            rolled = (all_attention(step).mean(1) @ rolled + rolled) / 2  # rows of both sum to 1
    return _for_all(readout.one_row(rolled)[:, tower.own :], text)


def _for_all(maps: Float[Tensor, "image token"], text: Float[Tensor, "text embed"]) -> Tensor:
    return maps.float()[..., None].expand(-1, -1, len(text))
