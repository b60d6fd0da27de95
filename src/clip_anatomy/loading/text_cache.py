"""Text embeddings, kept on disk by (weights, tokenizer, templates, text): a pool is embedded once for each model."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.files import digest
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.disk_cache import DiskCache, cache_folder
from clip_anatomy.loading.tokenizer import check_texts
from clip_anatomy.progress import Progress, silent

__all__ = ["embed_texts", "text_cache"]

BATCH = 128
PROBE = "Two small dogs, one RED circle: 7 × naïve café!"  # tokenizers differ on this if they differ at all


def text_cache(cache: "str | Path | bool" = True) -> DiskCache:
    """Choose where text embeddings are kept: in the cache folder, in a file of its own, or (False) nowhere."""
    if cache is False:
        return DiskCache(None)
    return DiskCache(cache_folder() / "texts.sqlite" if cache is True else Path(cache))


def embed_texts(
    clip: Clip,
    texts: Sequence[str],
    templates: Sequence[str] | None = None,
    *,
    cache: "str | Path | bool" = True,
    progress: Progress = silent,
) -> Float[Tensor, "text embed"]:
    """Embed texts like `clip.encode_text`, but only those that were never embedded by this model before.

    Done a batch at a time and kept after each, so that a stopped run goes on where it was.

    Args:
        clip: an opened model.
        texts: the texts.
        templates: prompts to average, as in `encode_text`.
        cache: True for the cache folder ($CLIP_ANATOMY_CACHE, else the user's), a file, or False to keep nothing.
        progress: called with what is done, texts done and texts in all.

    Returns:
        Embeddings in float32, as `encode_text` gives them: of unit length only with templates.

    Raises:
        BadText: what `encode_text` raises.

    Example:
        >>> import clip_anatomy as ca
        >>> embed_texts(ca.load("demo"), ["a red circle", "a star"], cache=False).shape[0]
        2
    """
    checked = check_texts(texts)
    disk = text_cache(cache)
    key = _key(clip, templates)
    names = {text: _name(key, text) for text in dict.fromkeys(checked)}
    embed = clip.text_tower.embed
    rows_by_name = {name: raw for name, raw in disk.get(names.values()).items() if len(raw) == 4 * embed}
    missing = [text for text, name in names.items() if name not in rows_by_name]
    progress("embedding texts", len(names) - len(missing), len(names))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        embeddings = clip.encode_text(batch, templates).detach().cpu().numpy().astype("<f4")
        fresh = {names[text]: row.tobytes() for text, row in zip(batch, embeddings, strict=True)}
        if bool(np.isfinite(embeddings).all()):
            disk.put(fresh)
        rows_by_name |= fresh
        progress("embedding texts", len(names) - len(missing) + start + len(batch), len(names))
    rows = np.stack([np.frombuffer(rows_by_name[names[text]], "<f4") for text in checked])
    return torch.from_numpy(rows.astype(np.float32))


def _key(clip: Clip, templates: Sequence[str] | None) -> str:
    ids = [] if clip.tokenizer is None else clip.tokenizer([PROBE]).tolist()
    identity = [clip.digest, ids, None if templates is None else list(templates)]
    return digest(json.dumps(identity))


def _name(key: str, text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass"), key=key)
