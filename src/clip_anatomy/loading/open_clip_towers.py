"""open_clip's models as towers, over their own tensors (OpenAI's checkpoints name them the same way)."""

from typing import Any

from torch import Tensor, nn

from clip_anatomy.loading.host import BorrowedTensors, Host, TowerConfig, library_version, tensors_of, unsupported
from clip_anatomy.loading.open_clip_resnet import open_clip_resnet
from clip_anatomy.towers.layers import Activation, Block, Linear, PatchEmbedding, WordEmbedding, split_qkv
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer


def read_open_clip(model: Any) -> Host:
    """Read a live CLIP or CustomTextCLIP of open_clip.

    Raises:
        UnsupportedModel: its towers are no plain ones; the message names what was found.
    """
    visual = model.visual
    kind = type(visual).__name__
    if kind not in ("VisionTransformer", "ModifiedResNet"):
        named = {"TimmModel": "a timm image tower (SigLIP, EVA, ConvNeXt …)"}
        raise unsupported(f"{named.get(kind, 'an image tower')} ({kind})")
    text = _text_config(model)
    tensors, name = BorrowedTensors(tensors_of(model)), f"open_clip {type(model).__name__}"
    image_tower: Tower
    if kind == "ModifiedResNet":
        image_tower, text_tower = open_clip_resnet(tensors, visual), _text_tower(tensors, text)
        tensors.refuse_left_over(name)
    else:
        image_tower, text_tower = open_clip_towers(tensors, _image_config(visual), text, model=name)
    bias = getattr(model, "logit_bias", None)
    return Host(
        library=library_version("open_clip"),
        module=model,
        image_tower=image_tower,
        text_tower=text_tower,
        encode_image=lambda pixels: _embedding(model.encode_image(pixels)),
        encode_text=lambda ids: _embedding(model.encode_text(ids)),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0 if bias is None else float(bias.detach()),
    )


def open_clip_towers(
    tensors: BorrowedTensors, image: TowerConfig, text: TowerConfig, *, model: str
) -> tuple[Transformer, Transformer]:
    """Build both towers over a state dict with open_clip's names.

    Args:
        tensors: all tensors of the model.
        image: config of the image tower.
        text: config of the text tower.
        model: what the model calls itself, for the error message.

    Returns:
        Image tower and text tower.

    Raises:
        UnsupportedModel: a tensor is missing or left over.
    """
    positions = tensors.take("visual.positional_embedding")
    image_tower = Transformer(
        embedding=PatchEmbedding(
            tensors.take("visual.conv1.weight"),
            tensors.take("visual.class_embedding"),
            positions,
            image.grid_of(positions),
            resampling="bicubic-antialias",
        ),
        ln_pre=tensors.norm("visual.ln_pre", image.eps) if "visual.ln_pre.weight" in tensors else None,
        blocks=_blocks(tensors, "visual.transformer.resblocks", image.eps),
        ln_post=tensors.norm("visual.ln_post", image.eps),
        projection=tensors.take("visual.proj"),
        projection_bias=None,
        **image.of_transformer(),
    )
    text_tower = _text_tower(tensors, text)
    tensors.refuse_left_over(model)
    return image_tower, text_tower


def _text_tower(tensors: BorrowedTensors, config: TowerConfig) -> Transformer:
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    vocabulary = tensors.take(f"{prefix}token_embedding.weight")
    projection, bias = tensors.maybe(f"{prefix}text_projection"), None
    if projection is None:
        layer = tensors.linear(f"{prefix}text_projection")
        projection, bias = layer.weight.T, layer.bias
    return Transformer(
        embedding=WordEmbedding(vocabulary, tensors.take(f"{prefix}positional_embedding")),
        ln_pre=None,
        blocks=_blocks(tensors, f"{prefix}transformer.resblocks", config.eps),
        ln_post=tensors.norm(f"{prefix}ln_final", config.eps),
        projection=projection,
        projection_bias=bias,
        **config.of_transformer(),
    )


def _blocks(tensors: BorrowedTensors, prefix: str, eps: float) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for i in range(tensors.count(prefix)):
        p = f"{prefix}.{i}"
        qkv = Linear(tensors.take(f"{p}.attn.in_proj_weight"), tensors.maybe(f"{p}.attn.in_proj_bias"))
        query, key, value = split_qkv(qkv)
        blocks.append(
            Block(
                ln1=tensors.norm(f"{p}.ln_1", eps),
                query=query,
                key=key,
                value=value,
                qkv=qkv,
                out=tensors.linear(f"{p}.attn.out_proj"),
                ln2=tensors.norm(f"{p}.ln_2", eps),
                up=tensors.linear(f"{p}.mlp.c_fc"),
                down=tensors.linear(f"{p}.mlp.c_proj"),
                scale_attention=tensors.maybe(f"{p}.ls_1.gamma"),
                scale_mlp=tensors.maybe(f"{p}.ls_2.gamma"),
            )
        )
    return tuple(blocks)


def _image_config(visual: Any) -> TowerConfig:
    if visual.pool_type not in ("tok", "avg") or visual.attn_pool is not None:
        pool = "attention pooling" if visual.attn_pool is not None else f"pool_type={visual.pool_type!r}"
        raise unsupported(f"an image tower with {pool}")
    return _config(
        visual.transformer,
        pool="class" if visual.pool_type == "tok" else "mean",
        pool_before_norm=bool(visual.final_ln_after_pool),
        grid=tuple(visual.grid_size),
    )


def _text_config(model: Any) -> TowerConfig:
    text = model.text if hasattr(model, "text") else model
    if hasattr(model, "text") and type(text).__name__ != "TextTransformer":
        raise unsupported(f"the text tower {type(text).__name__}")
    if getattr(text, "use_pad_mask", False):
        raise unsupported("a text tower with a padding mask")
    pool = str(getattr(text, "text_pool_type", None) or text.pool_type)
    if pool not in ("first", "last", "argmax", "eos"):
        raise unsupported(f"a text tower with pool_type={pool!r}")
    return _config(
        text.transformer,
        pool=pool,
        causal=text.attn_mask is not None,
        eos=getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None),
    )


def _config(transformer: Any, **rest: Any) -> TowerConfig:
    block = transformer.resblocks[0]
    if not hasattr(block.mlp, "gelu"):
        raise unsupported(f"blocks of type {type(block).__name__} with another MLP")
    return TowerConfig(heads=block.attn.num_heads, activation=_activation(block.mlp.gelu), eps=block.ln_1.eps, **rest)


def _activation(module: nn.Module) -> Activation:
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    raise unsupported(f"the activation {name}; GELU and QuickGELU are supported")


def _embedding(encoded: Any) -> Tensor:
    """Take the embedding from what an encoder of open_clip returns: some return a tuple that begins with it."""
    return encoded[0] if isinstance(encoded, tuple) else encoded
