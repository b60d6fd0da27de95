"""Outlier tokens and channels: found, mended, and parted from the foreground."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.attention_sinks import without_sinks
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
    """Give outliers the mean of the (up to eight) patches around them that are none, from the edge of a group inwards."""
    values = tokens.transpose(1, 2).unflatten(2, grid)
    return without_sinks(values, is_outlier.unflatten(1, grid)).flatten(2).transpose(1, 2)


def second_eigenvector(weights: Float[Tensor, "image token token"], rounds: int = 48) -> Float[Tensor, "image token"]:
    """Find the normalised cut of graphs: y of the second smallest λ in (D − W) y = λ D y (Shi & Malik 2000).

    By Lanczos on D^(−1/2) W D^(−1/2) beside its known first eigenvector √D: a full decomposition of every block's graph would cost as
    much as the block.

    Args:
        weights: symmetric, not negative.
        rounds: steps of Lanczos; exact from as many as there are tokens.

    Returns:
        y, whose entry of greatest magnitude is positive.
    """
    root = weights.sum(-1).clamp_min(1e-30).sqrt()
    graph = weights / (root[:, :, None] * root[:, None])
    first = F.normalize(root, dim=-1)
    start = torch.sin(torch.arange(1, weights.shape[1] + 1, device=weights.device) ** 2.0)  # any fixed direction
    basis, alphas, betas = [first], list[Tensor](), list[Tensor]()
    vector = start.to(weights).expand_as(root)
    if weights.shape[1] == 1:
        return torch.zeros_like(root)
    noise = 100 * torch.finfo(weights.dtype).eps
    for _ in range(min(rounds, weights.shape[1] - 1)):
        known = torch.stack(basis, 1)
        for _ in range(2):  # once more: what rounding left
            vector = vector - ((known @ vector[..., None]).transpose(1, 2) @ known)[:, 0]
        length = vector.norm(dim=-1, keepdim=True)
        over = length < noise  # nothing new is left in this picture: a value below all others, and no vector
        betas.append(length.masked_fill(over, 0)[:, 0])
        basis.append(torch.where(over, 0, vector / length.clamp_min(1e-30)))
        vector = (graph @ basis[-1][..., None])[..., 0]
        alphas.append((vector * basis[-1]).sum(-1).masked_fill(over[:, 0], -2.0))
    small = torch.diag_embed(torch.stack(alphas, 1))
    beside = torch.diag_embed(torch.stack(betas[1:], 1), offset=1) if len(betas) > 1 else torch.zeros_like(small)
    _, vectors = torch.linalg.eigh(small + beside + beside.transpose(1, 2))
    second = (vectors[:, None, :, -1] @ torch.stack(basis[1:], 1))[:, 0] / root
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
