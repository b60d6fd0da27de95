"""Where models come from when they are handed over: a live object, a folder, a file."""

from pathlib import Path
from typing import Any

from torch import nn

from clip_anatomy.errors import BadCheckpoint, MissingExtra
from clip_anatomy.loading.checkpoint import RESNET_MARK, has_open_clip_names, is_openai, read_json, read_state
from clip_anatomy.loading.loaded_model import LoadedModel, need_open_clip
from clip_anatomy.loading.open_clip_models import open_clip_file, open_clip_preprocess, openai_file
from clip_anatomy.loading.tokenizer import Tokenizer, default_tokenizer, open_clip_tokenizer, transformers_tokenizer
from clip_anatomy.loading.transformers_models import transformers_named, transformers_preprocess


def live(module: nn.Module, tokenizer: Any) -> LoadedModel:
    """Tokenizer and preprocessing of a model object that the user built."""
    visual: Any = getattr(module, "visual", None)
    if type(module).__module__.startswith("transformers"):
        config: Any = module.config
        text: Any = config.text_config
        preprocess = transformers_preprocess({}, config.vision_config.image_size)
    else:
        text = None
        preprocess = open_clip_preprocess(getattr(visual, "preprocess_cfg", None), visual.image_size)
    if tokenizer is not None:
        return LoadedModel(module, _wrap(tokenizer), preprocess)
    if text is not None:
        vocabulary, context = text.vocab_size, text.max_position_embeddings
    else:
        inner: Any = getattr(module, "text", module)
        vocabulary, context = inner.vocab_size, inner.context_length
    try:
        return LoadedModel(module, default_tokenizer(vocabulary, context), preprocess)
    except MissingExtra:
        return LoadedModel(module, None, preprocess)


def _wrap(tokenizer: Any) -> Tokenizer:
    if hasattr(tokenizer, "pieces"):
        return tokenizer
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return transformers_tokenizer(tokenizer, min(int(tokenizer.model_max_length), 77))
    return open_clip_tokenizer(tokenizer)


def folder(path: Path) -> LoadedModel:
    """A folder in the format of open_clip (open_clip_config.json) or transformers (config.json)."""
    if (path / "open_clip_config.json").is_file():
        config = read_json(path / "open_clip_config.json")
        for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"):
            if (path / name).is_file():
                model_cfg = config.get("model_cfg", config)
                return open_clip_file(
                    need_open_clip(), str(path), model_cfg, config.get("preprocess_cfg", {}), path / name
                )
        raise BadCheckpoint(f"{path} has open_clip_config.json but no open_clip_model.safetensors beside it.")
    if (path / "config.json").is_file():
        return transformers_named(path)
    raise BadCheckpoint(
        f"{path} holds neither open_clip_config.json nor config.json. Type a folder that open_clip or transformers saved."
    )


def file(path: Path) -> LoadedModel:
    """One weights file: OpenAI's own state dict, or open_clip's with a JSON config of the same name beside it."""
    beside = [path.with_suffix(".json"), path.parent / "open_clip_config.json"]
    config_path = next((p for p in beside if p.is_file()), None)
    if config_path is not None:
        config = read_json(config_path)
        model_cfg = config.get("model_cfg", config)
        return open_clip_file(need_open_clip(), config_path.stem, model_cfg, config.get("preprocess_cfg", {}), path)
    state = read_state(path)
    if is_openai(state):
        return openai_file(state, path)
    if has_open_clip_names(state):
        example = "RN50" if RESNET_MARK in state else "ViT-B-32"
        raise BadCheckpoint(
            f"{path} holds open_clip weights, but no config says which architecture and activation. "
            f"Type: load('open_clip:{example}', weights='{path.name}') with its name, or put {path.stem}.json beside it"
        )
    if "vision_model.embeddings.class_embedding" in state:
        raise BadCheckpoint(f"{path} holds transformers weights. Type the folder that has config.json beside them.")
    some = ", ".join(sorted(state)[:3])
    raise BadCheckpoint(f"{path} holds no CLIP weights (its tensors: {some} …).")
