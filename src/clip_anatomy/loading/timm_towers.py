"""timm's vision transformers as towers: VisionTransformer (SigLIP, DeiT, DINOv2, ViTamin, MobileCLIP-B) and Eva (EVA-01/02, PE).

Everything that a state dict does not say is read off the modules; what has no place in the engine raises `NotSplit`, which names it.
"""

from dataclasses import replace
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.host import BorrowedTensors
from clip_anatomy.towers.layers import (
    Activation,
    AttentionPooling,
    Block,
    Linear,
    Norm,
    PatchEmbedding,
    Rotary,
    Stem,
    split_qkv,
)
from clip_anatomy.towers.transformer import Transformer

SPLIT_TRUNKS = ("VisionTransformer", "VisionTransformerDistilled", "Eva")
PLACED_TRUNKS = ("ConvNeXt", "SwinTransformer", "SwinTransformerV2")
"""Those whose places are averaged, which open alone too."""


class NotSplit(UnsupportedModel):
    """A trunk that is not linear once attention and norms are frozen: it is split at its readout instead."""


def timm_transformer(
    tensors: BorrowedTensors, trunk: Any, prefix: str, projection: Linear | None = None
) -> Transformer:
    """Build the image tower of a timm vision transformer.

    Args:
        tensors: all tensors of the model.
        trunk: timm's module.
        prefix: what its tensors' names begin with, the dot included.
        projection: what follows its own head, where the host adds one.

    Raises:
        NotSplit: it holds something that cannot be split; the message names it.
    """
    name = type(trunk).__name__
    if name not in SPLIT_TRUNKS:
        biased = (
            "attention with a number added for each pair of places, in "
            if name in ("VisionTransformerRelPos", "Beit")
            else ""
        )
        raise NotSplit(f"{biased}a trunk of type {name}")
    read = _Reader(tensors, prefix)
    blocks = tuple(_block(read, block, f"blocks.{i}") for i, block in enumerate(trunk.blocks))
    pool, pooling = _pool(read, trunk)
    norms = {name: read.norm(getattr(trunk, name), name) for name in ("norm", "fc_norm", "norm_pre")}
    before = norms["norm"] is None
    if (norms["norm"] is None) == (norms["fc_norm"] is None):
        if pooling is None or norms["norm"] is None:
            raise NotSplit("two norms, or none, around the pooling")
        pooling = replace(pooling, norm=norms["fc_norm"])
    ln_post = norms["norm"] or norms["fc_norm"]
    assert ln_post is not None
    head = read.linear(trunk.head, "head")
    if head is not None and projection is not None:
        raise NotSplit("two projections, one behind the other")
    end = head or projection
    return Transformer(
        embedding=_embedding(read, trunk),
        ln_pre=norms["norm_pre"],
        blocks=blocks,
        ln_post=ln_post,
        projection=None if end is None else end.weight.T,
        projection_bias=None if end is None else end.bias,
        heads=int(getattr(trunk.blocks[0], "attn", trunk.blocks[0]).num_heads),
        activation=_activation(_act(trunk.blocks[0])),
        pool=pool,
        pool_before_norm=before,
        causal=False,
        pooling=pooling,
        rotary=_rotary(read, trunk),
    )


