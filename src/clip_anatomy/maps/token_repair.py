"""Outlier tokens and channels: found, mended, and parted from the foreground."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.dense_steps import streams
from clip_anatomy.towers.operations import widened


def local_outlier_factor(
    tokens: Float[Tensor, "image token width"], neighbours: int, *, released: bool = False
) -> Float[Tensor, "image token"]:
    """Say how much sparser the surroundings of each token are than those of its neighbours: 1 for one among its like.

    Breunig et al., "LOF: Identifying Density-Based Local Outliers" (SIGMOD 2000), Definitions 5 to 7, with squared distances.

    Args:
        tokens: compared within their picture.
        neighbours: how many of the nearest count; half of all others where that is fewer.
        released: as SC-CLIP's release has it, which takes the token's own distance to its last neighbour as the
            reach to all of them, where the definition takes each neighbour's.
    """
    x = widened(tokens)
    if x.shape[1] == 1:  # one patch is the picture
        return torch.ones_like(x[..., 0])
    square = (x.square().sum(-1)[:, :, None] + x.square().sum(-1)[:, None] - 2 * x @ x.transpose(1, 2)).clamp_min(0)
    square.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near, which = square.topk(min(neighbours, square.shape[1] // 2), largest=False)
    reach = near[..., -1]
    theirs = reach.gather(1, which.flatten(1)).view_as(near)
    density = 1 / (reach if released else torch.maximum(near, theirs).mean(-1)).clamp_min(1e-30)
    return density.gather(1, which.flatten(1)).view_as(near).mean(-1) / density


def without_outliers(
    tokens: Float[Tensor, "image token width"], is_outlier: Bool[Tensor, "image token"], grid: tuple[int, int]
) -> Float[Tensor, "image token width"]:
    """Give outliers the mean of the (up to eight) patches around them that are none, from the edge of a group inwards.

    What `without_sinks` does to maps, for tokens: only the rows that are replaced are read. A picture of nothing else stays as it is.
    """
    left, values = is_outlier & ~is_outlier.all(1, keepdim=True), tokens.clone()
    around = _around(grid).to(tokens.device)
    while left.any():
        image, place = left.nonzero(as_tuple=True)
        near = around[place]
        good = (near >= 0) & ~left[image[:, None], near.clamp_min(0)]
        image, place, near, good = (one[good.any(1)] for one in (image, place, near, good))
        weights = (good / good.sum(1, keepdim=True)).to(values.dtype)
        values[image, place] = (weights[..., None] * values[image[:, None], near.clamp_min(0)]).sum(1)
        left = left.index_put((image, place), torch.tensor(False, device=left.device))
    return values


def _around(grid: tuple[int, int]) -> Int[Tensor, "token eight"]:
    """List the numbers of the eight places around each, −1 beyond the edge."""
    numbers = F.pad(torch.arange(grid[0] * grid[1]).view(1, 1, *grid).float(), (1, 1, 1, 1), value=-1)
    every = F.unfold(numbers, 3)[0].T.long()
    return torch.cat([every[:, :4], every[:, 5:]], 1)


def second_eigenvector(
    weights: Float[Tensor, "image token token"], squarings: int = 12
) -> Float[Tensor, "image token"]:
    """Find the normalised cut of graphs: y of the second smallest λ in (D − W) y = λ D y (Shi & Malik 2000).

    ½ (1 + D^(−1/2) W D^(−1/2)), its known first vector √D taken out, is squared so many times: a dozen products of matrices cost a
    twentieth of a block, where a full decomposition costs as much as one, and Lanczos' small products as much again.

    Args:
        weights: symmetric, not negative.
        squarings: the power is 2 to this.

    Returns:
        y, whose entry of greatest magnitude is positive.
    """
    root = weights.sum(-1).clamp_min(1e-30).sqrt()
    if weights.shape[1] == 1:
        return torch.zeros_like(root)
    first = F.normalize(root, dim=-1)
    power = weights / (root[:, :, None] * root[:, None]) / 2 - first[:, :, None] * first[:, None]
    power.diagonal(dim1=1, dim2=2).add_(0.5)
    for _ in range(squarings):
        power = power @ power
        power = power / power.abs().amax((1, 2), keepdim=True).clamp_min(1e-30)
    at = power.diagonal(dim1=1, dim2=2).argmax(1)  # u uᵀ by now: its longest column
    second = power[torch.arange(len(at), device=at.device), at] / root
    largest = second.gather(1, second.abs().argmax(1, keepdim=True))
    return second * largest.sign()


def channel_shares(tokens: Float[Tensor, "image token width"]) -> Float[Tensor, "image token width"]:
    """Compute how much of each token's length (sum of magnitudes) each channel has."""
    return F.normalize(widened(tokens).abs(), p=1, dim=-1)


def extreme_channels(clip: Clip, count: int) -> tuple[int, ...]:
    """Find the channels with the greatest share over all blocks of the bundled pictures: a property of the model, looked up once."""
    key = f"_extreme_{count}"
    if key not in vars(clip):
        tower, shares = clip.image_tower, list[Tensor]()
        with torch.no_grad():
            streams(
                tower,
                clip.pixels(examples()),
                each=lambda step: shares.append(channel_shares(step.before[:, tower.own :]).mean((0, 1))),
            )
        vars(clip)[key] = tuple(sorted(torch.stack(shares).mean(0).topk(count).indices.tolist()))
    return vars(clip)[key]
