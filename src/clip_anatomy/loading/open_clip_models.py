"""Models that open_clip names or saved, and OpenAI's own state dicts, opened with open_clip's code."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.errors import BadCheckpoint, BadSpec, MissingExtra
from clip_anatomy.loading.checkpoint import RESNET_MARK, check_sizes, is_openai, read_state, strip_marks
from clip_anatomy.loading.host import HostInputs, LoadedModel
from clip_anatomy.loading.open_clip_inputs import (
    configured_tokenizer,
    open_clip_ids,
    open_clip_pixels,
    open_clip_preprocess,
    published_preprocess,
)
from clip_anatomy.loading.open_clip_resnet import openai_resnet
from clip_anatomy.loading.tokenizer import open_clip_tokenizer


def need_open_clip() -> Any:
    """Import open_clip, or raise MissingExtra."""
    try:
        import open_clip
    except ImportError as e:
        raise MissingExtra("open_clip", "open-clip") from e
    return open_clip


def _suggestion(name: str, names: list[str]) -> str:
    """Suggest the names nearest to a misspelt one, or nothing."""
    nearest = get_close_matches(name, names, n=3, cutoff=0.4)
    return f" Did you mean {', '.join(nearest)}?" if nearest else ""


def tagged_spec(name: str, tag: str = "") -> str:
    """Give a spec that opens an open_clip model of this name, with this tag or its first one; "" where open_clip has no such name.

    Weights trained with QuickGELU need the config of that name.

    Example:
        >>> tagged_spec("ViT-B-32", "openai"), tagged_spec("ViT-B-32-quickgelu"), tagged_spec("nonsense")
        ('open_clip:ViT-B-32-quickgelu/openai', 'open_clip:ViT-B-32-quickgelu/openai', '')
    """
    open_clip = need_open_clip()
    config = open_clip.get_model_config(name) or {}
    tags = open_clip.list_pretrained_tags_by_model(name) if config else []
    if not tags or (tag and tag not in tags):
        return ""
    tag = tag or tags[0]
    if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu") and not config.get("quick_gelu"):
        name = f"{name}-quickgelu"
    return f"open_clip:{name}/{tag}"


def open_clip_named(rest: str, weights: Path | None) -> LoadedModel:
    """Open open_clip:NAME/TAG or open_clip:hf-hub:ORG/NAME, or open_clip:NAME with a local checkpoint; `rest` is what follows the colon."""
    open_clip = need_open_clip()
    if rest.startswith("hf-hub:"):
        if weights is not None:
            raise BadSpec(f"'open_clip:{rest}' brings its own weights. Type it without weights={str(weights)!r}")
        return _from_hub(rest, rest, None)
    name, _, tag = rest.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        hint = _suggestion(name, open_clip.list_models())
        raise BadSpec(f"open_clip has no model {name!r}.{hint} All names: open_clip.list_models()")
    if weights is None and not tag:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise BadSpec(
            f"open_clip:{name} names no weights. Type open_clip:{name}/TAG with one of: {', '.join(tags) or '(none published)'}; "
            "or weights=FILE"
        )
    if weights is not None:
        preprocess = published_preprocess(name, tag, weights)
        if tag:
            _check_tag(open_clip, name, tag, config)
        return open_clip_file(name, config, preprocess, weights, spec=name)
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise BadSpec(
            f"open_clip:{name} has no weights {tag!r}.{_suggestion(tag, tags)} "
            f"Type open_clip:{name}/TAG with one of: {', '.join(tags) or '(none published)'}"
        )
    _check_tag(open_clip, name, tag, config)
    return _from_hub(rest, name, tag)


def _from_hub(rest: str, name: str, tag: str | None) -> LoadedModel:
    open_clip = need_open_clip()
    try:
        model = open_clip.create_model(name, pretrained=tag)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as e:
        kept = (
            "a folder with its files"
            if tag is None
            else f"load('open_clip:{rest}', weights=FILE), which keeps the preprocessing published with them"
        )
        raise BadCheckpoint(
            f"open_clip could not load {rest!r}: {str(e).rstrip('. ')}. Without a network, type: {kept}"
        ) from e
    configured, size = model.visual.preprocess_cfg, model.visual.image_size
    return LoadedModel(
        model,
        open_clip_tokenizer(tokenizer, tokenizer.context_length),
        open_clip_preprocess(configured, size),
        HostInputs(open_clip_pixels(configured, size), tokenizer),
    )


def _check_tag(open_clip: Any, name: str, tag: str, config: Mapping[str, Any]) -> None:
    wants = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    check_activation(wants, bool(config.get("quick_gelu", False)), name, f"the weights {tag!r}", tag=tag)


def check_activation(wants_quick: bool, has_quick: bool, name: str, what: str, *, tag: str = "") -> None:
    """Refuse weights under the other GELU: the model would run, and be quietly wrong."""
    if wants_quick == has_quick:
        return
    other = name.removesuffix("-quickgelu") if has_quick else f"{name}-quickgelu"
    kind = {True: "QuickGELU", False: "GELU"}
    instead = f'"quick_gelu": {str(wants_quick).lower()} in its config'
    if need_open_clip().get_model_config(other) is not None:
        instead = f"open_clip:{other}/{tag}" if tag else f"open_clip:{other}"
    raise BadCheckpoint(
        f"{what} were trained with {kind[wants_quick]}, but the config {name!r} uses {kind[has_quick]}. Type: {instead}"
    )


def open_clip_file(
    name: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    weights: Path,
    *,
    folder: Path | None = None,
    spec: str = "",
) -> LoadedModel:
    """Open a checkpoint under a config; OpenAI's own weights are held to their QuickGELU.

    Args:
        name: of the model, for messages.
        config: open_clip's `model_cfg`.
        preprocess: open_clip's `preprocess_cfg`.
        weights: the checkpoint.
        folder: where tokenizer files are looked for.
        spec: by which open_clip itself finds this configuration, so that its tokenizer can be compared with ours; "" if it cannot.
    """
    state = read_state(weights)
    if is_openai(state):
        check_activation(True, bool(config.get("quick_gelu", False)), name, f"OpenAI's own weights in {weights.name}")
    state = _one_table(strip_marks(state))
    return _from_state(
        name, _with_context_of(state, config), preprocess, state, file_name=weights.name, folder=folder, spec=spec
    )


def _one_table(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give Long-CLIP's two tables of word positions as the one that its forward adds up: 20 rows of the first, the rest of the second.

    (Zhang et al., "Long-CLIP: Unlocking the Long-Text Capability of CLIP", ECCV 2024, §3.1.)
    """
    tensors = dict(state)
    stretched = tensors.pop("positional_embedding_res", None)
    if stretched is not None and "positional_embedding" in tensors:
        tensors["positional_embedding"] = torch.cat([tensors["positional_embedding"][:20], stretched[20:]])
    return tensors


