"""Blocks of images on disk, read through the page cache: a head of a block is one contiguous run of bytes.

A block is an immutable folder of zarr v3 arrays (written by `write_block`), uncompressed, so that what zarr calls an
inner chunk can be mapped into memory as it is. Reading therefore needs no zarr and copies nothing.

    blocks/000007/zarr.json            a group
    blocks/000007/heads/c/L/0/0/0      shard of layer L: [head, image, d] float16, then zarr's index of its chunks
    blocks/000007/mlps/c/L/0/0         [image, embed] float16, if kept
    blocks/000007/embedding/c/0/0      [image, embed] float16, of unit length
    blocks/000007/norm/c/0             [image] float32, ‖embedding‖
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64

from clip_anatomy.errors import StoreError
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.mmap_cache import mapped, run

__all__ = ["Block", "folder_of", "read_blocks"]

FOLDER = "blocks"
INDEX_ENTRY, INDEX_SUM = 16, 4  # bytes of zarr's shard index: offset and length of each chunk, a CRC at the end


def folder_of(store: Path, key: int) -> Path:
    """Where a block lies."""
    return store / FOLDER / f"{key:06d}"


@dataclass(frozen=True)
class Block:
    """One block of a store.

    Attributes:
        folder: where it lies.
        about: of its store.
        count: images in its arrays.
        key: its number.
        alive: places of the images that were not removed, ascending; None when all are there.
        start: index of its first image in the store.
    """

    folder: Path
    manifest: Manifest = field(repr=False)
    count: int
    key: int
    alive: Int64[np.ndarray, " image"] | None = None
    start: int = 0

    def __len__(self) -> int:
        """Images that were not removed."""
        return self.count if self.alive is None else len(self.alive)

    def heads(self, at: int) -> Float16[np.ndarray, "head image d"]:
        """Coordinates of all heads of the `at`-th kept layer, removed images left out."""
        manifest = self.manifest
        shape = (manifest.heads, self.count, manifest.d)
        path = self.folder / "heads" / "c" / str(at) / "0" / "0" / "0"
        return self._living(self._mapped(path, np.float16, shape, indexed=manifest.heads), 1)

    def run(self, at: tuple[int, int] | None) -> Float16[np.ndarray, "image d"]:
        """Coordinates of one head (place of its layer, its number), or the embeddings (None); stays mapped for the next time."""
        manifest = self.manifest
        width, head, indexed = (manifest.embed, 0, 0) if at is None else (manifest.d, at[1], manifest.heads)
        name = "embedding/c/0/0" if at is None else f"heads/c/{at[0]}/0/0/0"
        numbers = self.count * width
        size = 2 * numbers * max(indexed, 1)
        found = run(
            f"{self.folder}/{name}",
            np.float16,
            numbers,
            2 * head * numbers,
            lambda path: self._check(path, size, indexed),
        )
        return self._living(found.reshape(self.count, width), 0)

    def mlps(self, at: int) -> Float16[np.ndarray, "image embed"]:
        """What the MLP of the `at`-th kept layer wrote."""
        path = self.folder / "mlps" / "c" / str(at) / "0" / "0"
        return self._living(self._mapped(path, np.float16, (self.count, self.manifest.embed)), 0)

    def embedding(self) -> Float16[np.ndarray, "image embed"]:
        """Embeddings of unit length."""
        path = self.folder / "embedding" / "c" / "0" / "0"
        return self._living(self._mapped(path, np.float16, (self.count, self.manifest.embed)), 0)

    def norm(self) -> Float32[np.ndarray, " image"]:
        """Lengths of the embeddings."""
        return self._living(self._mapped(self.folder / "norm" / "c" / "0", np.float32, (self.count,)), 0)

    def _living(self, array: np.ndarray, axis: int) -> np.ndarray:
        return array if self.alive is None else np.take(array, self.alive, axis)

    def _mapped(self, path: Path, dtype: type, shape: tuple[int, ...], *, indexed: int = 0) -> np.ndarray:
        count = int(np.prod(shape))
        self._check(path, count * np.dtype(dtype).itemsize, indexed)
        return mapped(path, dtype, count).reshape(shape)

    def _check(self, path: Path, size: int, indexed: int) -> None:
        """Refuse a file that is not there, or not whole."""
        expected = size + (indexed * INDEX_ENTRY + INDEX_SUM if indexed else 0)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing: the store was changed since it was opened, or is damaged. Open it again; to look for "
                f"damage, type: clip-anatomy verify {self.folder.parents[1]}"
            ) from None
        if found != expected:
            raise StoreError(
                f"{path} has {found:,} bytes instead of {expected:,}: it is damaged. Type: clip-anatomy verify "
                f"{self.folder.parents[1]}"
            )
        if indexed:
            self._check_index(path, indexed, size // indexed)

    def _check_index(self, path: Path, chunks: int, size: int) -> None:
        """Zarr may put chunks anywhere in a shard; we rely on the order in which it does."""
        with path.open("rb") as file:
            file.seek(-(chunks * INDEX_ENTRY + INDEX_SUM), 2)
            index = np.frombuffer(file.read(chunks * INDEX_ENTRY), "<u8").reshape(chunks, 2)
        if index[:, 0].tolist() != [at * size for at in range(chunks)] or (index[:, 1] != size).any():
            raise StoreError(f"{path} was not written by this package, or is damaged. Type: clip-anatomy verify STORE")


def read_blocks(rows: Any, folder: Path, manifest: Manifest) -> tuple[Block, ...]:
    """The blocks of a store in order, and which of their images are still there."""
    dead: dict[int, list[int]] = {}
    for key, place in rows.execute("SELECT block, place FROM holes"):
        dead.setdefault(key, []).append(place)
    blocks: list[Block] = []
    start = 0
    for key, count in rows.execute("SELECT key, count FROM blocks ORDER BY turn").fetchall():
        alive = np.setdiff1d(np.arange(count), dead[key]) if key in dead else None
        blocks.append(Block(folder_of(folder, key), manifest, count, key, alive, start))
        start += len(blocks[-1])
    return tuple(blocks)
