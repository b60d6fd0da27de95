"""Maps from the neuron–head pairs of a CLIP-ResNet that write a text (Bu & Gandelsman, NeurIPS 2025, §5).

For a direction t the pairs P whose own direction D[h, n] lies nearest to it (`split/neuron_heads`) are chosen, from weights alone:

    map[place] = mean over (h, n) in P of  f[place, n] · cos(c[h, place], t)

f is the last stage's map: where the neuron fires. c[h, place] is what head h reads from the place, its share of b_c included as in
the released code: whether the head says so there. The product is cheap: Σ_h cos[h, place] · (f · which neurons of h are chosen).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.contrast import NEUTRAL, NOTHING, Against, Contrast, contrast_of
from clip_anatomy.split.neuron_heads import direction_lengths, written_by_pairs
from clip_anatomy.towers.operations import linear
from clip_anatomy.towers.resnet import ResNet, as_resnet, features, pool_tokens, run_pool

PUBLISHED = 20_000 / 147_456  # of RN50x16's pairs


@dataclass(frozen=True)
class NeuronHeadOptions:
    """Which pairs draw a text: the nearest ones, as a share of all. The published share is 20,000 of RN50x16's 147,456."""

    ALONE: ClassVar[str] = NOTHING
    share: int | float = PUBLISHED
    against: Against | Contrast = field(default=NEUTRAL, compare=False)

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.share <= 1:
            raise BadSpec(f"share={self.share!r} is not above 0 and at most 1. Type: share=0.1")


def neuron_heads_map(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: NeuronHeadOptions
) -> Float[Tensor, "image token text"]:
    """Draw each text with the neuron–head pairs whose direction is nearest to it."""
    resnet = as_resnet(clip.vision)
    direction = contrast_of(clip, options.against).subtracted_from(F.normalize(text.float(), dim=-1))
    direction = F.normalize(direction, dim=-1)
    with torch.no_grad():
        return pair_maps(resnet, pixels, direction, nearest_pairs(resnet, direction, options.share))


def nearest_pairs(
    resnet: ResNet, direction: Float[Tensor, "text embed"], share: float
) -> Bool[Tensor, "text head neuron"]:
    """Choose for each direction the share of all pairs whose own direction has the largest cosine with it."""
    cosine = (written_by_pairs(resnet, direction) / direction_lengths(resnet)[..., None].clamp_min(1e-30)).flatten(0, 1)
    chosen = torch.zeros_like(cosine, dtype=torch.bool)
    chosen.scatter_(0, cosine.topk(max(1, round(share * len(cosine))), dim=0).indices, True)
    return chosen.T.unflatten(1, (resnet.heads, -1))


def pair_maps(
    resnet: ResNet,
    pixels: Float[Tensor, "image 3 row col"],
    direction: Float[Tensor, "text embed"],
    chosen: Bool[Tensor, "text head neuron"],
) -> Float[Tensor, "image token text"]:
    """Multiply where the chosen neurons fire with what their heads read there, mean over the pairs; head by head."""
    stage = features(resnet, pixels)
    fires = stage.float().flatten(2).transpose(1, 2)
    pooled = run_pool(resnet, pool_tokens(resnet, stage))
    value = linear(resnet.pool.value, pooled.tokens[:, 1:]).float().unflatten(2, (resnet.heads, resnet.d))
    bias = 0 if resnet.pool.out.bias is None else resnet.pool.out.bias.float()
    share = bias / (pooled.tokens.shape[1] * resnet.heads)
    total = fires.new_zeros(*fires.shape[:2], len(direction))
    for head in range(resnet.heads):
        out = resnet.pool.out.weight[:, head * resnet.d : (head + 1) * resnet.d].float()
        read = (value[:, :, head] * pooled.attention[:, head, 1:, None]) @ out.T + share
        total += (F.normalize(read, dim=-1) @ direction.T) * (fires @ chosen[:, head].float().T)
    return total / chosen.flatten(1).sum(1)
