"""ResCLIP: the last block's attention mixed with that of middle blocks, and bent toward its own first answer (Yang et al., CVPR 2025).

    A = τ_m ((1 − λ_m) softmax(k kᵀ/√d + G) + λ_m · mean attention of blocks 6 to 9 of 12)      G: NACLIP's Gaussian
    feedback: each patch's likeliest text (the first, below a probability) ─▶ M: 1 for patches with the same one, times exp(−steps/most
              steps) where the line between them leaves it; smoothed along the rows, rows sum to 1, then the greatest entry 1
    the same once more with the scores τ_f ((1 − λ_f) k kᵀ/√d + λ_f M) in place of k kᵀ/√d          no residual, no MLP

The release also refines the first answer by ten steps of PAMR (where its tables say “without”, too), and its lines between near patches
end early, since they are walked in steps of the longest one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_attention import gaussian
from clip_anatomy.maps.dense_steps import attention_of, block_at, dense_cosines, keys_values, same_answer, streams
from clip_anatomy.towers.forward import Step
from clip_anatomy.towers.operations import project_out


@dataclass(frozen=True)
class ResclipOptions:
    """Which ResCLIP; the release sets λ, τ_f and the probability for each data set (`bench --like resclip`).

    Attributes:
        first: of the middle blocks, as a share of the depth; `last` likewise.
        middle: λ_m, and `middle_scale` τ_m.
        feedback: λ_f, 0 for no second pass; and `feedback_scale` τ_f.
        least: probability from which a patch has a text, under `logit_scale`.
        neighbours: standard deviation of the Gaussian in patches.
    """

    first: float = 6 / 12
    last: float = 9 / 12
    middle: float = 0.4
    middle_scale: float = 2.0
    feedback: float = 0.7
    feedback_scale: float = 1.8
    least: float = 0.25
    logit_scale: float = 40.0
    neighbours: float = 5.0


def resclip(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: ResclipOptions
) -> Float[Tensor, "image token text"]:
    """Compare every patch's token with every text by cosine, the second time with the first answer in mind."""
    if options.neighbours <= 0:
        raise BadSpec(
            f"neighbours={options.neighbours}: a number above 0 was expected. Type: neighbours={ResclipOptions.neighbours}"
        )
    tower, grid, attentions = clip.image_tower, patch_grid(pixels.shape, clip.patch), list[Tensor]()
    first, last = block_at(tower, options.first), block_at(tower, options.last)

    def middle(step: Step) -> None:
        if first <= step.layer + 1 <= last and step.query is not None and step.key is not None:
            attentions.append(attention_of(step.query, step.key))

    with torch.no_grad():
        _, step, readout = streams(tower, pixels, each=middle)
        block = tower.blocks[-1]
        k, v = keys_values(tower, block, step.before, readout)
        mean = sum(attentions[1:], attentions[0]).to(v.dtype) @ v / len(attentions) if attentions else 0 * v
        near = gaussian(grid, options.neighbours, tower.own).to(k)

        def answered(bias: Tensor, scale: float) -> Tensor:
            mixed = F.scaled_dot_product_attention(k, k, v, attn_mask=bias, scale=scale * tower.d**-0.5)
            mixed = options.middle_scale * ((1 - options.middle) * mixed + options.middle * mean)
            return dense_cosines(tower, project_out(block, mixed.transpose(1, 2).flatten(2))[:, tower.own :], text)

        first_answer = answered(near, 1.0)
        if not options.feedback:
            return first_answer
        chance, which = (first_answer * options.logit_scale).softmax(-1).max(-1)
        same = same_answer(which.masked_fill(chance < options.least, 0), grid, options.neighbours)
        same = F.pad(same / same.amax((1, 2), keepdim=True), (tower.own, 0, tower.own, 0))[:, None].to(k)
        scale = options.feedback_scale
        return answered(near + scale * options.feedback * same, scale * (1 - options.feedback))
