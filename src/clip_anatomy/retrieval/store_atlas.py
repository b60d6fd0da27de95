"""The model and the atlas of a store, and the directions of a property in the joint space."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec, OutputError, StoreError
from clip_anatomy.files import write_text
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.build_atlas import atlas as make_atlas
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.progress import Progress
from clip_anatomy.store.store import Store

__all__ = ["atlas_of", "keep_atlas", "kept_atlas", "property_directions"]

NAME = "atlas.json"
VARIANCE_SHARE = 0.95  # of what the texts of a property differ in


def atlas_of(
    store: Store,
    clip: Callable[[], Clip],
    given: Atlas | str | Path | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """Return the atlas to choose heads by: the one that was given, the one kept in the store, or a quick one that is made and kept there.

    Args:
        store: the store.
        clip: opens its model, called only if an atlas must be made.
        given: an atlas, an `atlas.json`, or the folder of a report.
        progress: called as an atlas is made.

    Raises:
        BadInput: not an atlas.
        StoreError: an atlas of another model.
    """
    if given is not None:
        atlas = given if isinstance(given, Atlas) else Atlas.load(given)
        if atlas.digest != store.manifest.digest:
            raise StoreError(
                f"this atlas is of {atlas.model} (weights {atlas.digest[:8]}), {store.path} of {store.manifest.model} (weights "
                f"{store.manifest.digest[:8]}). Make one: clip-anatomy atlas {store.path}"
            )
        return atlas
    if (stored := kept_atlas(store)) is not None:
        return stored
    made = make_atlas(store, clip(), resamples=0, picks=1, images=1, progress=progress)
    with suppress(OutputError):  # a store that may only be read: made again next time
        keep_atlas(store, made)
    return made


def keep_atlas(store: Store, made: Atlas) -> None:
    """Keep an atlas in its store, where `kept_atlas` finds it.

    Raises:
        OutputError: the store may only be read.
    """
    write_text(store.path / NAME, json.dumps(made.to_dict(), allow_nan=False) + "\n")


def kept_atlas(store: Store) -> Atlas | None:
    """Read the atlas kept in a store; None if there is none, or it is of another model or of less than half of the images."""
    if not (store.path / NAME).is_file():
        return None
    try:
        atlas = Atlas.load(store.path / NAME)
    except BadInput:
        return None  # a damaged file of ours: made again
    return atlas if atlas.digest == store.manifest.digest and 2 * atlas.images > len(store) else None


def property_directions(
    clip: Clip, focus: str | Sequence[str], cache: str | Path | bool = True
) -> Float64[Tensor, "out embed"]:
    """Return orthonormal directions in which the texts of a property differ, those that hold 95 % of it.

    Args:
        clip: the model.
        focus: a property of the model's pool of texts ("colour"), or two texts or more that differ in it.
        cache: where text embeddings are kept.

    Raises:
        BadSpec: unknown property; names those that there are.
    """
    if isinstance(focus, str):
        pool, _ = pool_of(None, clip)
        texts = [text for text, name in zip(pool.texts, pool.properties, strict=True) if name == focus]
        if len(texts) < 2:
            known = sorted({name for name in pool.properties if name and "+" not in name})
            raise BadSpec(
                f"focus {focus!r} is no property that texts are known for. Type one of: {', '.join(known)}; or texts that differ "
                "in it: 'made of wood|made of metal'"
            )
    else:
        texts = list(focus)
        if len(set(texts)) < 2:
            raise BadSpec(
                "focus needs two texts or more that differ in the property. Type 'made of wood|made of metal'"
            )
    unit = torch.nn.functional.normalize(torch.as_tensor(embed_texts(clip, texts, cache=cache)).double().cpu(), dim=-1)
    _, size, across = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    covered = size.square().cumsum(0) / size.square().sum().clamp_min(1e-300)
    return across[: int((covered < VARIANCE_SHARE).sum()) + 1].contiguous()
