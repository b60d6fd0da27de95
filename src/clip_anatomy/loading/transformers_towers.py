"""transformers' towers over their own tensors: the names of CLIP, SigLIP and their relatives, which differ in what is there.

A tensor that is present says what a tower has: a class token, a norm in front, an attention pool, a projection.
"""

from typing import Any

import torch
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.host import BorrowedTensors
from clip_anatomy.towers.layers import (
    Activation,
    AttentionPooling,
    Block,
    Linear,
    PatchEmbedding,
    WordEmbedding,
    split_qkv,
)
from clip_anatomy.towers.transformer import Transformer

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}


def image_tower(tensors: BorrowedTensors, config: Any) -> Transformer:
    """Build the image tower of a CLIP, a SigLIP or a SigLIP 2.

    Args:
        tensors: all tensors of the model; since transformers 5.6 an image model alone has no `vision_model.` in front.
        config: its vision config.
    """
    p = "vision_model." if "vision_model.embeddings.patch_embedding.weight" in tensors else ""
    eps, e = float(config.layer_norm_eps), f"{p}embeddings"
    class_token = tensors.maybe(f"{e}.class_embedding")
    positions = tensors.take(f"{e}.position_embedding.weight")
    projection = tensors.linear("visual_projection") if "visual_projection.weight" in tensors else None
    kernel = tensors.take(f"{e}.patch_embedding.weight")
    naflex = kernel.dim() == 2  # SigLIP 2 of any size: a linear layer over the numbers of a patch, channels last
    if naflex:
        side = int(config.patch_size)
        kernel = kernel.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
    side = round((len(positions) - (class_token is not None)) ** 0.5)
    pooling = _pool(tensors, f"{p}head", config) if f"{p}head.probe" in tensors else None
    if pooling is None and class_token is None:
        raise UnsupportedModel(
            "found an image tower without a class token and without an attention pool: nothing is read out"
        )
    return Transformer(
        embedding=PatchEmbedding(
            kernel,
            class_token,
            positions,
            (side, side),
            resampling="bilinear-antialias" if naflex else "bicubic",
            bias=tensors.maybe(f"{e}.patch_embedding.bias"),
        ),
        ln_pre=tensors.norm(f"{p}pre_layrnorm", eps) if f"{p}pre_layrnorm.weight" in tensors else None,  # (sic)
        blocks=_blocks(tensors, f"{p}encoder.layers", eps),
        ln_post=tensors.norm(f"{p}post_layernorm", eps),
        projection=None if projection is None else projection.weight.T,
        projection_bias=None if projection is None else projection.bias,
        heads=int(config.num_attention_heads),
        activation=activation(config),
        pool="class" if pooling is None else "attention",
        pool_before_norm=True,
        causal=False,
        pooling=pooling,
    )


def blip_image_tower(tensors: BorrowedTensors, config: Any) -> Transformer:
    """Build the image tower of a BLIP: query, key and value are one layer, and its embedding is a token behind the last norm."""
    p = "vision_model." if "vision_model.embeddings.class_embedding" in tensors else ""
    eps, e = float(config.layer_norm_eps), f"{p}embeddings"
    positions = tensors.take(f"{e}.position_embedding")[0]
    side = round((len(positions) - 1) ** 0.5)
    projection = tensors.linear("vision_proj") if "vision_proj.weight" in tensors else None
    return Transformer(
        embedding=PatchEmbedding(
            tensors.take(f"{e}.patch_embedding.weight"),
            tensors.take(f"{e}.class_embedding")[0, 0],
            positions,
            (side, side),
            resampling="bicubic",
            bias=tensors.maybe(f"{e}.patch_embedding.bias"),
        ),
        ln_pre=None,
        blocks=_blocks(tensors, f"{p}encoder.layers", eps),
        ln_post=tensors.norm(f"{p}post_layernorm", eps),
        projection=None if projection is None else projection.weight.T,
        projection_bias=None if projection is None else projection.bias,
        heads=int(config.num_attention_heads),
        activation=activation(config),
        pool="class",
        pool_before_norm=True,
        causal=False,
    )


