"""A live open_clip or transformers model, read: its facts, its towers, its own encoders for the parity proof.

Nothing of the module is changed: no hooks, no mode, no gradient flags, no buffers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.resnet_weights import open_clip_resnet
from clip_anatomy.loading.transformer_weights import Facts, Names, open_clip_towers, transformers_towers
from clip_anatomy.towers.layers import Activation, Pool
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer

PLAIN = (
    "Plain CLIPs are supported: open_clip's ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14 …, RN50, RN101, RN50x4 … and "
    "transformers' CLIPModel."
)


@dataclass(frozen=True)
class Host:
    """The host library's model: what it is called, what it computes."""

    library: str
    module: nn.Module
    image_tower: Tower
    text_tower: Transformer
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]
    logit_scale: float
    logit_bias: float


def read_host(module: nn.Module) -> Host:
    """Open a live model object.

    Args:
        module: open_clip's CLIP (or CustomTextCLIP with plain towers), or transformers' CLIPModel.

    Returns:
        Host whose towers borrow the module's own parameters.

    Raises:
        UnsupportedModel: anything else; the message names what was found.
    """
    home, name = type(module).__module__.split(".")[0], type(module).__name__
    if home == "transformers" and name == "CLIPModel":
        return _read_transformers(module)
    if home == "open_clip" and name in ("CLIP", "CustomTextCLIP"):
        return _read_open_clip(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModel(
            f"found a TorchScript module ({name}), whose forward cannot be read. "
            "Load it with open_clip.create_model(..., jit=False)."
        )
    raise UnsupportedModel(f"found {home}.{name}. {PLAIN}")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a module by name."""
    return {**dict(module.named_buffers()), **dict(module.named_parameters(remove_duplicate=False))}


def _read_open_clip(model: Any) -> Host:
    visual = model.visual
    found = type(visual).__name__
    if found not in ("VisionTransformer", "ModifiedResNet"):
        what = {"TimmModel": "a timm image tower (SigLIP, EVA, ConvNeXt …)"}
        raise UnsupportedModel(f"found {what.get(found, 'an image tower')} ({found}). {PLAIN}")
    text = model.text if hasattr(model, "text") else model
    if hasattr(model, "text") and type(text).__name__ != "TextTransformer":
        raise UnsupportedModel(f"found the text tower {type(text).__name__}. {PLAIN}")
    if getattr(text, "use_pad_mask", False):
        raise UnsupportedModel(f"found a text tower with a padding mask. {PLAIN}")
    text_pool = str(getattr(text, "text_pool_type", None) or text.pool_type)
    if text_pool not in ("first", "last", "argmax", "eos"):
        raise UnsupportedModel(f"found a text tower with pool_type={text_pool!r}. {PLAIN}")
    text_facts = _open_clip_facts(
        text.transformer,
        pool=text_pool,
        causal=text.attn_mask is not None,
        eos=getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None),
    )
    image_tower, text_tower = _open_clip_pair(model, visual, text_facts)
    bias = getattr(model, "logit_bias", None)
    return Host(
        library=_library("open_clip"),
        module=model,
        image_tower=image_tower,
        text_tower=text_tower,
        encode_image=lambda pixels: _first(model.encode_image(pixels)),
        encode_text=lambda ids: _first(model.encode_text(ids)),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0 if bias is None else float(bias.detach()),
    )


def _open_clip_pair(model: Any, visual: Any, text_facts: Facts) -> tuple[Tower, Transformer]:
    names, called = Names(tensors_of(model)), f"open_clip {type(model).__name__}"
    if type(visual).__name__ == "ModifiedResNet":
        return open_clip_resnet(names, visual, text_facts, found=called)
    if visual.pool_type not in ("tok", "avg") or visual.attn_pool is not None:
        pool = "attention pooling" if visual.attn_pool is not None else f"pool_type={visual.pool_type!r}"
        raise UnsupportedModel(f"found an image tower with {pool}. {PLAIN}")
    image_facts = _open_clip_facts(
        visual.transformer,
        pool="class" if visual.pool_type == "tok" else "mean",
        pool_before_norm=bool(visual.final_ln_after_pool),
        grid=tuple(visual.grid_size),
    )
    return open_clip_towers(names, image_facts, text_facts, found=called)


def _open_clip_facts(transformer: Any, **rest: Any) -> Facts:
    block = transformer.resblocks[0]
    if not hasattr(block.mlp, "gelu"):
        raise UnsupportedModel(f"found blocks of type {type(block).__name__} with another MLP. {PLAIN}")
    return Facts(heads=block.attn.num_heads, activation=_activation(block.mlp.gelu), eps=block.ln_1.eps, **rest)


def _activation(module: nn.Module) -> Activation:
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    raise UnsupportedModel(f"found the activation {name}; GELU and QuickGELU are supported. {PLAIN}")


def _read_transformers(model: Any) -> Host:
    image, text = model.config.vision_config, model.config.text_config
    pool: Pool = "argmax" if text.eos_token_id == 2 else "eos"
    image_tower, text_tower = transformers_towers(
        Names(tensors_of(model)),
        _transformers_facts(image, pool="class"),
        _transformers_facts(text, pool=pool, causal=True, eos=text.eos_token_id),
        found="transformers CLIPModel",
    )
    return Host(
        library=_library("transformers"),
        module=model,
        image_tower=image_tower,
        text_tower=text_tower,
        encode_image=lambda pixels: _pooled(model.get_image_features(pixel_values=pixels)),
        encode_text=lambda ids: _pooled(model.get_text_features(input_ids=ids)),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0,
    )


def _transformers_facts(config: Any, **rest: Any) -> Facts:
    kinds: dict[str, Activation] = {
        "quick_gelu": "quick_gelu",
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
    }
    if config.hidden_act not in kinds:
        raise UnsupportedModel(f"found the activation {config.hidden_act!r}; supported: {', '.join(kinds)}.")
    return Facts(
        heads=config.num_attention_heads, activation=kinds[config.hidden_act], eps=config.layer_norm_eps, **rest
    )


def _first(x: Any) -> Tensor:
    return x[0] if isinstance(x, tuple) else x


def _pooled(x: Any) -> Tensor:
    """transformers 4 returns the embedding, 5 an output object that holds it."""
    return x if isinstance(x, Tensor) else x.pooler_output


def _library(name: str) -> str:
    from importlib.metadata import version

    return f"{name} {version('open_clip_torch' if name == 'open_clip' else name)}"
