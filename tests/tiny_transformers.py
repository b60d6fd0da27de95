"""One small random model of every class of transformers that opens, as people have them live."""

from collections.abc import Callable
from typing import Any

import transformers
from tiny_families import randomized

SIDE = {"num_hidden_layers": 2, "hidden_act": "gelu"}
VISION = {
    **SIDE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 32,
}
NAFLEX = {**{k: v for k, v in VISION.items() if k != "image_size"}, "num_patches": 16}
TEXT = {
    **{**SIDE, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 60},
    **{"max_position_embeddings": 16, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 1, "sep_token_id": 3},
}
EFFICIENT_NET = {
    **{"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 64},
    **{"kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2]},
    **{"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": []},
}
EMBED = 24


def _config(name: str, **values: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**values)


def _both(name: str, image: dict[str, Any] = VISION, text: dict[str, Any] | None = None, **values: Any) -> Any:
    return _config(name, vision_config=dict(image), text_config={**TEXT, **(text or {})}, **values)


def _dino(name: str, **values: Any) -> Any:
    return _config(name, **{k: v for k, v in VISION.items() if k != "intermediate_size"}, **values)


CONFIGS: dict[str, Callable[[], Any]] = {
    "CLIPModel": lambda: _both("CLIP", projection_dim=EMBED),
    "CLIPVisionModel": lambda: _config("CLIPVision", **VISION),
    "CLIPVisionModelWithProjection": lambda: _config("CLIPVision", **VISION, projection_dim=EMBED),
    "CLIPTextModel": lambda: _config("CLIPText", **TEXT),
    "CLIPTextModelWithProjection": lambda: _config("CLIPText", **TEXT, projection_dim=EMBED),
    "SiglipModel": lambda: _both("Siglip", text={"projection_size": 48}),
    "SiglipVisionModel": lambda: _config("SiglipVision", **VISION),
    "SiglipTextModel": lambda: _config("SiglipText", **TEXT),
    "Siglip2Model": lambda: _both("Siglip2", NAFLEX, {"projection_size": 48}),
    "Siglip2VisionModel": lambda: _config("Siglip2Vision", **NAFLEX),
    "Siglip2TextModel": lambda: _config("Siglip2Text", **TEXT),
    "MetaClip2Model": lambda: _both("MetaClip2", projection_dim=EMBED),
    "MetaClip2VisionModel": lambda: _config("MetaClip2Vision", **VISION),
    "MetaClip2VisionModelWithProjection": lambda: _config("MetaClip2Vision", **VISION, projection_dim=EMBED),
    "MetaClip2TextModel": lambda: _config("MetaClip2Text", **TEXT),
    "MetaClip2TextModelWithProjection": lambda: _config("MetaClip2Text", **TEXT, projection_dim=EMBED),
    "CLIPSegModel": lambda: _both("CLIPSeg", projection_dim=EMBED),
    "CLIPSegVisionModel": lambda: _config("CLIPSegVision", **VISION),
    "CLIPSegTextModel": lambda: _config("CLIPSegText", **TEXT),
    "ChineseCLIPModel": lambda: _both("ChineseCLIP", projection_dim=EMBED),
    "ChineseCLIPVisionModel": lambda: _config("ChineseCLIPVision", **VISION),
    "ChineseCLIPTextModel": lambda: _config("ChineseCLIPText", **TEXT),
    "AltCLIPModel": lambda: _both("AltCLIP", text={"project_dim": EMBED}, projection_dim=EMBED),
    "AltCLIPVisionModel": lambda: _config("AltCLIPVision", **VISION),
    "AltCLIPTextModel": lambda: _config("AltCLIPText", **TEXT, project_dim=EMBED),
    "AlignModel": lambda: _both("Align", EFFICIENT_NET, projection_dim=8),
    "AlignVisionModel": lambda: _config("AlignVision", **EFFICIENT_NET),
    "AlignTextModel": lambda: _config("AlignText", **TEXT),
    "BlipForImageTextRetrieval": lambda: _both("Blip", text={"encoder_hidden_size": 48}, image_text_hidden_size=EMBED),
    "BlipVisionModel": lambda: _config("BlipVision", **VISION),
    "BlipTextModel": lambda: _config("BlipText", **TEXT, encoder_hidden_size=48),
    "Dinov2Model": lambda: _dino("Dinov2"),
    "Dinov2Model, SwiGLU": lambda: _dino("Dinov2", use_swiglu_ffn=True),
    "Dinov2WithRegistersModel": lambda: _dino("Dinov2WithRegisters"),
    "DINOv3ViTModel": lambda: _config("DINOv3ViT", **VISION, num_register_tokens=2),
    "DINOv3ViTModel, SwiGLU": lambda: _config("DINOv3ViT", **{**VISION, "hidden_act": "silu"}, use_gated_mlp=True),
    "ViTModel": lambda: _config("ViT", **VISION),
}
"""Name of the class, and what it is besides → its config."""


def tiny_transformers(name: str) -> Any:
    """One live model with random weights."""
    return randomized(getattr(transformers, name.partition(",")[0])(CONFIGS[name]()))
