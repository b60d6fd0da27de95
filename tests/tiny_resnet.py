"""Small random CLIP-ResNets: open_clip's own class, every weight, bias and running statistic random."""

from typing import Any

import torch
from torch import nn


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter and BatchNorm statistic random, so that a forgotten one shows, and deep ones stay finite."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "logit_scale":
                continue
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() <= 1:
                p.copy_(noise * 0.3 + (1.0 if name.endswith("weight") else 0.0))
            else:
                p.copy_(noise * (0.5 if "embedding" in name else 1.2 / p[0].numel() ** 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) * 2 + 0.5)
    return model.eval()


CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 96, "layers": [2, 1, 2, 1], "width": 4, "head_width": 16, "patch_size": None},
    "text_cfg": {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}


def resnet_model(*, seed: int = 0, quick_gelu: bool = False, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    """An open_clip CLIP with a ModifiedResNet: 3 × 3 places, 8 heads of 16, 128 channels."""
    import open_clip

    state = torch.get_rng_state()
    model = open_clip.CLIP(
        embed_dim=CONFIG["embed_dim"],
        quick_gelu=quick_gelu,
        vision_cfg={**CONFIG["vision_cfg"], **vision},
        text_cfg={**CONFIG["text_cfg"], **(text or {})},
    )
    torch.set_rng_state(state)
    return shake(model, seed)
