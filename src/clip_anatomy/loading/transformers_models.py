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
from clip_anatomy.loading.transformers_towers import image_tower, patches_of, text_tower

TYPES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "metaclip_2": "MetaClip2Model",
    "clipseg": "CLIPSegModel",
}
"""Which class opens a config of which type."""


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
    if config.model_type not in TYPES:
        raise UnsupportedModel(
            f"{name} is a transformers model of type {config.model_type!r}; one of {', '.join(TYPES)} was expected. "
            "Use a CLIPModel, e.g. hf:openai/clip-vit-base-patch32."
        )
    kind: Any = getattr(transformers, TYPES[config.model_type])
    model, report = _quiet(
        lambda: kind.from_pretrained(name, output_loading_info=True, dtype=torch.float32, trust_remote_code=False),
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
    """Read a live model of transformers.

    Raises:
        UnsupportedModel: an activation that is no GELU, or a tensor is missing or left over.
    """
    image, text = model.config.vision_config, model.config.text_config
    tensors = BorrowedTensors(tensors_of(model))
    image, text = image_tower(tensors, image), text_tower(tensors, text)
    tensors.refuse_left_over(f"transformers {type(model).__name__}")
    naflex = model.config.vision_config.model_type == "siglip2_vision_model"

    def encode_image(pixels: Tensor) -> Tensor:
        sized = pixels if naflex else _own_size(pixels, model.config.vision_config)
        given = patches_of(pixels, image.patch[0]) if naflex else {"pixel_values": sized}
        return _embedding(model.get_image_features(**given))

    bias = getattr(model, "logit_bias", None)
    return Host(
        library=library_version("transformers"),
        module=model,
        image_tower=image,
        text_tower=text,
        encode_image=encode_image,
        encode_text=lambda ids: _embedding(model.get_text_features(input_ids=ids)),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
    )


def _own_size(pixels: Tensor, config: Any) -> Tensor:
    """Give pictures back the pixels that no patch covers: transformers asks for its own size, then cuts them off."""
    side, patch = int(config.image_size), int(config.patch_size)
    missing = [side - length if side // patch == length // patch else 0 for length in pixels.shape[-2:]]
    return torch.nn.functional.pad(pixels, (0, missing[1], 0, missing[0])) if any(missing) else pixels


def _embedding(features: Any) -> Tensor:
    """Take the embedding from what transformers returns: the embedding in version 4, an object that holds it in 5."""
    return features if isinstance(features, Tensor) else features.pooler_output
