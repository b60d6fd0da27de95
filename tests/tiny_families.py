"""One small random model of each family of towers that open_clip has configurations of, as live open_clip models."""

from functools import partial
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import nn

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}
EMBED = 40
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "num_classes": 0}),
    "eva02": ("eva02_base_patch16_clip_224", {**SMALL, "num_classes": EMBED}),
    "eva02-enormous": ("eva02_enormous_patch14_clip_224", {**SMALL, "img_size": 28, "num_classes": EMBED}),
    "eva-giant": (
        "eva_giant_patch14_224",
        {**SMALL, "img_size": 28, "num_classes": EMBED, "global_pool": "token"},
    ),
    "pe": ("vit_pe_core_base_patch16_224", {**SMALL, "num_classes": EMBED, "attn_pool_num_heads": 2}),
    "vitamin": ("vitamin_small_224", {"img_size": 32, "depth": 2, "num_classes": 0}),
    "mobileclip-b": ("vit_base_mci_224", {"img_size": 32, "depth": 1, "num_classes": EMBED}),
    "parallel": ("vit_pwee_patch16_reg1_gap_256", {**SMALL, "num_classes": 0}),
    "parallel-fused": (
        "vit_base_patch16_224",
        {
            **{**SMALL, "num_classes": 0, "qkv_bias": False, "qk_norm": True},
            "block_fn": partial(ParallelScalingBlock, fuse_out_proj=True),
        },
    ),
    "post-norm": ("vit_base_patch16_224", {**SMALL, "num_classes": 0, "block_fn": ResPostBlock}),
    "gap": ("vit_medium_patch16_gap_256", {**SMALL, "num_classes": 0}),
}
TEXT = {"context_length": 8, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}


def randomized(module: nn.Module, seed: int = 0) -> Any:
    """Weights that matter, each of them: matrices keep lengths, norms are near one, nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        draw = torch.randn(p.shape, generator=generator)
        vector = p.dim() < 2 or any(word in name for word in ("pos", "token", "latent", "probe", "class", "cls"))
        gain = p.dim() == 1 and name.endswith(("weight", "gamma"))
        p.data = draw * 0.3 + float(gain) if vector else draw * max(1, p.numel() // max(1, len(p))) ** -0.5
    for scale in ("logit_scale", "logit_bias"):
        if getattr(module, scale, None) is not None:
            getattr(module, scale).data.fill_(1.5)
    return module.eval()


def family(name: str) -> Any:
    """One live model with random weights."""
    if name == "coca":
        vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        text = {**TEXT, "embed_cls": True, "output_tokens": True}
        decoder = {"context_length": 8, "vocab_size": 60, "width": 32, "heads": 2, "layers": 1}
        return randomized(open_clip.CoCa(EMBED, vision_cfg=vision, text_cfg=text, multimodal_cfg=decoder))
    trunk, given = TIMM[name]
    embed = 48 if name == "siglip" else EMBED
    text = SIGLIP_TEXT if name == "siglip" else TEXT
    bias = -10.0 if name == "siglip" else None
    model = open_clip.CustomTextCLIP(embed, vision_cfg=VISION, text_cfg=text, init_logit_bias=bias)
    visual: Any = TimmModel("vit_tiny_patch16_224", embed, pool="token", proj="none")
    visual.trunk = timm.create_model(trunk, **given)
    visual.image_size = (given["img_size"],) * 2
    if name in ("gap", "vitamin", "parallel", "parallel-fused", "post-norm"):  # open_clip adds a projection of its own
        visual.head.add_module("drop", nn.Dropout(0.0))
        visual.head.add_module("proj", nn.Linear(visual.trunk.num_features, embed, bias=False))
    model.visual = visual
    return randomized(model)


VISION = {"layers": 2, "width": 48, "patch_size": 8, "image_size": 32, "head_width": 12}
FAMILIES = (*TIMM, "coca")
