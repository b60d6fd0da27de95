"""What opening a model from somewhere gives, and the libraries that do it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from clip_anatomy.errors import MissingExtra
from clip_anatomy.images.preprocess import Preprocess
from clip_anatomy.loading.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
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


def near(name: str, names: list[str]) -> str:
    """Suggest the names nearest to a misspelt one, or nothing."""
    from difflib import get_close_matches

    found = get_close_matches(name, names, n=3, cutoff=0.4)
    return f" Did you mean {', '.join(found)}?" if found else ""
