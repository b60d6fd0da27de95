"""Models that open_clip names or saved, and OpenAI's own state dicts, opened with open_clip's code."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_anatomy.errors import BadCheckpoint, BadSpec, MissingExtra, UnsupportedModel
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.checkpoint import RESNET_MARK, is_openai, read_state, strip_marks
from clip_anatomy.loading.host import LoadedModel
from clip_anatomy.loading.open_clip_resnet import openai_resnet
from clip_anatomy.loading.tokenizer import Tokenizer, default_tokenizer, open_clip_tokenizer


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


def open_clip_named(rest: str, weights: Path | None) -> LoadedModel:
    """Open open_clip:NAME/TAG from the hub, or open_clip:NAME with a local checkpoint; `rest` is what follows the colon."""
    open_clip = need_open_clip()
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
    if weights is not None and tag:
        raise BadSpec(f"both the tag {tag!r} and weights={str(weights)!r} were given. Type one of them.")
    if weights is not None:
        return open_clip_file(name, config, {}, weights)
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise BadSpec(
            f"open_clip:{name} has no weights {tag!r}.{_suggestion(tag, open_clip.list_pretrained_tags_by_model(name))}"
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
    return LoadedModel(model, tokenizer, open_clip_preprocess(model.visual.preprocess_cfg, model.visual.image_size))


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


def open_clip_file(name: str, config: Mapping[str, Any], preprocess: Mapping[str, Any], weights: Path) -> LoadedModel:
    """Open a checkpoint under a config; OpenAI's own weights are held to their QuickGELU."""
    state = read_state(weights)
    if is_openai(state):
        check_activation(True, bool(config.get("quick_gelu", False)), name, f"OpenAI's own weights in {weights.name}")
    return _from_state(name, config, preprocess, strip_marks(state), file_name=weights.name)


def _from_state(
    name: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    file_name: str,
) -> LoadedModel:
    open_clip = need_open_clip()
    known = {k: v for k, v in config.items() if k not in ("custom_text", "preprocess_cfg", "model_cfg")}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    if "multimodal_cfg" in config:
        raise UnsupportedModel(f"{name} is a CoCa. Use a plain CLIP-ViT, e.g. open_clip:ViT-B-32.")
    try:
        model: nn.Module = kind(**known)
    except (TypeError, KeyError, AssertionError) as e:
        raise BadCheckpoint(f"the config of {name} is not one of open_clip's ({e}).") from e
    _load_strictly(model, state, f"{file_name} as {name}")
    visual: Any = model.visual
    size = getattr(visual, "image_size", config["vision_cfg"].get("image_size", 224))
    text_cfg = config.get("text_cfg", {})
    tokenizer: Tokenizer | None = None
    if "hf_tokenizer_name" not in text_cfg:
        tokenizer = default_tokenizer(text_cfg.get("vocab_size", 49408), text_cfg.get("context_length", 77))
    return LoadedModel(model, tokenizer, open_clip_preprocess(preprocess, size))


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


def open_clip_preprocess(config: Mapping[str, Any] | None, size: int | tuple[int, int]) -> Preprocess:
    """Read the preprocessing from open_clip's preprocess_cfg; its defaults where it says nothing."""
    given = dict(config or {})
    side = given.get("size", size)
    return Preprocess(
        size=(side, side) if isinstance(side, int) else (int(side[0]), int(side[1])),
        mean=tuple(given.get("mean", OPENAI_MEAN)),
        std=tuple(given.get("std", OPENAI_STD)),
        resize=given.get("resize_mode", "shortest"),
        interpolation=given.get("interpolation", "bicubic"),
        fill=given.get("fill_color", 0),
    )