def _with_context_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a config the context of the weights' own table of word positions: Long-CLIP's 248 stay 248."""
    table, text = state.get("positional_embedding", state.get("text.positional_embedding")), config.get("text_cfg", {})
    if table is None:
        return config
    return {**config, "text_cfg": {**text, "context_length": len(table) - bool(text.get("embed_cls"))}}


def _from_state(
    name: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    file_name: str,
    folder: Path | None = None,
    spec: str = "",
) -> LoadedModel:
    try:
        model = open_clip_model(config)
    except (TypeError, KeyError, AssertionError) as e:
        raise BadCheckpoint(f"the config of {name} is not one of open_clip's ({e}).") from e
    except OSError as e:  # a text tower of the hub, whose own configuration is asked for there
        hub = config.get("text_cfg", {}).get("hf_model_name")
        raise BadCheckpoint(
            f"the text tower of {name} is {hub!r} of the Hugging Face hub, whose configuration is not on this machine. It is fetched with "
            "'with clip_anatomy.allow_network():' around it"
        ) from e
    _load_strictly(model, state, f"{file_name} as {name}")
    visual: Any = model.visual
    size = getattr(visual, "image_size", config["vision_cfg"].get("image_size", 224))
    text = config.get("text_cfg", {})
    context = int(text.get("context_length") or 77)
    return LoadedModel(
        model,
        configured_tokenizer(text, folder),
        open_clip_preprocess(preprocess, size),
        HostInputs(open_clip_pixels(preprocess, size), open_clip_ids(spec, context) if spec else None),
    )


def open_clip_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the model of a config with random weights, as open_clip's own factory does."""
    open_clip = need_open_clip()
    check_sizes(config, "the model")
    known = {k: v for k, v in config.items() if k not in ("custom_text", "preprocess_cfg", "model_cfg")}
    known["vision_cfg"] = {k: v for k, v in config["vision_cfg"].items() if k != "timm_model_pretrained"}
    known["text_cfg"] = {
        **config["text_cfg"],
        **({"hf_model_pretrained": False} if "hf_model_name" in config["text_cfg"] else {}),
    }
    if "multimodal_cfg" in config:
        return open_clip.CoCa(**known)
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**known)


def _load_strictly(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict whose names and shapes must all fit, or raise BadCheckpoint naming the first that do not."""
    want = model.state_dict()
    got = {k: v for k, v in state.items() if k in want or not k.endswith(("position_ids", "attn_mask"))}
    # A counter of the training, which some tools drop on saving; nothing reads it.
    got |= {k: v for k, v in want.items() if k.endswith("num_batches_tracked") and k not in got}
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


def openai_file(state: dict[str, Tensor], path: Path) -> LoadedModel:
    """Open OpenAI's own state dict, its architecture read off the shapes: heads are 64 wide, the activation is QuickGELU (Radford et al. 2021)."""
    text_width = state["ln_final.weight"].shape[0]
    config = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": openai_resnet(state) if RESNET_MARK in state else _openai_vit(state),
        "text_cfg": {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": len(state["token_embedding.weight"]),
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": _depth(state, "transformer.resblocks."),
        },
    }
    return _from_state(path.stem, config, {}, strip_marks(state), file_name=path.name)


def _openai_vit(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, patch = state["visual.conv1.weight"].shape[0], state["visual.conv1.weight"].shape[-1]
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    return {
        "image_size": grid * patch,
        "layers": _depth(state, "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch,
    }


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(k.removeprefix(prefix).split(".")[0]) for k in state if k.startswith(prefix))
