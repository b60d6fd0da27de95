"""What open_clip's own code makes of pictures and texts: tokenizers and preprocessing by configuration, name or folder."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadCheckpoint, BadSpec, reading
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.tokenizer import TOKENIZER_FILES, Tokenizer, default_tokenizer, open_clip_tokenizer


def open_clip_preprocess(config: Mapping[str, Any] | None, size: int | tuple[int, int]) -> Preprocess:
    """Read the preprocessing from open_clip's preprocess_cfg; its defaults where it says nothing."""
    given = {key: value for key, value in (config or {}).items() if value is not None}
    side = given.get("size", size)
    return Preprocess(
        size=(side, side) if isinstance(side, int) else (int(side[0]), int(side[1])),
        mean=tuple(given.get("mean", OPENAI_MEAN)),
        std=tuple(given.get("std", OPENAI_STD)),
        resize=given.get("resize_mode", "shortest"),
        interpolation=given.get("interpolation", "bicubic"),
        fill=given.get("fill_color", 0),
    )


def open_clip_pixels(config: Mapping[str, Any] | None, size: int | tuple[int, int]) -> Callable[[Image.Image], Tensor]:
    """Build open_clip's own transform of the same configuration, for the proof."""
    own: Any = import_module("open_clip.transform")
    merged = own.merge_preprocess_dict({"size": size}, dict(config or {}))
    return own.image_transform_v2(own.PreprocessCfg(**merged), is_train=False)


def published_preprocess(name: str, tag: str, weights: Path) -> Mapping[str, Any]:
    """Find the preprocessing that was published with weights of an open_clip model, for a file of such weights.

    Args:
        name: of the architecture.
        tag: of the weights; "" where none was named: then all weights of this architecture must agree, or the file be called
            as one of them.
        weights: the file.

    Raises:
        BadSpec: no such tag, or weights that want different preprocessing and none named.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise BadSpec(
            f"open_clip:{name} has no weights {tag!r}. Type one of its tags: {', '.join(tags) or '(none published)'}"
        )
    wanted = {one: dict(open_clip.get_pretrained_cfg(name, one)) for one in tags}
    keys = ("mean", "std", "interpolation", "resize_mode", "size", "fill_color")
    pixels = {
        one: {key: settings[key] for key in keys if settings.get(key) is not None} for one, settings in wanted.items()
    }
    named = tag or (weights.stem if weights.stem in tags else "")
    if named:
        return pixels[named]
    kinds = [settings for i, settings in enumerate(pixels.values()) if settings not in list(pixels.values())[:i]]
    if len(kinds) > 1:
        examples = [next(one for one, settings in pixels.items() if settings == kind) for kind in kinds]
        raise BadSpec(
            f"weights published for {name} want different preprocessing ({'; '.join(f'{one}: {pixels[one]}' for one in examples)}), "
            f"and {weights.name} does not say which. Type the tag that they come from: open_clip:{name}/{examples[0]} with weights=FILE"
        )
    return kinds[0] if kinds else {}


def configured_tokenizer(text: Mapping[str, Any], folder: Path | None = None) -> Tokenizer | None:
    """Open the tokenizer that an open_clip text configuration names; nothing is fetched.

    Args:
        text: the `text_cfg`: context_length, vocab_size, tokenizer_kwargs, hf_tokenizer_name, tokenizer_mode.
        folder: where the model's files lie; a Hugging Face tokenizer's files are looked for there, as open_clip does.

    Returns:
        None where the files are not on this computer.

    Raises:
        BadCheckpoint: files or options that the tokenizer does not take.
    """
    context, more = int(text.get("context_length") or 77), dict(text.get("tokenizer_kwargs") or {})
    if "hf_tokenizer_name" not in text or not text["hf_tokenizer_name"]:
        with reading("tokenizer_kwargs of the model's config", "Type: load(..., tokenizer=...)", BadCheckpoint):
            return default_tokenizer(int(text.get("vocab_size") or 49408), context, **more)
    from open_clip.tokenizer import HFTokenizer

    local = folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES)
    source = str(folder) if local else text["hf_tokenizer_name"]
    mode = text.get("tokenizer_mode")
    options = {"context_length": context, "tokenizer_mode": mode, "local_files_only": True, "trust_remote_code": False}
    try:
        return open_clip_tokenizer(HFTokenizer(source, **options, **more), context)
    except Exception as error:  # whatever transformers and its tokenizers' libraries raise
        if local:
            raise BadCheckpoint(
                f"the tokenizer files in {folder} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Save them again: tokenizer.save_pretrained(FOLDER)"
            ) from error
        return None


def open_clip_ids(spec: str, context: int) -> Callable[[list[str]], Tensor]:
    """Give open_clip's own tokenizer of a name or of "local-dir:FOLDER", for the proof; opened when it is called, fetching nothing."""
    return partial(_ids, spec, context)


def _ids(spec: str, context: int, texts: list[str]) -> Tensor:
    open_clip: Any = import_module("open_clip")
    text = open_clip.get_model_config(spec)["text_cfg"]
    local = {"local_files_only": True, "trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    return open_clip.get_tokenizer(spec, context_length=context, **local)(texts)
