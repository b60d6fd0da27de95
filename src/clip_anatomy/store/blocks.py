"""Blocks of images on disk: written by zarr, read through the page cache, where a head of a block is one run of bytes.

A block is an immutable folder of zarr v3 arrays, uncompressed, so that what zarr calls an inner chunk can be mapped into
memory as it is. Reading therefore needs no zarr and copies nothing.

    blocks/000007/zarr.json            a group
    blocks/000007/heads/c/L/0/0/0      shard of layer L: [head, image, d] float16, then zarr's index of its chunks
    blocks/000007/mlps/c/L/0/0         [image, embed] float16, if kept
    blocks/000007/embedding/c/0/0      [image, embed] int16, with embedding_low and embedding_scale: of unit length, see `fixed_point`
    blocks/000007/norm/c/0             [image] float32, ‖embedding‖

Blocks of a sharded store lie in a bucket: a file is brought when it is first mapped, and with it those that will be mapped next.
"""

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64

from clip_anatomy.errors import MissingExtra, StoreError, reading
from clip_anatomy.files import opened
from clip_anatomy.store.fixed_point import decode
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.remote_blocks import FOLDER, RemoteBlock, folder_of, remote_blocks

__all__ = [
    "FOLDER",
    "StoreBlock",
    "folder_of",
    "mapped",
    "mapped_and_cached",
    "need_zarr",
    "read_blocks",
    "write_block",
]

INDEX_ENTRY, INDEX_SUM = 16, 4  # bytes of zarr's shard index: offset and length of each chunk, a CRC at the end
CACHE_BYTES = (
    512_000_000  # stay mapped between searches: mapping 384 MB anew costs 60 ms of page faults, twice the scan itself
)

_CACHE: OrderedDict[tuple[object, ...], np.ndarray] = OrderedDict()
_LOCK = threading.Lock()


