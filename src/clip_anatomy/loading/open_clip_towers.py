"""open_clip's models as towers, over their own tensors (OpenAI's checkpoints name them the same way)."""

from typing import Any

from torch import Tensor, nn

from clip_anatomy.loading.host import (
    BorrowedTensors,
    Host,
    TowerConfig,
    library_version,
    tensors_of,
    unsupported,
    with_remainder,
)
from clip_anatomy.loading.open_clip_foreign_text import foreign_text
from clip_anatomy.loading.open_clip_resnet import open_clip_resnet
from clip_anatomy.loading.open_clip_timm import open_clip_timm
from clip_anatomy.loading.score_rule import ScoreRule
from clip_anatomy.towers.layers import (
    Activation,
    AttentionPooling,
    Block,
    Linear,
    Norm,
    PatchEmbedding,
    Pool,
    WordEmbedding,
    split_qkv,
)
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer

APART = ("text_decoder.", "visual.attn_pool_contrastive.")  # CoCa's captions: no embedding is made of them
CUSTOM_NORMS = {
    "norm_query": "attn.ln_q",
    "norm_key": "attn.ln_k",
    "norm_mixed": "attn.ln_inner",
    "norm_out": "ln_attn",
    "norm_down": "mlp.ln",
}
"""Norms that blocks of type "custom", whose attention is open_clip's own, may have beside the two of every block."""


def read_open_clip(model: Any) -> Host:
    """Read a live CLIP, CustomTextCLIP or CoCa of open_clip.

    Raises:
        UnsupportedModel: its towers are none that can be split; the message names what was found.
    """
    image_tower, text_tower = towers_of(model)
    return Host(
        library=library_version("open_clip"),
        module=model,
        image_tower=image_tower,
        text_tower=text_tower,
        encode_image=lambda pixels: _embedding(
            model.encode_image(with_remainder(model.visual, pixels), normalize=False)
        ),
        encode_text=lambda ids: _embedding(model.encode_text(ids, normalize=False)),
        rule=ScoreRule(model.logit_scale, getattr(model, "logit_bias", None)),
    )


def towers_of(model: Any) -> tuple[Tower, Tower]:
    """Read image and text tower of a live model, also where its tensors have shapes and no numbers (the meta device)."""
    tensors = BorrowedTensors(tensors_of(model))
    towers = image_tower_of(tensors, model.visual), _read_text(tensors, model)
    tensors.refuse_left_over(f"open_clip {type(model).__name__}", APART)
    return towers


def image_tower_of(tensors: BorrowedTensors, visual: Any) -> Tower:
    """Read an image tower; its tensors are named `visual.…`, as in the whole model."""
    kind = type(visual).__name__
    if kind == "ModifiedResNet":
        return open_clip_resnet(tensors, visual)
    if kind == "TimmModel":
        return open_clip_timm(tensors, visual)
    if kind != "VisionTransformer":
        raise unsupported(f"an image tower ({kind})")
    return _vision(tensors, _image_config(visual), _coca_pool(tensors, visual))


def _read_text(tensors: BorrowedTensors, model: Any) -> Tower:
    text = getattr(model, "text", None)
    if type(text).__name__ == "HFTextEncoder":
        return foreign_text(tensors, model)
    return _text_tower(tensors, _text_config(model), getattr(model, "text", None))


def _coca_pool(tensors: BorrowedTensors, visual: Any) -> tuple[Norm, AttentionPooling] | None:
    """CoCa's attention pool: its norm of the tokens, and what asks: the first of its queries, the others write captions."""
    pool = visual.attn_pool
    if pool is None:
        return None
    if visual.attn_pool_contrastive is not None:
        raise unsupported("an image tower with two attention pools")
    p, attention = "visual.attn_pool", pool.attn
    biases = tensors.maybe(f"{p}.attn.in_proj_bias")
    query, key, value = (None, None, None) if biases is None else biases.chunk(3)
    if attention.in_proj_weight is not None:
        weights = tensors.take(f"{p}.attn.in_proj_weight").chunk(3)
    else:
        weights = [tensors.take(f"{p}.attn.{name}_proj_weight") for name in "qkv"]
    return tensors.norm(f"{p}.ln_k", pool.ln_k.eps), AttentionPooling(
        latent=tensors.take(f"{p}.query")[0],
        ln_latent=tensors.norm(f"{p}.ln_q", pool.ln_q.eps),
        query=Linear(weights[0], query),
        key=Linear(weights[1], key),
        value=Linear(weights[2], value),
        out=tensors.linear(f"{p}.attn.out_proj"),
        heads=int(attention.num_heads),
        norm=tensors.norm("visual.ln_post", visual.ln_post.eps),
    )


