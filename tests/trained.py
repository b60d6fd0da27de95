"""What training leaves in a CLIP and random weights do not have: a few channels that dwarf the rest, and attention on sinks."""

from typing import Any

import torch


def heavy_tailed(model: Any, seed: int = 0) -> Any:
    """Give both towers of an open_clip model massive MLP channels, outlying LayerNorms and sharp attention; change it in place."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tower in (model.visual, model):
            blocks = tower.transformer.resblocks
            width = blocks[0].ln_1.weight.shape[0]
            massive, outlying = torch.randperm(width, generator=draw)[:4].split(2)
            blocks[0].mlp.c_proj.weight[massive] *= 300
            blocks[0].mlp.c_proj.bias[massive] += 100
            for block in blocks:
                block.ln_2.weight[outlying] *= 30
                block.attn.in_proj_weight[: 2 * width] *= 1.5
                block.attn.in_proj_bias[width : 2 * width] += 5 * torch.randn(width, generator=draw)
            (tower.ln_post if tower is model.visual else tower.ln_final).weight[outlying] *= 20
    return model
