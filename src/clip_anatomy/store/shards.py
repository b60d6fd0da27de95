"""A sharded store: a store in pieces that any number of workers write, in a folder or in a bucket.

PLACE/shards.json                what it is of: model, settings, source, pictures in a shard, pictures in a batch
PLACE/basis.safetensors          frames of the head coordinates
PLACE/shards/000012-1a2b…/       what one attempt at shard 12 wrote: rows.sqlite, blocks/, moments/, as in an ordinary store
PLACE/commits/000012.json        the attempt that counts, and every file of it with bytes and digest

Shard N holds the pictures N · size … (N + 1) · size − 1 of the source in its order. Its commit is one conditional put: of two workers that did
the same shard one wins, and the other deletes its files. What no commit names is seen by nobody. Nothing is ever written anew, so readers take no locks.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clip_anatomy.errors import StoreError, reading
from clip_anatomy.files import digest
from clip_anatomy.loading.clip import Clip
from clip_anatomy.number_ranges import whole
from clip_anatomy.objects import ObjectPlace, is_object_url
from clip_anatomy.split.basis import HeadBasis, basis_of
from clip_anatomy.store.manifest import BASIS, Manifest, basis_bytes, manifest_for
from clip_anatomy.store.manifest import NAME as STORE
from clip_anatomy.store.remote_blocks import folder_of_shard

__all__ = ["Commit", "ShardedStore", "commit_name", "committed_shards", "frames_of", "is_sharded", "is_store", "missing_shards", "open_sharded", "read_commit"]  # fmt: skip

FORMAT = "clip-anatomy shards 1"
COMMIT_FORMAT = "clip-anatomy shard 1"
NAME = "shards.json"
SIZE = 4096  # pictures: a B/16 takes four minutes of two cores or some seconds of a GPU for them, and 85 MB
MOST = 2**20  # pictures of a shard
BATCH = 32
COMMIT_NAME = re.compile(r"(\d{6,})\.json")
ATTEMPT_NAME = re.compile(r"(\d{6,})-([0-9a-f]{16})")


@dataclass(frozen=True)
class ShardedStore:
    """What a sharded store says about itself, in `shards.json`.

    Attributes:
        place: its address, or the absolute path of its folder.
        manifest: model, layers, convention.
        source: spec of the collection that it is of.
        size: pictures in a shard.
        batch: pictures that the model takes at once: the same for all workers, so that their numbers are.
        basis: digest of `basis.safetensors`.
    """

    place: str
    manifest: Manifest
    source: str
    size: int
    batch: int
    basis: str

    @property
    def text(self) -> bytes:
        """The content of `shards.json`."""
        own = {"source": self.source, "size": self.size, "batch": self.batch, "basis": self.basis}
        return (json.dumps({"format": FORMAT, **own, "manifest": asdict(self.manifest)}, indent=2) + "\n").encode()

    @property
    def identity(self) -> str:
        """Hash of it, by which its local catalogue is called."""
        return digest([self.place, "\n", self.text])

    @staticmethod
    def load(place: str | Path | ObjectPlace) -> "ShardedStore | None":
        """Read `shards.json`; None where there is none.

        Raises:
            StoreError: it is damaged, or of another version.
            ObjectStoreError: the place cannot be read.
        """
        at = ObjectPlace.of(place)
        content = at.get(NAME)
        if content is None:
            return None
        with reading(f"{at.url}/{NAME}", "It is damaged: put its copy back, or index into a new place", StoreError):
            fields = json.loads(content)
            if fields["format"] != FORMAT:
                raise StoreError(f"{at.url} is {fields['format']!r}, this version reads {FORMAT!r}. Index it anew")
            size, batch = int(fields["size"]), int(fields["batch"])
            if not (0 < size <= MOST and batch > 0):
                raise ValueError(f"size {size}, batch {batch}")
            manifest = Manifest.read(fields["manifest"], at.url)
            return ShardedStore(at.url, manifest, str(fields["source"]), size, batch, str(fields["basis"]))

    def refuse_unlike(self, other: "ShardedStore") -> None:
        """Raise StoreError where a store that is to be continued is of another source, model or size; names the difference."""
        self.manifest.refuse_unlike(other.manifest, self.place)
        for name in ("source", "size", "batch"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise StoreError(
                    f"{self.place} was made with {name} {mine}, {theirs} was asked for: its shards are of one source, cut in one way. Type "
                    "the path of a new store"
                )


@dataclass(frozen=True)
class Commit:
    """What makes a shard count.

    Attributes:
        shard: its number.
        attempt: which of the attempts at it.
        pictures: of the source that it covers.
        images: that it holds.
        errors: pictures that could not be used; they are rows too.
        ids: hash of the ids of its pictures, in their order.
        files: name below the attempt's folder → bytes and digest.
    """

    shard: int
    attempt: str
    pictures: int
    images: int
    errors: int
    ids: str
    files: Mapping[str, tuple[int, str]]

    @property
    def name(self) -> str:
        """The name of its object."""
        return commit_name(self.shard)

    @property
    def folder(self) -> str:
        """Where its files are."""
        return folder_of_shard(self.shard, self.attempt)

    @property
    def text(self) -> bytes:
        """The content of its object."""
        return (json.dumps({"format": COMMIT_FORMAT, **asdict(self)}) + "\n").encode()


def commit_name(number: int) -> str:
    """Return the name of the object that makes a shard count."""
    return f"commits/{number:06d}.json"


def is_sharded(name: Any) -> bool:
    """Whether a name as typed is an address of object storage, or a folder that holds a sharded store."""
    return is_object_url(name) or (isinstance(name, str | Path) and (Path(name) / NAME).is_file())


def is_store(name: str | Path) -> bool:
    """Whether a store lies at a path or address, of either kind."""
    return (Path(name) / STORE).is_file() or (is_sharded(name) and ShardedStore.load(name) is not None)


def open_sharded(
    place: str | Path,
    clip: Clip | None = None,
    source: str | None = None,
    *,
    layers: str | int | Sequence[int] | None = None,
    keep: str | Sequence[str] | None = None,
    convention: str | None = None,
    size: int | None = None,
    batch: int | None = None,
) -> ShardedStore:
    """Open a sharded store to write shards, and make it if it is not there; of two that make it at once one wins, and both go on with it.

    Args:
        place: `s3://bucket/prefix`, `gs://…`, `az://…`, `file://…` or a folder.
        clip: the model; needed to make one, and refused if the store is of another.
        source: spec of the collection (`Source.spec`); likewise.
        layers: as for `index`.
        keep: as for `index`.
        convention: as for `index`.
        size: pictures in a shard; 4096 by default.
        batch: pictures that the model takes at once; 32 by default.

    Raises:
        StoreError: there is none, and no model or source to make one; or it was made in another way.
        ObjectStoreError: the place cannot be read or written.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> made = open_sharded(tempfile.mkdtemp() + "/store", ca.load("demo"), "world:100:test", size=8)
        >>> made.size, missing_shards(made.place, 3)
        (8, [0, 1, 2])
    """
    at = ObjectPlace.of(place)
    old = ShardedStore.load(at)
    if old is None and (clip is None or source is None):
        raise StoreError(f"{at.url} is no store. Make one: clip-anatomy index SOURCE {at.url}")
    for name, number, most in (("size", size, MOST), ("batch", batch, MOST)):
        if number is not None:
            whole(name, number, 1, most)
    if clip is None:
        assert old is not None
        return old
    known = None if old is None else old.manifest
    manifest = manifest_for(clip, known, at.url, layers=layers, keep=keep, convention=convention)
    wanted = ShardedStore(
        at.url,
        manifest,
        source or (old.source if old else ""),
        size or (old.size if old else SIZE),
        batch or (old.batch if old else BATCH),
        "",
    )
    if old is None:
        there = [] if at.folder is None or not at.folder.is_dir() else [one.name for one in at.folder.iterdir()]
        strange = [name for name in there if not name.startswith((BASIS, NAME))]  # not what another maker has just put
        if strange and ShardedStore.load(at) is None:
            raise StoreError(f"{at.url} is no sharded store and not empty. Type the path of a new folder")
        origin = {} if clip.origin is None else clip.origin.to_dict(Path())
        places = {name: value for name, value in origin.items() if not name.endswith("_from_here")}
        # One of several makers puts the frames, and all go on with his: their last bits may differ from machine to machine.
        at.put_if_absent(BASIS, basis_bytes(frames_of(clip, manifest)))
        frames = digest(at.get(BASIS) or b"")
        made = replace(wanted, manifest=replace(manifest, origin=places), basis=frames)
        if at.put_if_absent(NAME, made.text):
            return made
        old = ShardedStore.load(at)
        assert old is not None
    old.refuse_unlike(wanted)
    return old


def frames_of(clip: Clip, manifest: Manifest) -> HeadBasis:
    """Compute the frames of a store's heads, once for as long as the model is open."""
    key = f"frames {manifest.convention} {manifest.layers}"
    return clip.remembered(key, lambda: basis_of(clip.vision, manifest.convention, manifest.layers), clip.vision)


