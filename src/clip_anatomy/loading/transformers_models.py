"""transformers' CLIPModel: opened by name or from a folder with transformers' code, and read as towers."""

import contextlib
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.errors import BadCheckpoint, MissingExtra, UnsupportedModel
from clip_anatomy.loading.host import (
    BorrowedTensors,
    Host,
    HostInputs,
    LoadedModel,
    TowerConfig,
    library_version,
    tensors_of,
)
from clip_anatomy.loading.tokenizer import TOKENIZER_FILES, Tokenizer, default_tokenizer, transformers_tokenizer
from clip_anatomy.loading.transformers_preprocess import (
    default_processor,
    processor_pixels,
    read_processor,
    saved_processor,
)
from clip_anatomy.towers.layers import Activation, Block, PatchEmbedding, Pool, WordEmbedding
from clip_anatomy.towers.transformer import Transformer


def transformers_named(name: str | Path) -> LoadedModel:
    """Open hf:ORG/NAME, or a folder that transformers saved.

    Raises:
        MissingExtra: transformers is not installed.
        UnsupportedModel: another kind of model than CLIPModel.
        BadCheckpoint: config or weights cannot be read, or do not fit each other.
    """
    try:
        import transformers
    except ImportError as e:
        raise MissingExtra("transformers", "transformers") from e
    config = _quiet(
        lambda: transformers.AutoConfig.from_pretrained(name, trust_remote_code=False),
        f"transformers could not read {name}",
    )
    if config.model_type != "clip":
        raise UnsupportedModel(
            f"{name} is a transformers model of type {config.model_type!r}; 'clip' was expected. "
            "Use a CLIPModel, e.g. hf:openai/clip-vit-base-patch32."
        )
    model, report = _quiet(
        lambda: transformers.CLIPModel.from_pretrained(
            name, output_loading_info=True, dtype=torch.float32, trust_remote_code=False
        ),
        f"transformers could not load {name}",
    )
    wrong = [*report.get("missing_keys", ()), *(str(k) for k in report.get("mismatched_keys", ()))]
    saved_as = [name for name in config.architectures or () if name != "CLIPModel"]
    if wrong and saved_as:
        raise UnsupportedModel(
            f"{name} holds a {saved_as[0]}, which lacks parts of a CLIP ({', '.join(sorted(wrong)[:2])} …). "
            "Type the CLIPModel that it was made from, e.g. hf:openai/clip-vit-base-patch32"
        )
    if wrong:
        raise BadCheckpoint(f"{name}: the weights lack or misfit {', '.join(sorted(wrong)[:3])}. Save the model again.")
    context = config.text_config.max_position_embeddings
    processor = saved_processor(name) or default_processor(config)
    inputs = HostInputs(partial(processor_pixels, processor))
    tokenizer: Tokenizer | None = None
    # Without these files transformers makes up a tokenizer with an empty vocabulary instead of failing.
    if not Path(name).is_dir() or any((Path(name) / f).is_file() for f in TOKENIZER_FILES):
        hosts = _quiet(
            lambda: transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False),
            f"transformers could not read the tokenizer of {name}",
        )
        tokenizer = transformers_tokenizer(hosts, context)
        inputs = replace(inputs, ids=partial(hosts, padding=True, truncation=True, max_length=context))
    else:
        with contextlib.suppress(MissingExtra):
            tokenizer = default_tokenizer(config.text_config.vocab_size, context)
    return LoadedModel(model, tokenizer, read_processor(processor), inputs)


@contextlib.contextmanager
def no_foreign_code() -> Generator[None]:
    """Keep transformers, also where open_clip calls it, from asking on standard input whether a model's own code may run: never."""
    if find_spec("transformers") is None:
        yield
        return
    module: Any = import_module("transformers.dynamic_module_utils")
    before, module.TIME_OUT_REMOTE_CODE = module.TIME_OUT_REMOTE_CODE, 0  # seconds that it waits for a "y"
    try:
        yield
    finally:
        module.TIME_OUT_REMOTE_CODE = before


