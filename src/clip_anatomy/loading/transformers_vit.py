"""transformers' vision transformers without text over their own tensors: ViT, DINOv2 with and without registers, DINOv3.

Names have moved: version 5 calls everything q_proj … o_proj, version 4 each model's in its own way. Whichever is there is read.
The embedding is the class token behind the last norm; the pooler of a ViTModel, a tanh, is no part of it.
"""

from math import pi
from typing import Any

from clip_anatomy.loading.host import BorrowedTensors
from clip_anatomy.loading.transformers_towers import activation
from clip_anatomy.towers.layers import Block, Linear, PatchEmbedding, Rotary
from clip_anatomy.towers.transformer import Transformer

LAYERS = ("encoder.layer", "layers", "model.layer", "layer")
NAMES = {
    "ln1": ("norm1", "layernorm_before"),
    "ln2": ("norm2", "layernorm_after"),
    "query": ("attention.q_proj", "attention.attention.query"),
    "key": ("attention.k_proj", "attention.attention.key"),
    "value": ("attention.v_proj", "attention.attention.value"),
    "out": ("attention.o_proj", "attention.output.dense"),
    "up": ("mlp.up_proj", "mlp.fc1", "intermediate.dense"),
    "down": ("mlp.down_proj", "mlp.fc2", "mlp.weights_out", "output.dense"),
}
APART = ("pooler.", "embeddings.mask_token")
"""What no embedding reads: the pooler, and the token that stands for hidden patches in training."""


def vit_tower(tensors: BorrowedTensors, config: Any) -> Transformer:
    """Build the image tower of a ViTModel, a Dinov2Model, a Dinov2WithRegistersModel or a DINOv3ViTModel."""
    eps = float(config.layer_norm_eps)
    first = tensors.first(("embeddings.patch_embeddings.projection", "embeddings.patch_embeddings"))
    registers = tensors.maybe("embeddings.register_tokens")
    position = tensors.maybe("embeddings.position_embeddings")
    sizes = zip(_pair(config.image_size), _pair(config.patch_size), strict=True)
    rows, cols = (size // side for size, side in sizes)
    blocks = _vit_blocks(tensors, eps)
    return Transformer(
        embedding=PatchEmbedding(
            weight=tensors.take(f"{first}.weight"),
            class_token=tensors.take("embeddings.cls_token")[0, 0],
            position=None if position is None else position[0],
            grid=(rows, cols),
            resampling="bicubic-antialias" if registers is not None else "bicubic",
            bias=tensors.maybe(f"{first}.bias"),
            registers=None if registers is None or not registers.shape[1] else registers[0],
        ),
        ln_pre=None,
        blocks=blocks,
        ln_post=tensors.norm(tensors.first(("layernorm", "norm")), eps),
        projection=None,
        projection_bias=None,
        heads=int(config.num_attention_heads),
        activation="silu" if getattr(config, "use_swiglu_ffn", False) else activation(config),
        pool="class",
        pool_before_norm=True,
        causal=False,
        rotary=_rotary(tensors) if position is None else None,
    )


def _vit_blocks(tensors: BorrowedTensors, eps: float) -> tuple[Block, ...]:
    prefix = next(one for one in LAYERS if tensors.count(one))
    blocks: list[Block] = []
    for i in range(tensors.count(prefix)):
        p = f"{prefix}.{i}"
        at = {
            ours: tensors.first([f"{p}.{one}" for one in theirs])
            for ours, theirs in NAMES.items()
            if not (ours == "up" and f"{p}.mlp.weights_in.weight" in tensors)
        }
        gate, up = _gate(tensors, p, at.get("up", ""))
        blocks.append(
            Block(
                ln1=tensors.norm(at["ln1"], eps),
                query=tensors.linear(at["query"]),
                key=tensors.linear(at["key"]),
                value=tensors.linear(at["value"]),
                qkv=None,
                out=tensors.linear(at["out"]),
                ln2=tensors.norm(at["ln2"], eps),
                up=up,
                down=tensors.linear(at["down"]),
                scale_attention=tensors.maybe(f"{p}.layer_scale1.lambda1"),
                scale_mlp=tensors.maybe(f"{p}.layer_scale2.lambda1"),
                gate=gate,
            )
        )
    return tuple(blocks)


def _gate(tensors: BorrowedTensors, p: str, up: str) -> tuple[Linear | None, Linear]:
    """Return gate and up of a SwiGLU: two layers in version 5, one on top of the other in version 4; without a gate None and up."""
    if f"{p}.mlp.weights_in.weight" in tensors:
        both = tensors.linear(f"{p}.mlp.weights_in")
        biases = (None, None) if both.bias is None else both.bias.chunk(2)
        gate, up_layer = (Linear(w, b) for w, b in zip(both.weight.chunk(2), biases, strict=True))
        return gate, up_layer
    gated = f"{p}.mlp.gate_proj"
    return (tensors.linear(gated) if f"{gated}.weight" in tensors else None), tensors.linear(up)


def _rotary(tensors: BorrowedTensors) -> Rotary:
    """DINOv3's: the middles of the patches on a scale from −1 to 1, angle = 2π · coordinate · frequency (Siméoni et al. 2025, §3.2)."""
    frequencies = tensors.take("rope_embeddings.inv_freq")
    return Rotary(frequencies, reference=(4 * pi, 4 * pi), offset=0.5, shift=-2 * pi, halves=True)


def _pair(sides: Any) -> tuple[int, int]:
    """Read (row, col) of what a config gives as one number or two."""
    rows, cols = (sides, sides) if isinstance(sides, int) else sides
    return int(rows), int(cols)