def text_tower(tensors: BorrowedTensors, config: Any) -> Transformer:
    """Build the text tower of a CLIP (causal, read at the end of the text) or of a SigLIP (not causal, read at the last place)."""
    p = "text_model." if "text_model.embeddings.token_embedding.weight" in tensors else ""
    eps = float(config.layer_norm_eps)
    siglip = f"{p}head.weight" in tensors
    name = f"{p}head" if siglip else "text_projection"
    projection = tensors.linear(name) if f"{name}.weight" in tensors else None
    legacy = config.eos_token_id == 2 and config.model_type != "metaclip_2_text_model"
    return Transformer(
        embedding=WordEmbedding(
            tensors.take(f"{p}embeddings.token_embedding.weight"),
            tensors.take(f"{p}embeddings.position_embedding.weight"),
        ),
        ln_pre=None,
        blocks=_blocks(tensors, f"{p}encoder.layers", eps),
        ln_post=tensors.norm(f"{p}final_layer_norm", eps),
        projection=None if projection is None else projection.weight.T,
        projection_bias=None if projection is None else projection.bias,
        heads=int(config.num_attention_heads),
        activation=activation(config),
        pool="last" if siglip else "argmax" if legacy else "eos",
        pool_before_norm=True,
        causal=not siglip,
        eos=None if siglip else config.eos_token_id,
    )


def patches_of(pixels: Tensor, side: int, least: int) -> dict[str, Tensor]:
    """Compute what a SigLIP 2 of any size takes instead of pixels: the numbers of each patch, channels last; which exist; the grid.

    Fewer than `least` patches are padded to so many, as its own processor does.
    """
    rows, cols = pixels.shape[2] // side, pixels.shape[3] // side
    patches = (
        pixels.unflatten(2, (rows, side)).unflatten(4, (cols, side)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    )
    grid = torch.tensor([[rows, cols]], device=pixels.device).expand(len(pixels), -1)
    not_padding = torch.ones(patches.shape[:2], dtype=torch.int64, device=pixels.device)
    padding = max(0, least - rows * cols)
    patches, not_padding = (
        torch.nn.functional.pad(patches, (0, 0, 0, padding)),
        torch.nn.functional.pad(not_padding, (0, padding)),
    )
    return {"pixel_values": patches, "pixel_attention_mask": not_padding, "spatial_shapes": grid}


def activation(config: Any) -> Activation:
    """Return the MLP's nonlinearity by its name in the config."""
    if config.hidden_act not in ACTIVATIONS:
        raise UnsupportedModel(f"found the activation {config.hidden_act!r}; supported: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[config.hidden_act]


def _pool(tensors: BorrowedTensors, p: str, config: Any) -> AttentionPooling:
    """Return the MAP head: torch's attention module over a learned probe."""
    fused = Linear(tensors.take(f"{p}.attention.in_proj_weight"), tensors.maybe(f"{p}.attention.in_proj_bias"))
    query, key, value = split_qkv(fused)
    return AttentionPooling(
        latent=tensors.take(f"{p}.probe")[0, 0],
        ln_latent=None,
        query=query,
        key=key,
        value=value,
        out=tensors.linear(f"{p}.attention.out_proj"),
        heads=int(config.num_attention_heads),
        ln_mlp=tensors.norm(f"{p}.layernorm", float(config.layer_norm_eps)),
        up=tensors.linear(f"{p}.mlp.fc1"),
        down=tensors.linear(f"{p}.mlp.fc2"),
        activation=activation(config),
    )


def _blocks(tensors: BorrowedTensors, prefix: str, eps: float) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for i in range(tensors.count(prefix)):
        p = f"{prefix}.{i}"
        attention, out = _attention(tensors, f"{p}.self_attn")
        blocks.append(
            Block(
                ln1=tensors.norm(f"{p}.layer_norm1", eps),
                **attention,
                out=out,
                ln2=tensors.norm(f"{p}.layer_norm2", eps),
                up=tensors.linear(f"{p}.mlp.fc1"),
                down=tensors.linear(f"{p}.mlp.fc2"),
                scale_attention=None,
                scale_mlp=None,
            )
        )
    return tuple(blocks)


def _attention(tensors: BorrowedTensors, p: str) -> tuple[dict[str, Any], Linear]:
    """Borrow query, key and value, one layer or three, and the layer behind them."""
    if f"{p}.qkv.weight" not in tensors:
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        apart = {ours: tensors.linear(f"{p}.{theirs}") for ours, theirs in names.items()}
        return {**apart, "qkv": None}, tensors.linear(f"{p}.out_proj")
    fused = tensors.linear(f"{p}.qkv")
    query, key, value = split_qkv(fused)
    return {"query": query, "key": key, "value": value, "qkv": fused}, tensors.linear(f"{p}.projection")