def _quiet(action: Any, what: str) -> Any:
    try:
        return action()
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise BadCheckpoint(f"{what}: {str(e).splitlines()[0]}") from e


def read_transformers(model: Any) -> Host:
    """Read a live CLIPModel.

    Raises:
        UnsupportedModel: an activation that is no GELU, or a tensor is missing or left over.
    """
    image, text = model.config.vision_config, model.config.text_config
    pool: Pool = "argmax" if text.eos_token_id == 2 else "eos"
    tensors = BorrowedTensors(tensors_of(model))
    image_tower = _image_tower(tensors, _config(image, pool="class"))
    text_tower = _text_tower(tensors, _config(text, pool=pool, causal=True, eos=text.eos_token_id))
    tensors.refuse_left_over("transformers CLIPModel")
    return Host(
        library=library_version("transformers"),
        module=model,
        image_tower=image_tower,
        text_tower=text_tower,
        encode_image=lambda pixels: _embedding(model.get_image_features(pixel_values=pixels)),
        encode_text=lambda ids: _embedding(model.get_text_features(input_ids=ids)),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0,
    )


def _image_tower(tensors: BorrowedTensors, config: TowerConfig) -> Transformer:
    positions = tensors.take("vision_model.embeddings.position_embedding.weight")
    projection = tensors.linear("visual_projection")
    return Transformer(
        embedding=PatchEmbedding(
            tensors.take("vision_model.embeddings.patch_embedding.weight"),
            tensors.take("vision_model.embeddings.class_embedding"),
            positions,
            config.grid_of(positions),
            resampling="bicubic",
        ),
        ln_pre=tensors.norm("vision_model.pre_layrnorm", config.eps),  # (sic)
        blocks=_blocks(tensors, "vision_model.encoder.layers", config.eps),
        ln_post=tensors.norm("vision_model.post_layernorm", config.eps),
        projection=projection.weight.T,
        projection_bias=projection.bias,
        **config.of_transformer(),
    )


def _text_tower(tensors: BorrowedTensors, config: TowerConfig) -> Transformer:
    projection = tensors.linear("text_projection")
    return Transformer(
        embedding=WordEmbedding(
            tensors.take("text_model.embeddings.token_embedding.weight"),
            tensors.take("text_model.embeddings.position_embedding.weight"),
        ),
        ln_pre=None,
        blocks=_blocks(tensors, "text_model.encoder.layers", config.eps),
        ln_post=tensors.norm("text_model.final_layer_norm", config.eps),
        projection=projection.weight.T,
        projection_bias=projection.bias,
        **config.of_transformer(),
    )


def _blocks(tensors: BorrowedTensors, prefix: str, eps: float) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for i in range(tensors.count(prefix)):
        p = f"{prefix}.{i}"
        blocks.append(
            Block(
                ln1=tensors.norm(f"{p}.layer_norm1", eps),
                query=tensors.linear(f"{p}.self_attn.q_proj"),
                key=tensors.linear(f"{p}.self_attn.k_proj"),
                value=tensors.linear(f"{p}.self_attn.v_proj"),
                qkv=None,
                out=tensors.linear(f"{p}.self_attn.out_proj"),
                ln2=tensors.norm(f"{p}.layer_norm2", eps),
                up=tensors.linear(f"{p}.mlp.fc1"),
                down=tensors.linear(f"{p}.mlp.fc2"),
                scale_attention=None,
                scale_mlp=None,
            )
        )
    return tuple(blocks)


def _config(config: Any, **rest: Any) -> TowerConfig:
    kinds: dict[str, Activation] = {
        "quick_gelu": "quick_gelu",
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
    }
    if config.hidden_act not in kinds:
        raise UnsupportedModel(f"found the activation {config.hidden_act!r}; supported: {', '.join(kinds)}.")
    return TowerConfig(
        heads=config.num_attention_heads, activation=kinds[config.hidden_act], eps=config.layer_norm_eps, **rest
    )


def _embedding(features: Any) -> Tensor:
    """Take the embedding from what transformers returns: the embedding in version 4, an object that holds it in 5."""
    return features if isinstance(features, Tensor) else features.pooler_output