def committed_shards(place: str | Path | ObjectPlace) -> set[int]:
    """List the shards that are finished: all that is held of them is their numbers."""
    at = ObjectPlace.of(place)
    names = (name.rsplit("/", 1)[-1] for name, _ in at.names("commits/"))
    return {int(match[1]) for name in names if (match := COMMIT_NAME.fullmatch(name))}


def missing_shards(place: str | Path | ObjectPlace, count: int) -> list[int]:
    """List which of the first `count` shards are not finished, ascending."""
    done = committed_shards(place)
    return [number for number in range(count) if number not in done]


def read_commit(place: ObjectPlace, number: int) -> Commit:
    """Read one commit.

    Raises:
        StoreError: it is damaged, or not there.
    """
    name = commit_name(number)
    content = place.get(name)
    with reading(f"{place.url}/{name}", f"To see what is damaged, type: clip-anatomy verify {place.url}", StoreError):
        fields = json.loads(content or b"")
        files = {str(path): (int(size), str(digest)) for path, (size, digest) in fields["files"].items()}
        commit = Commit(
            int(fields["shard"]), str(fields["attempt"]), int(fields["pictures"]), int(fields["images"]), int(fields["errors"]),
            str(fields["ids"]), files,
        )  # fmt: skip
        outside = [path for path in files if path.startswith("/") or ".." in path.split("/")]
        if (
            commit.shard != number
            or outside
            or not ATTEMPT_NAME.fullmatch(commit.folder.removeprefix("shards/"))
            or fields["format"] != COMMIT_FORMAT
        ):
            raise ValueError(f"shard {commit.shard}, attempt {commit.attempt!r}, files {outside}")
        return commit
