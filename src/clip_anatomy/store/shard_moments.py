"""Moments of a sharded store by the workers of an engine: each brings and merges those that some shards kept; no array is read."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from clip_anatomy.engine.engine import Engine, engine_of, reduced
from clip_anatomy.errors import StoreError
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.shards import ShardedStore, committed_shards, read_commit
from clip_anatomy.store.stored_moments import FOLDER

__all__ = ["moments_of_shards"]


@dataclass(frozen=True)
class _PlaceSetup:
    """A sharded store by its address."""

    url: str
    device: str = "cpu"

    def open(self) -> ObjectPlace:
        """Connect to it."""
        return ObjectPlace.of(self.url)


def _moments_of(place: ObjectPlace, number: int) -> Moments:
    """Bring the moments that a shard kept of all its images."""
    commit = read_commit(place, number)
    name = next((one for one in commit.files if one.startswith(f"{FOLDER}/all-")), None)
    if name is None:
        raise StoreError(f"{place.url}/{commit.name} names no moments. Type: clip-anatomy verify {place.url}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "moments.safetensors"
        place.fetch(f"{commit.folder}/{name}", file, *commit.files[name])
        return Moments.load(file)


def moments_of_shards(place: str | Path, engine: Engine | str = "local") -> Moments:
    """Merge the moments of all shards in a tree, in the order of the shards: the same bits on any engine.

    Args:
        place: address or folder of a sharded store.
        engine: whose workers bring and merge them.

    Returns:
        Moments of all images, in head coordinates, without the frames.

    Raises:
        StoreError: no store there, one without a shard, or a damaged one.
        ObjectStoreError: the place cannot be read.
    """
    at = ObjectPlace.of(place)
    numbers = sorted(committed_shards(at))
    if not numbers or ShardedStore.load(at) is None:
        raise StoreError(f"{at.url} has no shard. Make some: clip-anatomy index SOURCE {at.url}")
    with engine_of(engine) as running:
        return reduced(running, _moments_of, Moments.merge, numbers, setup=_PlaceSetup(at.url))
