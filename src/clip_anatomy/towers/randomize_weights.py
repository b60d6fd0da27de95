"""Learned weights drawn anew, block by block from the output backwards: Adebayo's cascade for any tower.

Each weight is drawn from a normal distribution with the mean and the standard deviation of its own row, so that every unit
keeps its scale and the network neither dies nor overflows. BatchNorm's statistics stay: they belong to the rows they
normalise. The draw goes into new tensors; the user's model is never written to.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.towers.layers import Block, split_qkv
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.resnet import AttentionPool, Conv, ResNet
from clip_anatomy.towers.transformer import Transformer, as_transformer


def count_blocks(tower: Tower) -> int:
    """Count the blocks that `randomize_weights` can draw anew: those of a transformer; bottlenecks and the pool of a ResNet."""
    if isinstance(tower, ResNet):
        return sum(len(stage) for stage in tower.stages) + 1
    return tower.layers


def randomize_weights(tower: Tower, blocks: int | None, seed: int) -> Tower:
    """Draw the last blocks anew, or (None) the whole tower; blocks drawn with one seed are the same whatever `blocks` is."""
    if isinstance(tower, ResNet):
        return _randomize_resnet(tower, blocks, seed)
    return _randomize_transformer(as_transformer(tower), blocks, seed)


def _randomize_transformer(tower: Transformer, blocks: int | None, seed: int) -> Transformer:
    first = 0 if blocks is None else tower.layers - blocks
    drawn = tuple(
        block if i < first else _block(block, _drawer(seed, tower.layers - i)) for i, block in enumerate(tower.blocks)
    )
    tower = replace(tower, blocks=drawn)
    if blocks is not None:
        return tower
    draw = _drawer(seed, 0)
    return replace(
        tower, **{f.name: map_tensors(getattr(tower, f.name), draw) for f in fields(tower) if f.name != "blocks"}
    )


def _randomize_resnet(resnet: ResNet, blocks: int | None, seed: int) -> ResNet:
    left = count_blocks(resnet) if blocks is None else blocks
    pool = resnet.pool
    if left > 0:
        pool = _pool(pool, _drawer(seed, 1))
    stages: list[tuple[Any, ...]] = []
    number = 1
    for stage in reversed(resnet.stages):
        drawn: list[Any] = []
        for block in reversed(stage):
            number += 1
            drawn.append(map_tensors(block, _drawer(seed, number)) if number <= left else block)
        stages.append(tuple(reversed(drawn)))
    stem = resnet.stem if blocks is not None else map_tensors(resnet.stem, _drawer(seed, 0))
    return replace(resnet, stem=stem, stages=tuple(reversed(stages)), pool=pool)


def _block(block: Block, draw: Callable[[Tensor], Tensor]) -> Block:
    if block.qkv is None:
        return map_tensors(block, draw)
    qkv = map_tensors(block.qkv, draw)  # q, k and v are views of it: drawn once, split again
    query, key, value = split_qkv(qkv)
    drawn = map_tensors(replace(block, qkv=None), draw)
    return replace(drawn, qkv=qkv, query=query, key=key, value=value)


def _pool(pool: AttentionPool, draw: Callable[[Tensor], Tensor]) -> AttentionPool:
    drawn = {name: map_tensors(getattr(pool, name), draw) for name in ("position", "query", "key", "value", "out")}
    return replace(pool, **drawn)


def map_tensors(value: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """Return the same structure with every tensor made anew; of a convolution only its kernel."""
    if isinstance(value, Tensor):
        return make(value)
    if isinstance(value, Conv):
        return replace(value, weight=make(value.weight))
    if isinstance(value, tuple):
        return tuple(map_tensors(item, make) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), make) for f in fields(value)})
    return value


def _drawer(seed: int, block: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed((seed << 16) + block)

    def draw(weight: Tensor) -> Tensor:
        if not weight.is_floating_point():  # which neurons, not what they weigh
            return weight
        # On the CPU, so that every device gets the same draw. Kernels count as rows: one per output channel.
        known = weight.detach().float().cpu()
        rows = known.flatten(1) if known.dim() > 1 else known[None]
        mean, spread = rows.mean(1, keepdim=True), rows.std(1, keepdim=True, unbiased=False)
        new = torch.randn(rows.shape, generator=generator) * spread + mean
        return new.view(weight.shape).to(weight)

    return draw
