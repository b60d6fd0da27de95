"""From a spec, a folder, a file or a live object to a host library's model with tokenizer and preprocessing."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from clip_anatomy.errors import BadCheckpoint, BadSpec, MissingExtra, reading
from clip_anatomy.files import path_of
from clip_anatomy.loading.checkpoint import RESNET_MARK, has_open_clip_names, is_openai, read_json, read_state
from clip_anatomy.loading.host import HostInputs, LoadedModel
from clip_anatomy.loading.image_encoders import ENCODERS, encoder_inputs
from clip_anatomy.loading.live_models import kind_of
from clip_anatomy.loading.open_clip_inputs import open_clip_pixels, open_clip_preprocess
from clip_anatomy.loading.open_clip_models import open_clip_file, open_clip_named, openai_file, tagged_spec
from clip_anatomy.loading.tokenizer import default_tokenizer, own_tokenizer
from clip_anatomy.loading.transformers_hosts import context_of, tower_configs
from clip_anatomy.loading.transformers_models import no_foreign_code, transformers_named
from clip_anatomy.loading.transformers_preprocess import preprocess_of
from clip_anatomy.network import reaching

FORMS = (
    "demo | open_clip:NAME/TAG | open_clip:NAME or open_clip:NAME/TAG with weights=FILE | "
    "open_clip:hf-hub:ORG/NAME | hf:ORG/NAME | a folder or file saved by open_clip or "
    "transformers | a live model object"
)

OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt")


def model_from(name: str, weights: str | Path | None) -> LoadedModel:
    """Open what a spec or a path names.

    Args:
        name: "open_clip:…", "hf:…", a folder or a file.
        weights: a checkpoint file for "open_clip:NAME".

    Raises:
        BadSpec: it names nothing.
        BadCheckpoint: no such file, or one that holds no model.
    """
    of_hub = weights is None and name.startswith(("open_clip:", "hf:"))
    local = (
        "It holds no model that can be read, or names files of a hub that are not on this machine: these are fetched with "
        "'with clip_anatomy.allow_network():' around it"
    )
    with reaching(requested=of_hub), no_foreign_code(), reading(f"the model {name}", local, BadCheckpoint):
        return _model_of(name, weights)


def _model_of(name: str, weights: str | Path | None) -> LoadedModel:
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip" and rest.startswith("local-dir:"):
        return _from_folder(path_of(rest.removeprefix("local-dir:")))
    if scheme == "open_clip" and rest:
        return open_clip_named(rest, None if weights is None else Path(weights))
    if scheme == "hf" and rest:
        return transformers_named(rest)
    path = path_of(name)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_file(path)
    meant = _meant(name)
    if path.suffix in {".pt", ".pth", ".bin", ".safetensors"} or len(path.parts) > 1:
        raise BadCheckpoint(f"there is no file or folder {name!r}. Type {meant or f'one of: {FORMS}'}")
    raise BadSpec(f"model {name!r} is not known. Type {meant or f'one of: {FORMS}'}")


def _meant(name: str) -> str:
    """Give the spec that a name without its scheme may stand for: open_clip's NAME/TAG or NAME, or ORG/NAME; else ""."""
    first, _, rest = name.partition("/")
    with suppress(MissingExtra):
        if known := tagged_spec(first, rest):
            return known
    return f"hf:{name}" if re.fullmatch(r"[\w-]+/[\w.-]*clip[\w.-]*", name, re.IGNORECASE) else ""


def live_model(module: nn.Module, tokenizer: Any) -> LoadedModel:
    """Find tokenizer and preprocessing of a model object that the user built; `tokenizer` is the user's, or None."""
    if kind_of(module, ENCODERS) is not None:
        return encoder_inputs(module)
    visual: Any = getattr(module, "visual", None)
    if visual is None:  # transformers', or a subclass of it
        config: Any = module.config
        words = tower_configs(config).get("text")
        vocabulary, context = (0, 0) if words is None else (words.vocab_size, context_of(words))
        preprocess, pixels = preprocess_of(config)
    else:
        text: Any = getattr(module, "text", module)
        vocabulary, context = text.vocab_size, text.context_length
        configured = getattr(visual, "preprocess_cfg", None)
        preprocess = open_clip_preprocess(configured, visual.image_size)
        pixels = open_clip_pixels(configured, visual.image_size)
    inputs = HostInputs(pixels)
    if tokenizer is not None:
        return LoadedModel(module, own_tokenizer(tokenizer, context), preprocess, inputs)
    with suppress(MissingExtra):
        return LoadedModel(module, default_tokenizer(vocabulary, context), preprocess, inputs)
    return LoadedModel(module, None, preprocess, inputs)


def _from_folder(path: Path) -> LoadedModel:
    """Open a folder in the format of open_clip (open_clip_config.json) or transformers (config.json)."""
    config = path / "open_clip_config.json"
    weights = [path / name for name in OPEN_CLIP_WEIGHTS if (path / name).is_file()]
    if config.is_file() and weights:
        return _from_open_clip_config(config, str(path), weights[0])
    if (path / "config.json").is_file():  # some hub folders carry both libraries' configs and the weights of one
        return transformers_named(path)
    if config.is_file():
        raise BadCheckpoint(f"{path} has open_clip_config.json but none of {', '.join(OPEN_CLIP_WEIGHTS)} beside it.")
    if (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        raise BadCheckpoint(
            f"{path} holds an adapter (PEFT){f' of {base}' if base else ''}, without the model. Type in Python: "
            f"load(peft.PeftModel.from_pretrained(MODEL, {str(path)!r}).merge_and_unload()), MODEL the live one it was trained on"
        )
    inside = sorted(
        one.parent for one in path.glob("*/config.json")
    )  # a pipeline: IP-Adapter's image_encoder, a text_encoder
    if inside:
        ways = " or ".join(str(one) for one in inside[:4])
        raise BadCheckpoint(f"{path} holds several models, each in a folder of its own. Type one of them: {ways}")
    raise BadCheckpoint(
        f"{path} holds neither open_clip_config.json nor config.json. Type a folder that open_clip or transformers saved."
    )


def _from_file(path: Path) -> LoadedModel:
    """Open one weights file: OpenAI's own state dict, or open_clip's with a JSON config of the same name beside it."""
    if path.suffix.lower() == ".json":
        raise BadCheckpoint(f"{path} is a config, without weights. Type the folder that both are in: {path.parent}")
    beside = [path.with_suffix(".json"), path.parent / "open_clip_config.json"]
    config_path = next((p for p in beside if p.is_file()), None)
    if config_path is not None:
        return _from_open_clip_config(config_path, config_path.stem, path)
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


def _from_open_clip_config(config: Path, name: str, weights: Path) -> LoadedModel:
    content = read_json(config)
    known = config.name == "open_clip_config.json" and "model_cfg" in content
    return open_clip_file(
        name,
        content.get("model_cfg", content),
        content.get("preprocess_cfg", {}),
        weights,
        folder=config.parent,
        spec=f"local-dir:{config.parent}" if known else "",
    )
