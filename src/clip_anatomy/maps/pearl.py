"""PEARL: keys turned onto queries before they are compared, head by head in the last block (CVPR 2026).

    w_i = ‖q_i‖ over the patches (the class token counts nothing);  q_c, k_c = q, k minus their means weighed by w
    R = polar factor of k_cᵀ q_c, by five Newton–Schulz steps from k_cᵀ q_c / its Frobenius norm
    attention = softmax( q (k R)ᵀ/√d + 0.08 · k_c k_cᵀ/√d )                no residual, no MLP

Then the scores are spread over the picture, see `laplacian`: here over the patches, in the release over about 80 × 80 cells.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_steps import attended, dense_cosines, read_block, streams
from clip_anatomy.maps.laplacian import class_prior, grey_levels, spread_along
from clip_anatomy.towers.operations import widened


@dataclass(frozen=True)
class PearlOptions:
    """Which PEARL.

    Attributes:
        keys: how much of the centred keys' own products is added to the scores.
        steps: of Newton–Schulz; five are not yet the polar factor itself.
        prior: which class prior spreads the scores, see `laplacian`: "released" (inert), "full", or "none" for scores as they are.
        logit_scale: of the scores that are spread.
    """

    keys: float = 0.08
    steps: int = 5
    prior: str = "released"
    logit_scale: float = 40.0


def polar(matrix: Float[Tensor, "*image d d"], steps: int) -> Float[Tensor, "*image d d"]:
    """Approach the orthogonal matrix nearest to each: X ← 1.5 X − 0.5 X Xᵀ X.

    Example:
        >>> polar(torch.tensor([[2.0, 0.0], [0.0, -3.0]]), 20).round()
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    x = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        x = 1.5 * x - 0.5 * x @ x.transpose(-1, -2) @ x
    return x


def pearl(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: PearlOptions
) -> Float[Tensor, "image token text"]:
    """Compare every patch's token with every text by cosine."""
    if options.logit_scale <= 0:
        raise BadSpec(
            f"logit_scale={options.logit_scale}: a number above 0 was expected. Type: logit_scale={PearlOptions.logit_scale}"
        )
    tower = clip.image_tower
    with torch.no_grad():
        _, step, readout = streams(tower, pixels)
        block = tower.blocks[-1]
        q, k, v = read_block(tower, block, step.before, readout)
        q, k = widened(q), widened(k)
        weight = q.norm(dim=-1, keepdim=True)
        weight[:, :, : tower.own] = 0
        weight = weight / weight.sum(2, keepdim=True).clamp_min(1e-12)
        centred_q, centred_k = (z - (weight * z).sum(2, keepdim=True) for z in (q, k))
        places = slice(tower.own, None)
        turn = polar(centred_k[:, :, places].transpose(2, 3) @ centred_q[:, :, places], options.steps)
        scores = q[:, :, places] @ (k @ turn).transpose(2, 3)
        scores = scores + options.keys * centred_k[:, :, places] @ centred_k.transpose(2, 3)
        attention = (scores * tower.d**-0.5).softmax(-1)
        maps = dense_cosines(tower, attended(block, attention, v), text)
        if options.prior == "none":
            return maps
        grid, preprocess = patch_grid(pixels.shape, clip.patch), clip.preprocess
        logits = (maps * options.logit_scale).transpose(1, 2).unflatten(2, grid)
        grey = grey_levels(pixels.float(), grid, preprocess.mean, preprocess.std)
        spread = spread_along(logits, grey, class_prior(text, options.prior))
        return spread.flatten(2).transpose(1, 2) / options.logit_scale
