"""The model of a store, opened again as it was made."""

from pathlib import Path

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.reopen_model import opened_again
from clip_anatomy.store.manifest import NAME, Manifest
from clip_anatomy.store.shards import ShardedStore, is_sharded
from clip_anatomy.store.store import Store

__all__ = ["model_of", "model_to_index"]


def model_of(
    store: Store, model: Clip | str | None = None, *, weights: str | Path | None = None, device: str = "auto"
) -> Clip:
    """Open the model that a store was made with.

    Args:
        store: the store.
        model: its model, or another name or path of it; by default as it was indexed.
        weights: a checkpoint file for it.
        device: where to.

    Raises:
        BadSpec: it is no longer where it was.
        StoreError: what the name opens today has other weights.
    """
    manifest = store.manifest
    clip = opened_again(manifest.origin, store.path, manifest.model, model, weights, device=device)
    manifest.refuse_other(clip.name, clip.digest, store.path)
    return clip


def model_to_index(
    store: str | Path, model: Clip | str | None = None, *, weights: str | Path | None = None, device: str = "auto"
) -> Clip:
    """Open the model to index with: the one that is named, else that of the store that is there, else the bundled one."""
    folder = Path(store)
    sharded = ShardedStore.load(store) if model is None and is_sharded(store) else None
    if sharded is not None or (model is None and (folder / NAME).exists()):
        manifest = Manifest.load(folder) if sharded is None else sharded.manifest
        return opened_again(manifest.origin, folder, manifest.model, None, weights, device=device)
    return opened_again({}, folder, "demo", model or "demo", weights, device=device)
