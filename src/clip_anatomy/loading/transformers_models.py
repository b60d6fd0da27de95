"""Models that transformers names or saved, opened with transformers' code."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clip_anatomy.errors import BadCheckpoint, MissingExtra, UnsupportedModel
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.checkpoint import read_json
from clip_anatomy.loading.loaded_model import LoadedModel, need_transformers
from clip_anatomy.loading.tokenizer import Tokenizer, default_tokenizer, transformers_tokenizer


def transformers_named(name: str | Path) -> LoadedModel:
    """hf:ORG/NAME, or a folder that transformers saved."""
    transformers = need_transformers()
    config = _quiet(lambda: transformers.AutoConfig.from_pretrained(name), f"transformers could not read {name}")
    if config.model_type != "clip":
        raise UnsupportedModel(
            f"{name} is a transformers model of type {config.model_type!r}; 'clip' was expected. "
            "Use a CLIPModel, e.g. hf:openai/clip-vit-base-patch32."
        )
    model, report = _quiet(
        lambda: transformers.CLIPModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32),
        f"transformers could not load {name}",
    )
    wrong = [*report.get("missing_keys", ()), *(str(k) for k in report.get("mismatched_keys", ()))]
    if wrong:
        raise BadCheckpoint(f"{name}: the weights lack or misfit {', '.join(sorted(wrong)[:3])}. Save the model again.")
    context = config.text_config.max_position_embeddings
    tokenizer: Tokenizer | None = None
    # Without these files transformers makes up a tokenizer with an empty vocabulary instead of failing.
    if not Path(name).is_dir() or any((Path(name) / f).is_file() for f in ("tokenizer.json", "vocab.json")):
        tokenizer = transformers_tokenizer(transformers.AutoTokenizer.from_pretrained(name), context)
    else:
        with contextlib.suppress(MissingExtra):
            tokenizer = default_tokenizer(config.text_config.vocab_size, context)
    processor: dict[str, Any] = {}
    saved = Path(name) / "preprocessor_config.json"
    if saved.is_file():
        processor = read_json(saved)
    elif not Path(name).is_dir():
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(name).to_dict()
        except (OSError, ValueError, ImportError):
            processor = {}
    return LoadedModel(model, tokenizer, transformers_preprocess(processor, config.vision_config.image_size))


def _quiet(action: Any, what: str) -> Any:
    try:
        return action()
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise BadCheckpoint(f"{what}: {str(e).splitlines()[0]}") from e


def transformers_preprocess(config: Mapping[str, Any], size: int) -> Preprocess:
    """Preprocessing from preprocessor_config.json; CLIP's own where it says nothing. transformers floors the crop offset."""
    crop = config.get("crop_size", size)
    rows, cols = (crop.get("height", size), crop.get("width", size)) if isinstance(crop, dict) else (crop, crop)
    edge = config.get("size", rows)
    edge = edge.get("shortest_edge", edge.get("height", rows)) if isinstance(edge, dict) else edge
    if edge != min(rows, cols):
        raise UnsupportedModel(
            f"the preprocessor scales the short side to {edge} and crops {rows} × {cols}; equal sizes are supported. "
            "Type: load(..., preprocess=Preprocess(size=(...), mean=..., std=...))"
        )
    return Preprocess(
        size=(rows, cols),
        mean=tuple(config.get("image_mean", OPENAI_MEAN)),
        std=tuple(config.get("image_std", OPENAI_STD)),
        interpolation="bilinear" if config.get("resample", 3) == 2 else "bicubic",
        crop="floor",
    )
