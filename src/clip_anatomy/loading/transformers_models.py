"""Models of transformers, opened by name or from a folder with transformers' code."""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from clip_anatomy.errors import BadCheckpoint, MissingExtra, UnsupportedModel
from clip_anatomy.loading.checkpoint import check_sizes
from clip_anatomy.loading.host import HostInputs, LoadedModel
from clip_anatomy.loading.tokenizer import TOKENIZER_FILES, Tokenizer, default_tokenizer, transformers_tokenizer
from clip_anatomy.loading.transformers_hosts import CLASSES, context_of, tower_configs
from clip_anatomy.loading.transformers_preprocess import preprocess_of, saved_processor
from clip_anatomy.loading.transformers_vit import APART


def transformers_named(name: str | Path) -> LoadedModel:
    """Open hf:ORG/NAME, or a folder that transformers saved.

    Raises:
        MissingExtra: transformers is not installed.
        UnsupportedModel: a kind of model that has no reader.
        BadCheckpoint: config or weights cannot be read, or do not fit each other.
    """
    try:
        import transformers
    except ImportError as e:
        raise MissingExtra("transformers", "transformers") from e
    config = _quiet(lambda: _config(name), f"transformers could not read {name}")
    check_sizes(config.to_dict(), name)
    kind: Any = getattr(transformers, class_named(config, name))
    model, report = _quiet(lambda: _loaded(kind, name), f"transformers could not load {name}")
    _check_whole(name, config, kind.__name__, report)
    towers = tower_configs(config)
    preprocess, pixels = preprocess_of(config, saved_processor(name) if "image" in towers else None)
    inputs = HostInputs(pixels)
    if "text" not in towers:
        return LoadedModel(model, None, preprocess, inputs)
    context = context_of(towers["text"])
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
            tokenizer = default_tokenizer(towers["text"].vocab_size, context)
    return LoadedModel(model, tokenizer, preprocess, inputs)


def _config(name: str | Path) -> Any:
    """Read a config; towers alone too, of which versions before 5 know the class and not the type."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ValueError:
        config, _ = transformers.PretrainedConfig.get_config_dict(name)
        alone: Any = next(
            (getattr(transformers, one, None) for one in CLASSES.get(config.get("model_type", ""), ())), None
        )
        if alone is None:
            raise
        return alone.config_class.from_pretrained(name)


def _loaded(kind: Any, name: str | Path) -> tuple[Any, Mapping[str, Any]]:
    """Load a saved model, and report what its file lacks; a tower alone under either of the names that its versions gave it.

    Since 5.6 transformers saves towers alone without the `vision_model.` or `text_model.` that earlier ones look for; later ones
    read both.
    """
    options: dict[str, Any] = {"output_loading_info": True, "dtype": torch.float32, "trust_remote_code": False}
    model, report = kind.from_pretrained(name, **options)
    missing, left = set(report["missing_keys"]), report["unexpected_keys"]
    for prefix in ("vision_model.", "text_model."):
        if missing and missing <= {prefix + one for one in left}:
            return kind.from_pretrained(name, key_mapping={"^": prefix}, **options)
    return model, report


def class_named(config: Any, name: object) -> str:
    """Name the class that opens a saved model: the one that it was saved from where that is one of ours, else the first of its type.

    Raises:
        UnsupportedModel: none does.
    """
    known = CLASSES.get(config.model_type, ())
    if known:
        return next((one for one in config.architectures or () if one in known), known[0])
    inside = getattr(getattr(config, "vision_config", None), "model_type", None)
    if inside in CLASSES:
        kind = (config.architectures or ["AutoModel"])[0]
        raise UnsupportedModel(
            f"{name} is a {kind}, a model of another kind around a {CLASSES[inside][0]}. Type in Python: "
            f"load(transformers.{kind}.from_pretrained(...)), which names the attribute of its image tower to pass"
        )
    raise UnsupportedModel(
        f"{name} is a transformers model of type {config.model_type!r}; one of {', '.join(CLASSES)} was expected. "
        "Use a CLIPModel, e.g. hf:openai/clip-vit-base-patch32."
    )


def _check_whole(name: object, config: Any, kind: str, report: Mapping[str, Any]) -> None:
    """Raise where weights are missing that an embedding reads."""
    wrong = [*report.get("missing_keys", ()), *(str(k) for k in report.get("mismatched_keys", ()))]
    wrong = [one for one in wrong if not one.startswith(APART)]
    saved_as = [one for one in config.architectures or () if one != kind]
    if wrong and saved_as:
        raise UnsupportedModel(
            f"{name} holds a {saved_as[0]}, which lacks parts of a {kind} ({', '.join(sorted(wrong)[:2])} …). "
            "Type the model that it was made from, e.g. hf:openai/clip-vit-base-patch32"
        )
    if wrong:
        raise BadCheckpoint(f"{name}: the weights lack or misfit {', '.join(sorted(wrong)[:3])}. Save the model again.")


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