@dataclass(frozen=True)
class StoreBlock:
    """One block of a store.

    Attributes:
        folder: where it lies.
        manifest: of its store.
        count: images in its arrays.
        key: its number.
        alive: places of the images that were not removed, ascending; None when all are there.
        start: index of its first image in the store.
        remote: where its files are, if they are not all here.
    """

    folder: Path
    manifest: Manifest = field(repr=False)
    count: int
    key: int
    alive: Int64[np.ndarray, " image"] | None = None
    start: int = 0
    remote: RemoteBlock | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Count the images that were not removed."""
        return self.count if self.alive is None else len(self.alive)

    def heads(self, at: int) -> Float16[np.ndarray, "head image d"]:
        """Return coordinates of all heads of the `at`-th kept layer, removed images left out."""
        manifest = self.manifest
        shape = (manifest.heads, self.count, manifest.d)
        path = self.folder / "heads" / "c" / str(at) / "0" / "0" / "0"
        return self._living(self._mapped(path, np.float16, shape, indexed=manifest.heads), 1)

    def cached(self, at: tuple[int, int]) -> Float16[np.ndarray, "image d"]:
        """Return coordinates of one head (place of its layer, its number); stays mapped for the next time."""
        heads, d = self.manifest.heads, self.manifest.d
        numbers = self.count * d
        array = mapped_and_cached(
            f"{self.folder}/heads/c/{at[0]}/0/0/0",
            np.float16,
            numbers,
            2 * at[1] * numbers,
            lambda path: self._check(path, 2 * numbers * heads, heads),
        )
        return self._living(array.reshape(self.count, d), 0)

    def mlps(self, at: int) -> Float16[np.ndarray, "image embed"]:
        """Tell what the MLP of the `at`-th kept layer wrote."""
        path = self.folder / "mlps" / "c" / str(at) / "0" / "0"
        return self._living(self._mapped(path, np.float16, (self.count, self.manifest.embed)), 0)

    def embedding(self) -> Float32[np.ndarray, "image embed"]:
        """Return embeddings of unit length."""
        return decode(self.coded_embedding())

    def coded_embedding(self) -> dict[str, np.ndarray]:
        """Return what `decode` makes embeddings of; stays mapped for the next time."""
        return {name: self.stored(name, keep=True) for name in self.manifest.coded_embedding}

    def norm(self) -> Float32[np.ndarray, " image"]:
        """Return lengths of the embeddings."""
        return self.stored("norm")

    def stored(self, name: str, *, keep: bool = False) -> np.ndarray:
        """Return one array of `Manifest.image_arrays` as it lies on the disk; `keep` it mapped for the next time."""
        dtype, width = self.manifest.image_arrays[name]
        path = self.folder / name / "c" / "0" / "0" if width else self.folder / name / "c" / "0"
        kind, count = np.dtype(dtype), self.count * max(width, 1)

        def check(path: Path) -> None:
            self._check(path, count * kind.itemsize, 0)

        if keep:
            array = mapped_and_cached(str(path), kind, count, 0, check)
        else:
            check(path)
            array = mapped(path, kind, count)
        return self._living(array.reshape(self.count, width) if width else array, 0)

    def _living(self, array: np.ndarray, axis: int) -> np.ndarray:
        return array if self.alive is None else np.take(array, self.alive, axis)

    def _mapped(self, path: Path, dtype: type, shape: tuple[int, ...], *, indexed: int = 0) -> np.ndarray:
        count = int(np.prod(shape))
        self._check(path, count * np.dtype(dtype).itemsize, indexed)
        return mapped(path, dtype, count).reshape(shape)

    def _check(self, path: Path, size: int, indexed: int) -> None:
        """Refuse a file that is not there, cannot be read, or is not whole."""
        expected = size + (indexed * INDEX_ENTRY + INDEX_SUM if indexed else 0)
        with reading(path, f"To look for damage, type: clip-anatomy verify {self.folder.parents[1]}", StoreError):
            if self.remote is not None and not path.exists():
                self.remote.bring(path.relative_to(self.folder).as_posix())
            if not path.exists():
                raise StoreError(
                    f"{path} is missing: the store was changed since it was opened, or is damaged. Open it again; to look for "
                    f"damage, type: clip-anatomy verify {self.folder.parents[1]}"
                )
            with opened(path) as file:
                on_disk = os.fstat(file.fileno()).st_size
        if on_disk != expected:
            raise StoreError(
                f"{path} has {on_disk:,} bytes instead of {expected:,}: it is damaged. Type: clip-anatomy verify "
                f"{self.folder.parents[1]}"
            )
        if indexed:
            self._check_index(path, indexed, size // indexed)

    def _check_index(self, path: Path, chunks: int, size: int) -> None:
        """Zarr may put chunks anywhere in a shard; we rely on the order in which it does."""
        with opened(path) as file:
            file.seek(-(chunks * INDEX_ENTRY + INDEX_SUM), 2)
            index = np.frombuffer(file.read(chunks * INDEX_ENTRY), "<u8").reshape(chunks, 2)
        if index[:, 0].tolist() != [at * size for at in range(chunks)] or (index[:, 1] != size).any():
            raise StoreError(f"{path} was not written by this package, or is damaged. Type: clip-anatomy verify STORE")


def read_blocks(rows: Any, folder: Path, manifest: Manifest) -> tuple[StoreBlock, ...]:
    """Read the blocks of a store in order, and which of their images are still there."""
    dead: dict[int, list[int]] = {}
    for key, place in rows.execute("SELECT block, place FROM holes"):
        dead.setdefault(key, []).append(place)
    blocks: list[StoreBlock] = []
    start = 0
    remote = remote_blocks(rows, folder)
    for key, count in rows.execute("SELECT key, count FROM blocks ORDER BY turn").fetchall():
        alive = np.setdiff1d(np.arange(count), dead[key]) if key in dead else None
        blocks.append(StoreBlock(folder_of(folder, key), manifest, count, key, alive, start, remote.get(key)))
        start += len(blocks[-1])
    return tuple(blocks)


def mapped(path: Path, dtype: np.typing.DTypeLike, count: int, first: int = 0, *, read_now: bool = False) -> np.ndarray:
    """Map numbers of a file as an array of one axis, read when they are looked at.

    Args:
        path: the file; not empty beyond `first`.
        dtype: of the numbers.
        count: how many.
        first: byte at which they begin.
        read_now: ask the system to read them now, beside what we do.

    Returns:
        An array that can be written to without reaching the file (torch takes no other).
    """
    with opened(path) as file:
        start = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = first - start + count * np.dtype(dtype).itemsize
        pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        if read_now and hasattr(mmap, "MADV_WILLNEED"):
            pages.madvise(mmap.MADV_WILLNEED)
        return np.frombuffer(pages, dtype, count, first - start)


def mapped_and_cached(
    path: str, dtype: np.typing.DTypeLike, count: int, first: int, check: Callable[[Path], None]
) -> np.ndarray:
    """Map numbers of a file and keep them mapped for the next call; those not asked for longest are let go.

    A file that was replaced is checked and mapped again. Two threads may map the same one; both are right.

    Args:
        path: the file.
        dtype: of the numbers.
        count: how many.
        first: byte at which they begin.
        check: refuses a file that is missing or damaged; called before it is mapped.
    """
    try:
        now = os.stat(path)  # noqa: PTH116 (Path.stat costs more than the rest of this function)
    except OSError:
        check(Path(path))  # says what is wrong, or brings it
        now = os.stat(path)  # noqa: PTH116
    key = (path, first, count, now.st_ino, now.st_mtime_ns, now.st_size)
    with _LOCK:
        if key in _CACHE:
            _CACHE.move_to_end(key)
            return _CACHE[key]
    check(Path(path))
    data = mapped(Path(path), dtype, count, first, read_now=True)
    with _LOCK:
        _CACHE[key] = data
        total = sum(array.nbytes for array in _CACHE.values())
        while total > CACHE_BYTES and len(_CACHE) > 1:
            total -= _CACHE.popitem(last=False)[1].nbytes
    return data


def need_zarr() -> Any:
    """Import zarr, or say how to install it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra("zarr", "library") from error
    return zarr