def _vision(
    tensors: BorrowedTensors, image: TowerConfig, pool: tuple[Norm, AttentionPooling] | None = None
) -> Transformer:
    positions = tensors.take("visual.positional_embedding")
    ln_post, pooling = (tensors.norm("visual.ln_post", image.eps), None) if pool is None else pool
    return Transformer(
        embedding=PatchEmbedding(
            tensors.take("visual.conv1.weight"),
            tensors.take("visual.class_embedding"),
            positions,
            image.grid_of(positions),
            resampling="bicubic-antialias",
        ),
        ln_pre=tensors.norm("visual.ln_pre", image.eps) if "visual.ln_pre.weight" in tensors else None,
        blocks=_blocks(tensors, "visual.transformer.resblocks", image.eps),
        ln_post=ln_post,
        projection=tensors.maybe("visual.proj"),
        projection_bias=None,
        pooling=pooling,
        **image.of_transformer(),
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
    image_tower = _vision(tensors, image)
    text_tower = _text_tower(tensors, text)
    tensors.refuse_left_over(model)
    return image_tower, text_tower


def _text_tower(tensors: BorrowedTensors, config: TowerConfig, text: Any = None) -> Transformer:
    """Over open_clip's names; `text` is its TextTransformer, where it is one, for what only that has."""
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    vocabulary = tensors.take(f"{prefix}token_embedding.weight")
    projection, bias = tensors.maybe(f"{prefix}text_projection"), None
    if projection is None and f"{prefix}text_projection.weight" in tensors:
        layer = tensors.linear(f"{prefix}text_projection")
        projection, bias = layer.weight.T, layer.bias
    class_token = tensors.maybe(f"{prefix}cls_emb")
    pad, shift = None, 0
    if text is not None and (text.use_pad_mask or class_token is not None):
        pad, shift = int(text.pad_id), int(class_token is not None and not text.correct_cls_mask)
    return Transformer(
        embedding=WordEmbedding(
            vocabulary, tensors.take(f"{prefix}positional_embedding"), class_token, pad=pad, pad_shift=shift
        ),
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
        norms: dict[str, Any] = {
            field: tensors.norm(f"{p}.{name}", eps) if f"{p}.{name}.weight" in tensors else None
            for field, name in CUSTOM_NORMS.items()
        }
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
                **norms,
            )
        )
    return tuple(blocks)


def _image_config(visual: Any) -> TowerConfig:
    if visual.pool_type not in ("tok", "avg") or (visual.attn_pool is not None and visual.pool_type != "tok"):
        raise unsupported(f"an image tower with pool_type={visual.pool_type!r}")
    pool: Pool = "attention" if visual.attn_pool is not None else "class" if visual.pool_type == "tok" else "mean"
    return _config(
        visual.transformer,
        pool=pool,
        pool_before_norm=bool(visual.final_ln_after_pool),
        grid=tuple(visual.grid_size),
    )


def _text_config(model: Any) -> TowerConfig:
    text = model.text if hasattr(model, "text") else model
    if hasattr(model, "text") and type(text).__name__ != "TextTransformer":
        raise unsupported(f"the text tower {type(text).__name__}")
    pool = str(getattr(text, "text_pool_type", None) or text.pool_type)
    if getattr(text, "cls_emb", None) is not None:
        pool = "last"  # the token behind all others
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