class _Reader:
    """Tensors of one trunk by the names of its modules; modules that do nothing give None."""

    def __init__(self, tensors: BorrowedTensors, prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def take(self, name: str) -> Tensor:
        return self.tensors.take(self.prefix + name)

    def linear(self, module: Any, name: str) -> Linear | None:
        if module is None or isinstance(module, nn.Identity):
            return None
        if not isinstance(module, nn.Linear):
            raise NotSplit(f"{name}, a {type(module).__name__}")
        return self.tensors.linear(self.prefix + name)

    def need(self, module: Any, name: str) -> Linear:
        linear = self.linear(module, name)
        if linear is None:
            raise NotSplit(f"{name}, which is missing")
        return linear

    def norm(self, module: Any, name: str) -> Norm | None:
        if module is None or isinstance(module, nn.Identity):
            return None
        if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
            raise NotSplit(f"{name}, a {type(module).__name__}")
        return self.tensors.norm(self.prefix + name, module.eps)

    def scale(self, module: Any, name: str) -> Tensor | None:
        if module is None or isinstance(module, nn.Identity):
            return None
        return self.take(f"{name}.gamma" if isinstance(module, nn.Module) else name)


def _block(read: _Reader, block: Any, p: str) -> Block:
    kind = type(block).__name__
    if kind == "ParallelScalingBlock":
        return _parallel(read, block, p)
    if kind not in ("Block", "ResPostBlock", "EvaBlock", "EvaBlockPostNorm"):
        raise NotSplit(f"blocks of type {kind}")
    attention = block.attn
    if type(attention).__name__ not in ("Attention", "EvaAttention", "AttentionRope"):
        raise NotSplit(f"attention of type {type(attention).__name__}")
    if getattr(attention, "gate", None) is not None or getattr(attention, "num_kv_groups", 1) > 1:
        raise NotSplit("attention with a gate, or with heads that share keys")
    ln1, ln2 = read.norm(block.norm1, f"{p}.norm1"), read.norm(block.norm2, f"{p}.norm2")
    if ln1 is None or ln2 is None:
        raise NotSplit("blocks without norms")
    own = kind in ("Block", "ResPostBlock")
    scales = [
        read.scale(getattr(block, f"ls{i}" if own else f"gamma_{i}", None), f"{p}.ls{i}" if own else f"{p}.gamma_{i}")
        for i in (1, 2)
    ]
    return Block(
        ln1=ln1,
        ln2=ln2,
        **_attention(read, attention, f"{p}.attn"),
        out=read.need(attention.proj, f"{p}.attn.proj"),
        scale_attention=scales[0],
        scale_mlp=scales[1],
        norm_query=read.norm(attention.q_norm, f"{p}.attn.q_norm"),
        norm_key=read.norm(attention.k_norm, f"{p}.attn.k_norm"),
        norm_mixed=read.norm(attention.norm, f"{p}.attn.norm"),
        post_norm=kind in ("EvaBlockPostNorm", "ResPostBlock"),
        **_mlp(read, block.mlp, f"{p}.mlp"),
    )


def _parallel(read: _Reader, block: Any, p: str) -> Block:
    """Read a block whose attention and MLP share their norm, and one matrix in front of both: [MLP, query, key, value]."""
    ln, inner = read.norm(block.in_norm, f"{p}.in_norm"), read.need(block.in_proj, f"{p}.in_proj")
    if ln is None:
        raise NotSplit("blocks without norms")
    hidden, width = block.in_split[:2]
    if inner.bias is None:
        bias, up_bias = None, read.take(f"{p}.mlp_bias")
    else:
        bias, up_bias = inner.bias[hidden:], inner.bias[:hidden]
    qkv = Linear(inner.weight[hidden:], bias)
    query, key, value = split_qkv(qkv)
    if block.out_proj is None:
        out = read.need(block.attn_out_proj, f"{p}.attn_out_proj")
        down = read.need(block.mlp_out_proj, f"{p}.mlp_out_proj")
    else:  # one bias for both: it counts with the attention's
        both = read.need(block.out_proj, f"{p}.out_proj")
        out, down = Linear(both.weight[:, :width], both.bias), Linear(both.weight[:, width:], None)
    scale = read.scale(block.ls, f"{p}.ls")
    return Block(
        ln1=ln,
        query=query,
        key=key,
        value=value,
        qkv=qkv,
        out=out,
        ln2=ln,
        up=Linear(inner.weight[:hidden], up_bias),
        down=down,
        scale_attention=scale,
        scale_mlp=scale,
        norm_query=read.norm(block.q_norm, f"{p}.q_norm"),
        norm_key=read.norm(block.k_norm, f"{p}.k_norm"),
        parallel=True,
    )


def _attention(read: _Reader, attention: Any, p: str) -> dict[str, Any]:
    if attention.qkv is None:
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        return {k: read.need(getattr(attention, n), f"{p}.{n}") for k, n in names.items()} | {"qkv": None}
    qkv = read.need(attention.qkv, f"{p}.qkv")
    if getattr(attention, "q_bias", None) is not None:  # EVA keeps them apart, and the key has none that is learned
        query, key, value = split_qkv(qkv)
        read.take(f"{p}.k_bias")
        return {
            "query": Linear(query.weight, read.take(f"{p}.q_bias")),
            "key": key,
            "value": Linear(value.weight, read.take(f"{p}.v_bias")),
            "qkv": None,
        }
    query, key, value = split_qkv(qkv)
    return {"query": query, "key": key, "value": value, "qkv": qkv}


def _mlp(read: _Reader, mlp: Any, p: str) -> dict[str, Any]:
    kind = type(mlp).__name__
    if kind == "Mlp":
        up, down = read.need(mlp.fc1, f"{p}.fc1"), read.need(mlp.fc2, f"{p}.fc2")
        return {"up": up, "down": down, "norm_down": read.norm(mlp.norm, f"{p}.norm")}
    if kind == "SwiGLU":
        gate, up = read.need(mlp.fc1_g, f"{p}.fc1_g"), read.need(mlp.fc1_x, f"{p}.fc1_x")
        return {
            "gate": gate,
            "up": up,
            "down": read.need(mlp.fc2, f"{p}.fc2"),
            "norm_down": read.norm(mlp.norm, f"{p}.norm"),
        }
    if kind == "GluMlp":
        whole = read.need(mlp.fc1, f"{p}.fc1")
        biases = (None, None) if whole.bias is None else whole.bias.chunk(2)
        halves = [Linear(w, b) for w, b in zip(whole.weight.chunk(2), biases, strict=True)]
        up, gate = halves if mlp.gate_last else halves[::-1]
        down = read.need(mlp.fc2, f"{p}.fc2")
        return {"gate": gate, "up": up, "down": down, "norm_down": read.norm(mlp.norm, f"{p}.norm")}
    if kind == "GeGluMlp":  # ViTamin's
        gate, up = read.need(mlp.w0, f"{p}.w0"), read.need(mlp.w1, f"{p}.w1")
        return {
            "gate": gate,
            "up": up,
            "down": read.need(mlp.w2, f"{p}.w2"),
            "norm_up": read.norm(mlp.norm, f"{p}.norm"),
        }
    raise NotSplit(f"an MLP of type {kind}")


def _pool(read: _Reader, trunk: Any) -> tuple[Any, AttentionPooling | None]:
    if trunk.attn_pool is None:
        pools = {"token": "class", "avg": "mean"}
        if trunk.global_pool not in pools or getattr(trunk, "pool_include_prefix", False):
            raise NotSplit(f"pooling by {trunk.global_pool!r}")
        return pools[trunk.global_pool], None
    pool, p = trunk.attn_pool, "attn_pool"
    prefix = 0 if type(trunk).__name__ == "Eva" or trunk.pool_include_prefix else trunk.num_prefix_tokens
    if type(pool).__name__ != "AttentionPoolLatent" or pool.latent_len != 1 or pool.pos_embed is not None or prefix:
        raise NotSplit(
            f"an attention pool of type {type(pool).__name__} with several queries, positions, or tokens left out"
        )
    fused = read.need(pool.kv, f"{p}.kv")
    biases = (None, None) if fused.bias is None else fused.bias.chunk(2)
    key, value = (Linear(w, b) for w, b in zip(fused.weight.chunk(2), biases, strict=True))
    mlp = pool.mlp
    inner = None if mlp is None else _mlp(read, mlp, f"{p}.mlp")
    if inner is not None and (inner.get("gate") is not None or inner.get("norm_down") is not None):
        raise NotSplit("an attention pool whose MLP has a gate")
    return "attention", AttentionPooling(
        latent=read.take(f"{p}.latent")[0, 0],
        ln_latent=None,
        query=read.linear(pool.q, f"{p}.q"),
        key=key,
        value=value,
        out=read.need(pool.proj, f"{p}.proj"),
        heads=int(pool.num_heads),
        norm_query=read.norm(pool.q_norm, f"{p}.q_norm"),
        norm_key=read.norm(pool.k_norm, f"{p}.k_norm"),
        ln_mlp=None if inner is None else read.norm(pool.norm, f"{p}.norm"),
        up=None if inner is None else inner["up"],
        down=None if inner is None else inner["down"],
        activation="gelu" if mlp is None else _activation(mlp.act),
    )


def _embedding(read: _Reader, trunk: Any) -> PatchEmbedding:
    embed = trunk.patch_embed
    stem, weight, bias = None, None, None
    if type(embed).__name__ == "PatchEmbed" and isinstance(embed.norm, nn.Identity):
        weight, bias = read.take("patch_embed.proj.weight"), read.tensors.maybe(f"{read.prefix}patch_embed.proj.bias")
    else:
        stem = _stem(read, embed)
    class_token = getattr(trunk, "cls_token", None)
    registers = getattr(trunk, "reg_token", None)
    grid = tuple(int(n) for n in embed.grid_size)
    return PatchEmbedding(
        weight=weight,
        class_token=None if class_token is None else read.take("cls_token")[0, 0],
        position=None if trunk.pos_embed is None else read.take("pos_embed")[0],
        grid=(grid[0], grid[1]),
        resampling="bicubic-antialias",
        bias=bias,
        registers=None if registers is None else read.take("reg_token")[0],
        stem=stem,
    )


def _stem(read: _Reader, embed: nn.Module) -> Stem:
    """Patches that a module of the host's makes: convolutions (ViTamin, MobileCLIP-B), or with a norm of their own."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in embed.modules()):  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedModel(
            "found an image tower in training mode: its BatchNorm would change it. Type: model.eval()"
        )
    names = [f"patch_embed.{name}" for name in (*dict(embed.named_parameters()), *dict(embed.named_buffers()))]
    state = tuple(read.take(name) for name in names)
    module: Any = embed
    rows, cols = module.grid_size

    def run(pixels: Tensor) -> Tensor:
        tokens = module(pixels.to(next(module.parameters()).dtype))  # [image, token, width]
        grid = (pixels.shape[2] // patch[0], pixels.shape[3] // patch[1])
        return tokens.transpose(1, 2).unflatten(2, grid)

    size = module.img_size
    patch = (int(size[0]) // int(rows), int(size[1]) // int(cols))
    return Stem(run, state, patch)


def _rotary(read: _Reader, trunk: Any) -> Rotary | None:
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":
        return _dino_rotary(read, trunk, rope)
    if type(rope).__name__ != "RotaryEmbeddingCat" or getattr(trunk, "rope_mixed", False) or rope.in_pixels:
        raise NotSplit(f"rotary positions of type {type(rope).__name__}")
    bands, table = (read.tensors.maybe(f"{read.prefix}rope.{name}") for name in ("bands", "pos_embed"))
    if bands is None:
        steps = torch.arange(rope.dim // 4, dtype=torch.float32, device=trunk.blocks[0].norm1.weight.device)
        bands = 1.0 / (float(rope.temperature) ** (steps / (rope.dim // 4)))
    reference, grid = rope.ref_feat_shape, trunk.patch_embed.grid_size
    return Rotary(
        frequencies=bands,
        reference=None if reference is None else (int(reference[0]), int(reference[1])),
        offset=float(rope.grid_offset),
        columns_first=rope.grid_indexing == "xy",
        halves=bool(getattr(trunk.blocks[0].attn, "rotate_half", False)),
        table=table,
        grid=(int(grid[0]), int(grid[1])),
    )


def _dino_rotary(read: _Reader, trunk: Any, rope: Any) -> Rotary:
    """DINOv3's: the middles of the patches on a scale from −1 to 1, angle = 2π · coordinate / period."""
    if rope.normalize_coords != "separate" or rope.grid_offset:
        raise NotSplit(f"rotary positions normalised by {rope.normalize_coords!r}")
    table = read.tensors.maybe(f"{read.prefix}rope.pos_embed_cached")
    grid = trunk.patch_embed.grid_size
    return Rotary(
        frequencies=1 / read.take("rope.periods").double(),
        reference=(4 * pi, 4 * pi),
        offset=0.5,
        shift=-2 * pi,
        columns_first=rope.grid_indexing == "xy",
        halves=bool(rope.rotate_half),
        table=table,
        grid=(int(grid[0]), int(grid[1])),
    )


def _act(block: Any) -> nn.Module:
    return block.mlp_act if hasattr(block, "mlp_act") else block.mlp.act


def _activation(module: nn.Module) -> Activation:
    name = type(module).__name__
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    known: dict[str, Activation] = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
    if name not in known:
        raise NotSplit(f"the activation {name}")
    return known[name]