def write_block(folder: Path, manifest: Manifest, count: int, read: Callable[[str, int], np.ndarray]) -> None:
    """Write one block as a zarr v3 group, a layer at a time.

    Args:
        folder: where; must not exist.
        manifest: of the store.
        count: images in the block.
        read: name of an array and place of a layer → its values: "heads" [head, image, d], "mlps" [image, embed], and those of
            `Manifest.image_arrays`.

    Raises:
        MissingExtra: zarr is not installed.
        OSError: the disk is full or gone.
    """
    zarr = need_zarr()
    group = zarr.create_group(folder, zarr_format=3, attributes={"format": manifest.format, "images": count})
    # Empty chunks are written too: with zarr's default a missing file would not prove that something is missing.
    common: dict[str, Any] = {
        "compressors": None,
        "filters": None,
        "fill_value": 0,
        "config": {"write_empty_chunks": True},
    }
    layers, heads, d, embed = len(manifest.layers), manifest.heads, manifest.d, manifest.embed
    unit = {"unit": "contribution / ‖embedding‖"}
    array = group.create_array(
        "heads", shape=(layers, heads, count, d), chunks=(1, 1, count, d), shards=(1, heads, count, d), dtype="float16",
        dimension_names=("layer", "head", "image", "d"), attributes={**unit, "layers": list(manifest.layers)}, **common,
    )  # fmt: skip
    for at in range(layers):
        array[at] = read("heads", at)
    if "mlps" in manifest.keep:
        array = group.create_array(
            "mlps", shape=(layers, count, embed), chunks=(1, count, embed), dtype="float16",
            dimension_names=("layer", "image", "embed"), attributes={**unit, "layers": list(manifest.layers)}, **common,
        )  # fmt: skip
        for at in range(layers):
            array[at] = read("mlps", at)
    for name, (dtype, width) in manifest.image_arrays.items():
        shape, names = (
            ((count, width), ("image", "embed" if name == "embedding" else "byte")) if width else ((count,), ("image",))
        )
        array = group.create_array(name, shape=shape, chunks=shape, dtype=dtype, dimension_names=names, **common)
        array[:] = read(name, 0)
