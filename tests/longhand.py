"""Computations written out, for tests to compare with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def bilinear(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_LINEAR longhand: the nearest four pixels of each place, whatever the scale."""

    def along(length: int, target: int) -> np.ndarray:
        shares = np.zeros((target, length))
        for at in range(target):
            place = max((at + 0.5) * length / target - 0.5, 0)
            low = min(int(place), length - 1)
            shares[at, low] += 1 - (place - low)
            shares[at, min(low + 1, length - 1)] += place - low
        return shares

    rows, cols = along(levels.shape[0], size[0]), along(levels.shape[1], size[1])
    return np.rint(np.einsum("ri,cj,ijk->rck", rows, cols, levels.astype(float)))


def official_heads(visual: Any, pixels: Tensor) -> Tensor:
    """What every head of an open_clip ViT writes under the official convention, divided by ‖embedding‖, in the model's own precision.

    The mean of the stream is taken away from every part alike, its bias from the heads of its layer, β from all parts: written out with attention as a softmax.
    """
    stream = visual.conv1(pixels).flatten(2).transpose(1, 2)
    stream = torch.cat([visual.class_embedding.expand(len(pixels), 1, -1), stream], 1) + visual.positional_embedding
    stream, wrote, blocks = visual.ln_pre(stream), [], visual.transformer.resblocks
    for block in blocks:
        attention = block.attn
        heads, d = attention.num_heads, attention.head_dim
        q, k, v = (block.ln_1(stream) @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (heads, d)).transpose(1, 2) for x in (q, k, v))
        z = torch.softmax(q @ k.transpose(-1, -2) / d**0.5, -1) @ v
        out = attention.out_proj
        wrote.append(torch.einsum("ihd,whd->ihw", z[:, :, 0], out.weight.unflatten(1, (heads, d))) + out.bias / heads)
        stream = stream + z.transpose(1, 2).flatten(2) @ out.weight.T + out.bias
        stream = stream + block.mlp(block.ln_2(stream))
    row, terms, last = stream[:, 0], (2 * len(blocks) + 1) * heads, visual.ln_post
    sigma = (row.var(-1, unbiased=False, keepdim=True) + last.eps).sqrt()[:, None, None]
    mean = row.mean(-1, keepdim=True)[:, None, None]
    found = ((torch.stack(wrote, 1) - mean / terms) / sigma * last.weight + last.bias / terms) @ visual.proj
    return found / visual(pixels).norm(dim=-1)[:, None, None, None]
