"""Small random CLIPs of both libraries: real architectures with every weight and bias random, so that a forgotten one shows."""

from typing import Any

import torch
from torch import nn


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter random, LayerNorm weights and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name == "logit_scale":
                continue
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() <= 1:
                p.copy_(noise * 0.3 + (1.0 if name.endswith("weight") or name.endswith("gamma") else 0.0))
            else:
                p.copy_(noise * (0.5 if "embedding" in name else 1.5 / p.shape[-1] ** 0.5))
    return module.eval()


def open_clip_model(
    *,
    layers: int = 2,
    heads: int = 2,
    d: int = 8,
    size: int = 32,
    patch: int = 8,
    embed: int = 12,
    quick_gelu: bool = False,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    import open_clip

    state = torch.get_rng_state()
    model = open_clip.CLIP(
        embed_dim=embed,
        quick_gelu=quick_gelu,
        vision_cfg={
            "image_size": size,
            "patch_size": patch,
            "layers": layers,
            "width": heads * d,
            "head_width": d,
            **(vision or {}),
        },
        text_cfg={
            "context_length": 12,
            "vocab_size": 100,
            "width": heads * d,
            "heads": heads,
            "layers": layers,
            **(text or {}),
        },
    )
    torch.set_rng_state(state)
    return shake(model, seed)


def transformers_model(
    *, layers: int = 2, heads: int = 2, d: int = 8, size: int = 32, patch: int = 8, **config: Any
) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    state = torch.get_rng_state()
    common = {
        "hidden_size": heads * d,
        "intermediate_size": 4 * heads * d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    model = CLIPModel(
        CLIPConfig(
            projection_dim=12,
            vision_config={**common, "image_size": size, "patch_size": patch, **config},
            text_config={
                **common,
                "vocab_size": 100,
                "max_position_embeddings": 12,
                "eos_token_id": 99,
                "bos_token_id": 98,
                **config,
            },
        )
    )
    torch.set_rng_state(state)
    return shake(model)


def features(output: Any) -> torch.Tensor:
    """Return the embedding of transformers' `get_image_features`: the tensor itself before 5.0, a field of an output since."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
