"""Where models come from: each library's names and saved formats, opened with that library's own code."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.errors import BadCheckpoint, BadSpec, MissingExtra, UnsupportedModel
from clip_anatomy.model.checkpoint import is_openai, read_json, read_state, strip_marks
from clip_anatomy.model.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.model.text import Tokenizer, default_tokenizer, open_clip_tokenizer, transformers_tokenizer


@dataclass(frozen=True)
class Opened:
    """A host module, and what goes with it."""

    module: nn.Module | None
    tokenizer: Tokenizer | None
    preprocess: Preprocess


def need_open_clip() -> Any:
    """Import open_clip, or raise MissingExtra."""
    try:
        import open_clip
    except ImportError as e:
        raise MissingExtra("open_clip", "open-clip") from e
    return open_clip


def need_transformers() -> Any:
    """Import transformers, or raise MissingExtra."""
    try:
        import transformers
    except ImportError as e:
        raise MissingExtra("transformers", "transformers") from e
    return transformers


def live(module: nn.Module, tokenizer: Any) -> Opened:
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
        return Opened(module, _wrap(tokenizer), preprocess)
    if text is not None:
        vocabulary, context = text.vocab_size, text.max_position_embeddings
    else:
        inner: Any = getattr(module, "text", module)
        vocabulary, context = inner.vocab_size, inner.context_length
    try:
        return Opened(module, default_tokenizer(vocabulary, context), preprocess)
    except MissingExtra:
        return Opened(module, None, preprocess)


def _wrap(tokenizer: Any) -> Tokenizer:
    if hasattr(tokenizer, "pieces"):
        return tokenizer
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return transformers_tokenizer(tokenizer, min(int(tokenizer.model_max_length), 77))
    return open_clip_tokenizer(tokenizer)


def open_clip_named(rest: str, weights: Path | None) -> Opened:
    """open_clip:NAME/TAG from the hub, or open_clip:NAME with a local checkpoint."""
    open_clip = need_open_clip()
    name, _, tag = rest.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        near = _near(name, open_clip.list_models())
        raise BadSpec(f"open_clip has no model {name!r}.{near} All names: open_clip.list_models()")
    if weights is None and not tag:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise BadSpec(
            f"open_clip:{name} names no weights. Type open_clip:{name}/TAG with one of: {', '.join(tags) or '(none published)'}; "
            "or weights=FILE"
        )
    if weights is not None and tag:
        raise BadSpec(f"both the tag {tag!r} and weights={str(weights)!r} were given. Type one of them.")
    if weights is not None:
        return _open_clip_file(open_clip, name, config, {}, weights)
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise BadSpec(
            f"open_clip:{name} has no weights {tag!r}.{_near(tag, open_clip.list_pretrained_tags_by_model(name))}"
        )
    wants = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    check_activation(wants, bool(config.get("quick_gelu", False)), name, f"the weights {tag!r}")
    try:
        model = open_clip.create_model(name, pretrained=tag)
    except (OSError, RuntimeError) as e:
        raise BadCheckpoint(
            f"open_clip could not load {rest!r}: {e}. Without a network, type: load('open_clip:{name}', weights=FILE)"
        ) from e
    tokenizer = open_clip_tokenizer(open_clip.get_tokenizer(name))
    return Opened(model, tokenizer, open_clip_preprocess(model.visual.preprocess_cfg, model.visual.image_size))


def check_activation(wants_quick: bool, has_quick: bool, name: str, what: str) -> None:
    """Refuse weights under the other GELU: the model would run, and be quietly wrong."""
    if wants_quick == has_quick:
        return
    other = name.removesuffix("-quickgelu") if has_quick else f"{name}-quickgelu"
    kind = {True: "QuickGELU", False: "GELU"}
    raise BadCheckpoint(
        f"{what} were trained with {kind[wants_quick]}, but the config {name!r} uses {kind[has_quick]}. "
        f"Type: open_clip:{other}"
    )


def _open_clip_file(
    open_clip: Any, name: str, config: Mapping[str, Any], preprocess: Mapping[str, Any], weights: Path
) -> Opened:
    state = read_state(weights)
    if is_openai(state):
        check_activation(True, bool(config.get("quick_gelu", False)), name, f"OpenAI's own weights in {weights.name}")
    return _open_clip_state(open_clip, name, config, preprocess, strip_marks(state), file_name=weights.name)


def _open_clip_state(
    open_clip: Any,
    name: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    file_name: str,
) -> Opened:
    known = {k: v for k, v in config.items() if k not in ("custom_text", "preprocess_cfg", "model_cfg")}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    if "multimodal_cfg" in config:
        raise UnsupportedModel(f"{name} is a CoCa. Use a plain CLIP-ViT, e.g. open_clip:ViT-B-32.")
    try:
        model: nn.Module = kind(**known)
    except (TypeError, KeyError, AssertionError) as e:
        raise BadCheckpoint(f"the config of {name} is not one of open_clip's ({e}).") from e
    load_strictly(model, state, f"{file_name} as {name}")
    visual: Any = model.visual
    size = getattr(visual, "image_size", config["vision_cfg"].get("image_size", 224))
    text_cfg = config.get("text_cfg", {})
    tokenizer: Tokenizer | None = None
    if "hf_tokenizer_name" not in text_cfg:
        tokenizer = default_tokenizer(text_cfg.get("vocab_size", 49408), text_cfg.get("context_length", 77))
    return Opened(model, tokenizer, open_clip_preprocess(preprocess, size))


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict whose names and shapes must all fit, or raise BadCheckpoint naming the first that do not."""
    want = model.state_dict()
    got = {k: v for k, v in state.items() if k in want or not k.endswith(("position_ids", "attn_mask"))}
    missing, extra = sorted(want.keys() - got.keys()), sorted(got.keys() - want.keys())
    shapes = [
        f"{k} is {list(got[k].shape)}, {list(want[k].shape)} was expected"
        for k in want.keys() & got.keys()
        if got[k].shape != want[k].shape
    ]
    wrong = [*(f"{k} is missing" for k in missing), *(f"{k} is not part of it" for k in extra), *sorted(shapes)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise BadCheckpoint(f"{what}: {'; '.join(wrong[:3])}{more}. Check that config and weights belong together.")
    model.load_state_dict(got)


def transformers_named(name: str | Path) -> Opened:
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
    return Opened(model, tokenizer, transformers_preprocess(processor, config.vision_config.image_size))


def _quiet(action: Any, what: str) -> Any:
    try:
        return action()
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise BadCheckpoint(f"{what}: {str(e).splitlines()[0]}") from e


def folder(path: Path) -> Opened:
    """A folder in the format of open_clip (open_clip_config.json) or transformers (config.json)."""
    if (path / "open_clip_config.json").is_file():
        config = read_json(path / "open_clip_config.json")
        for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"):
            if (path / name).is_file():
                model_cfg = config.get("model_cfg", config)
                return _open_clip_file(
                    need_open_clip(), str(path), model_cfg, config.get("preprocess_cfg", {}), path / name
                )
        raise BadCheckpoint(f"{path} has open_clip_config.json but no open_clip_model.safetensors beside it.")
    if (path / "config.json").is_file():
        return transformers_named(path)
    raise BadCheckpoint(
        f"{path} holds neither open_clip_config.json nor config.json. Type a folder that open_clip or transformers saved."
    )


def file(path: Path) -> Opened:
    """One weights file: OpenAI's own state dict, or open_clip's with a JSON config of the same name beside it."""
    beside = [path.with_suffix(".json"), path.parent / "open_clip_config.json"]
    config_path = next((p for p in beside if p.is_file()), None)
    if config_path is not None:
        config = read_json(config_path)
        model_cfg = config.get("model_cfg", config)
        return _open_clip_file(need_open_clip(), config_path.stem, model_cfg, config.get("preprocess_cfg", {}), path)
    state = read_state(path)
    if is_openai(state):
        return _openai(state, path)
    if "visual.class_embedding" in state:
        raise BadCheckpoint(
            f"{path} holds open_clip weights, but no config says which architecture and activation. "
            f"Type: load('open_clip:ViT-B-32', weights='{path.name}') with its name, or put {path.stem}.json beside it"
        )
    if "vision_model.embeddings.class_embedding" in state:
        raise BadCheckpoint(f"{path} holds transformers weights. Type the folder that has config.json beside them.")
    some = ", ".join(sorted(state)[:3])
    raise BadCheckpoint(f"{path} holds no CLIP weights (its tensors: {some} …).")


def _openai(state: dict[str, Tensor], path: Path) -> Opened:
    """OpenAI's architecture, read off the shapes; heads are 64 wide, the activation is QuickGELU (Radford et al. 2021)."""
    open_clip = need_open_clip()
    width, patch = state["visual.conv1.weight"].shape[0], state["visual.conv1.weight"].shape[-1]
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    text_width = state["ln_final.weight"].shape[0]
    config = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch,
            "layers": _depth(state, "visual.transformer.resblocks."),
            "width": width,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": len(state["token_embedding.weight"]),
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": _depth(state, "transformer.resblocks."),
        },
    }
    return _open_clip_state(open_clip, path.stem, config, {}, strip_marks(state), file_name=path.name)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(k.removeprefix(prefix).split(".")[0]) for k in state if k.startswith(prefix))


def open_clip_preprocess(config: Mapping[str, Any] | None, size: int | tuple[int, int]) -> Preprocess:
    """Preprocessing from open_clip's preprocess_cfg; its defaults where it says nothing."""
    c = dict(config or {})
    side = c.get("size", size)
    return Preprocess(
        size=(side, side) if isinstance(side, int) else (int(side[0]), int(side[1])),
        mean=tuple(c.get("mean", OPENAI_MEAN)),
        std=tuple(c.get("std", OPENAI_STD)),
        resize=c.get("resize_mode", "shortest"),
        interpolation=c.get("interpolation", "bicubic"),
        fill=c.get("fill_color", 0),
    )


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


def _near(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, names, n=3, cutoff=0.4)
    return f" Did you mean {', '.join(found)}?" if found else ""
