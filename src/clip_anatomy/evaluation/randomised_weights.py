"""The same model with its learned weights drawn anew, block by block: what a map must not survive (Adebayo et al. 2018, §3.1).

Each weight is drawn from a normal distribution with the mean and the standard deviation of its own row, so that every unit
keeps its scale and the network neither dies nor overflows. BatchNorm's statistics stay: they belong to the rows they
normalise. The draw goes into new tensors; the user's model is never written to.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.towers.resnet import AttentionPool, Conv, ImageTower, ResNet
from clip_anatomy.towers.transformer import Block, Linear, Tower

__all__ = ["blocks_of", "randomised"]


def blocks_of(tower: ImageTower) -> int:
    """How many blocks `randomised` can draw anew: those of a transformer; bottlenecks and the pool of a ResNet."""
    if isinstance(tower, ResNet):
        return sum(len(stage) for stage in tower.stages) + 1
    return tower.layers


def randomised(clip: Clip, blocks: int | None = None, *, seed: int = 0) -> Clip:
    """A copy of an opened model whose last blocks of the image tower hold random weights.

    Args:
        clip: an opened model; it stays as it is, bit by bit.
        blocks: how many, from the output backwards (Adebayo's cascade); None for the whole image tower: also the patch
            embedding or stem, the positions, the outer LayerNorms and the projection.
        seed: of the draw. Blocks drawn with one seed are the same whatever `blocks` is.

    Returns:
        A Clip that shares the text tower and the blocks that were not drawn; its host module is left out, since it holds the
        learned weights.

    Raises:
        BadSpec: more blocks than there are, or fewer than none.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> other = randomised(clip, 1)
        >>> torch.equal(other.image_tower.blocks[0].up.weight, clip.image_tower.blocks[0].up.weight)
        True
        >>> torch.equal(other.image_tower.blocks[-1].up.weight, clip.image_tower.blocks[-1].up.weight)
        False
    """
    there = blocks_of(clip.vision)
    if blocks is not None and not 0 <= blocks <= there:
        raise BadSpec(
            f"blocks={blocks}: the image tower has {there}. Type: blocks={there}, or blocks=None for all of it"
        )
    tower = clip.vision
    new = _resnet(tower, blocks, seed) if isinstance(tower, ResNet) else _transformer(tower, blocks, seed)
    return replace(clip, name=f"{clip.name}, random weights", vision=new, host=None, proof=None)


def _transformer(tower: Tower, blocks: int | None, seed: int) -> Tower:
    first = 0 if blocks is None else tower.layers - blocks
    drawn = tuple(
        block if i < first else _block(block, _drawer(seed, tower.layers - i)) for i, block in enumerate(tower.blocks)
    )
    tower = replace(tower, blocks=drawn)
    if blocks is not None:
        return tower
    draw = _drawer(seed, 0)
    return replace(tower, **{f.name: _each(getattr(tower, f.name), draw) for f in fields(tower) if f.name != "blocks"})


def _resnet(resnet: ResNet, blocks: int | None, seed: int) -> ResNet:
    left = blocks_of(resnet) if blocks is None else blocks
    pool = resnet.pool
    if left > 0:
        pool = _pool(pool, _drawer(seed, 1))
    stages: list[tuple[Any, ...]] = []
    number = 1
    for stage in reversed(resnet.stages):
        kept: list[Any] = []
        for block in reversed(stage):
            number += 1
            kept.append(_each(block, _drawer(seed, number)) if number <= left else block)
        stages.append(tuple(reversed(kept)))
    stem = resnet.stem if blocks is not None else _each(resnet.stem, _drawer(seed, 0))
    return replace(resnet, stem=stem, stages=tuple(reversed(stages)), pool=pool)


def _block(block: Block, draw: Callable[[Tensor], Tensor]) -> Block:
    if block.qkv is None:
        return _each(block, draw)
    qkv = _each(block.qkv, draw)  # q, k and v are views of it: drawn once, split again
    weights = qkv.weight.chunk(3)
    biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
    query, key, value = (Linear(w, b) for w, b in zip(weights, biases, strict=True))
    drawn = _each(replace(block, qkv=None), draw)
    return replace(drawn, qkv=qkv, query=query, key=key, value=value)


def _pool(pool: AttentionPool, draw: Callable[[Tensor], Tensor]) -> AttentionPool:
    drawn = {name: _each(getattr(pool, name), draw) for name in ("position", "query", "key", "value", "out")}
    return replace(pool, **drawn)


def _each(value: Any, draw: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor drawn anew; of a convolution only its kernel."""
    if isinstance(value, Tensor):
        return draw(value)
    if isinstance(value, Conv):
        return replace(value, weight=draw(value.weight))
    if isinstance(value, tuple):
        return tuple(_each(item, draw) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _each(getattr(value, f.name), draw) for f in fields(value)})
    return value


def _drawer(seed: int, block: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed((seed << 16) + block)

    def draw(weight: Tensor) -> Tensor:
        # On the CPU, so that every device gets the same draw. Kernels count as rows: one per output channel.
        known = weight.detach().float().cpu()
        rows = known.flatten(1) if known.dim() > 1 else known[None]
        mean, spread = rows.mean(1, keepdim=True), rows.std(1, keepdim=True, unbiased=False)
        new = torch.randn(rows.shape, generator=generator) * spread + mean
        return new.view(weight.shape).to(weight)

    return draw
