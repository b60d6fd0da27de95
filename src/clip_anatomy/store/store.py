"""`Store`: the parts of many images on disk, read by head.

STORE/store.json          what it is of (`Manifest`)          STORE/rows.sqlite   one row an image
STORE/basis.safetensors   frames of the head coordinates   STORE/moments/      kept statistics
STORE/blocks/000007/      zarr v3 arrays of some images    STORE/lock          held while writing

Of a sharded store it is the local catalogue that is read (`store.catalogue`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Float32, Float64, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.number_ranges import whole
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.moments import Moments
from clip_anatomy.store import rows as sql
from clip_anatomy.store.blocks import StoreBlock, read_blocks
from clip_anatomy.store.catalogue import catalogue_of, merge_moments, place_of
from clip_anatomy.store.fixed_point import decode
from clip_anatomy.store.manifest import Manifest, load_basis
from clip_anatomy.store.rows import ImageRow, row_of
from clip_anatomy.store.shards import is_sharded
from clip_anatomy.store.stored_moments import moments_of_store

__all__ = ["Store"]

Rows = Sequence[int] | np.ndarray | Tensor | slice | None
"""Which images: indices on the store's image axis, a slice, or None for all."""


@public
@dataclass(frozen=True, repr=False)
class Store(Result):
    """Parts of many images. Everything it returns has its images in one order, 0 … len − 1, that of `rows()`.

    Head coordinates are of contributions divided by ‖embedding‖ in the frames of `basis`: `u · Q` is the contribution in
    the joint space, dot products of u are those in the joint space, and `text · Qᵀ` brings a text to a head's coordinates.

    Attributes:
        path: its folder.
        manifest: model, layers, convention, versions.
        blocks: where the arrays lie, as of the moment of opening.
        epoch: how often images were removed or blocks merged; the store must be opened again when it has changed.
    """

    path: Path
    manifest: Manifest
    blocks: tuple[StoreBlock, ...] = field(repr=False)
    epoch: int

    @staticmethod
    def open(path: str | Path, clip: Clip | None = None) -> "Store":
        """Open a store to read.

        Args:
            path: its folder; for a sharded store the folder or address (`s3://bucket/store`), whose catalogue is brought up to date.
            clip: the model you are going to use with it; refused, by name, if the store is of another.

        Returns:
            Store as it is now; images committed later are seen after opening again.

        Raises:
            StoreError: no store, a damaged one, or one of another model.
            ObjectStoreError: the address cannot be read.
        """
        folder = catalogue_of(path) if is_sharded(path) else Path(path)
        manifest = Manifest.load(folder)
        if clip is not None:
            manifest.refuse_other(clip.name, clip.digest, folder)
        with sql.reading_rows(folder) as rows:
            rows.execute("BEGIN")
            blocks = read_blocks(rows, folder, manifest)
            return Store(folder, manifest, blocks, sql.epoch_of(rows))

    def __len__(self) -> int:
        """Count the images."""
        return sum(len(block) for block in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """Return where it lies, how many images it holds, and its manifest."""
        return {"schema": "clip-anatomy/store/1", "store": str(self.path), "images": len(self), **asdict(self.manifest)}

    def summary(self) -> str:
        """Return model, images, layers and parts in one line."""
        manifest = self.manifest
        return (
            f"store {self.path}: {len(self):,} images by {manifest.model}, {', '.join(manifest.keep)} of layers "
            f"{', '.join(map(str, manifest.layers))}, {manifest.heads} heads each, convention {manifest.convention}"
        )

    @cached_property
    def basis(self) -> HeadBasis:
        """Frames of the kept heads."""
        return load_basis(self.manifest, self.path)

    @cached_property
    def content(self) -> str:
        """Hash of what it holds: what is kept beside a store (an index, what tokens wrote) is of it while this is the same."""
        with sql.reading_rows(self.path) as rows:
            sql.refuse_changed(rows, self.epoch, self.path)
            return sql.content_of(rows)

    @property
    def is_catalogue(self) -> bool:
        """Whether it is the local catalogue of a sharded store, which is written shard by shard."""
        return any(block.remote is not None for block in self.blocks)

    @property
    def place(self) -> str:
        """Where other machines find it: the address or folder of the sharded store of which it is the catalogue, else its absolute path."""
        return place_of(self.path) or str(self.path.absolute())

    def beside(self, name: str) -> Path:
        """Make the folder of something that is kept beside the arrays.

        Raises:
            OSError: it cannot be made, or a link stands there, which is not followed.
        """
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise NotADirectoryError(f"{folder} is a link, which is not followed")
        return folder

    # ---- arrays

    def heads(self, layer: int, head: int, rows: Rows = None) -> Float16[Tensor, "image d"]:
        """Return coordinates of one head.

        Args:
            layer: as numbered in the model.
            head: its number in the layer.
            rows: which images; all by default.

        Raises:
            BadSpec: the store does not hold this head.
            BadInput: an index beyond the store.
        """
        at = self.layer_at(layer)
        if not 0 <= head < self.manifest.heads:
            raise BadSpec(f"head {head}: a layer has 0 to {self.manifest.heads - 1}. Type one of these")
        # All of it once: mapped and let go. Some rows, as searches ask for: from what stays mapped.
        some = rows is not None and not isinstance(rows, slice)
        return self.gather(
            (lambda block: block.cached((at, head))) if some else (lambda block: block.heads(at)[head]),
            rows,
            (self.manifest.d,),
            np.float16,
        )

    def scan(
        self, pairs: Sequence[tuple[int, int]], size: int = 65_536
    ) -> Iterator[tuple[int, Float16[Tensor, "pair image d"]]]:
        """Read some heads of all images, a piece at a time; a page already in memory is not copied twice.

        Args:
            pairs: (layer, head) of each.
            size: images at a time, at most.

        Yields:
            Index of the first image of the piece, and the coordinates.
        """
        whole("size", size, 1)
        if not pairs:
            raise BadSpec("no head is asked for. Type pairs=[(layer, head)]")
        ats = [(self.layer_at(layer), head) for layer, head in pairs]
        if wrong := [pair for pair in pairs if not 0 <= pair[1] < self.manifest.heads]:
            raise BadSpec(f"(layer, head) {wrong[0]}: a layer has heads 0 to {self.manifest.heads - 1}")
        for block in self.blocks:
            mapped = {at: block.heads(at) for at, _ in ats}
            for first in range(0, len(block), size):
                last = min(first + size, len(block))
                yield block.start + first, torch.from_numpy(np.stack([mapped[at][h, first:last] for at, h in ats]))

    def batches(
        self, size: int = 1024, layers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Float16[Tensor, "image layer head d"]]]:
        """Read all heads of some images at a time: for what needs an image whole.

        Args:
            size: images at a time, at most.
            layers: which layers; all that are kept by default.

        Yields:
            Index of the first image, and the coordinates.
        """
        whole("size", size, 1)
        ats = [self.layer_at(layer) for layer in (self.manifest.layers if layers is None else layers)]
        if not ats:
            raise BadSpec(f"no layer is asked for. Type layers=[{self.manifest.layers[-1]}], or leave layers= away")
        for block in self.blocks:
            mapped = [block.heads(at) for at in ats]
            for first in range(0, len(block), size):
                piece = np.stack([heads[:, first : first + size] for heads in mapped])
                yield block.start + first, torch.from_numpy(piece).permute(2, 0, 1, 3).contiguous()

    def embeddings(self, rows: Rows = None, *, unit: bool = False) -> Float32[Tensor, "image embed"]:
        """Return embeddings as the model gives them, or of unit length. Cosines between images or with texts are right to about 1e-6."""
        coded = {
            name: self.gather(partial(StoreBlock.stored, name=name, keep=True), rows, (width,), np.dtype(dtype)).numpy()
            for name, (dtype, width) in self.manifest.coded_embedding.items()
        }
        embeddings = torch.from_numpy(decode(coded))
        return torch.nn.functional.normalize(embeddings, dim=-1) if unit else embeddings * self.norms(rows)[:, None]

    def norms(self, rows: Rows = None) -> Float32[Tensor, " image"]:
        """‖embedding‖: multiply with it to undo the division of the parts."""
        return self.gather(StoreBlock.norm, rows, (), np.float32)

    def mlps(self, layer: int, rows: Rows = None) -> Float16[Tensor, "image embed"]:
        """Tell what one MLP wrote into the joint space, divided by ‖embedding‖.

        Raises:
            StoreError: MLPs were not kept.
        """
        if "mlps" not in self.manifest.keep:
            raise StoreError(f"{self.path} holds no MLPs. Make a store with: clip-anatomy index … --keep heads,mlps")
        at = self.layer_at(layer)
        return self.gather(lambda block: block.mlps(at), rows, (self.manifest.embed,), np.float16)

    def layer_at(self, layer: int) -> int:
        """Place of a layer among those kept.

        Raises:
            BadSpec: it is not kept.
        """
        if layer not in self.manifest.layers:
            raise BadSpec(
                f"layer {layer} is not in {self.path}, which holds {list(self.manifest.layers)}. Type one of these"
            )
        return self.manifest.layers.index(layer)

    def moments(self, groups: str | None = None, chunks: int | None = None) -> Moments:
        """Count, mean and scatter of every head over all images, in the coordinates of `basis`.

        What was kept beside the arrays is used where it answers the question; everything else is taken from the arrays,
        without reading an image.

        Args:
            groups: a column ("group", "label"): moments per value of it, numbered as in `values(groups)`.
            chunks: independent sub-moments for bootstraps (32 is good); by default as many as are kept.
        """
        return replace(self._moments(groups, chunks), basis=self.basis)

    def means(self) -> Float64[Tensor, "layer head d"]:
        """Compute mean of every head over all images, in the coordinates of `basis`."""
        return self._moments(None, None).mean

    # ---- rows

    def rows(
        self, where: str | None = None, parameters: Sequence[Any] | Mapping[str, Any] = (), *, status: str = "done"
    ) -> list[ImageRow]:
        """Tell what is known of the images.

        Args:
            where: an SQL condition over id, path, size, "row", "col", digest, label, "group", captions, meta (JSON: `meta ->> 'colour' = 'red'`).
            parameters: values of its `?` or `:name`; never paste them into the condition.
            status: "done", "error" (images that could not be used), "removed" or "gone".

        Returns:
            Rows in the order of the arrays.

        Raises:
            BadInput: the condition is not SQL over these columns.
        """
        if status not in ("done", "error", "removed", "gone"):
            raise BadInput(f"status {status!r} is not known. Type one of: done, error, removed, gone")
        with sql.reading_rows(self.path) as rows:
            sql.refuse_changed(rows, self.epoch, self.path)
            specs = dict(rows.execute("SELECT key, spec FROM sources").fetchall())
            matching = [(self._index_of(r["block"], r["place"]), r) for r in sql.query(rows, status, where, parameters)]
            return [row_of(index, r, specs) for index, r in matching if index >= 0 or status != "done"]

    def places(
        self, where: str | None = None, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Int64[np.ndarray, " image"]:
        """Return Indices of the images that satisfy a condition, ascending: `[row.index for row in rows(where)]` without the rows.

        Args:
            where: as for `rows`.
            parameters: as for `rows`.

        Raises:
            BadInput: the condition is not SQL over these columns.
        """
        with sql.reading_rows(self.path) as rows:
            sql.refuse_changed(rows, self.epoch, self.path)
            indices = sql.query_places(rows, where, parameters)
        pieces: list[np.ndarray] = []
        for block in self.blocks:
            first, last = np.searchsorted(indices, [block.key << 32, (block.key + 1) << 32])
            inside = indices[first:last] & 0xFFFFFFFF
            pieces.append(block.start + (inside if block.alive is None else np.searchsorted(block.alive, inside)))
        return np.concatenate([np.zeros(0, np.int64), *pieces])

    def column(self, name: str) -> list[Any]:
        """Return one column of all images: id, path, size, row, col, digest, label, group or key; or a key of `meta`."""
        plain = ("key", "id", "path", "size", "row", "col", "digest", "label", "group")
        what, given = (f'images."{name}"', ()) if name in plain else ("json_extract(meta, ?)", (f'$."{name}"',))
        text = f"SELECT {what}, block, place FROM images JOIN blocks ON blocks.key = block WHERE status = 'done' ORDER BY turn, place"
        with sql.reading_rows(self.path) as rows:
            sql.refuse_changed(rows, self.epoch, self.path)
            known = {block.key for block in self.blocks}
            return [value for value, block, _ in rows.execute(text, given) if block in known]

    @property
    def sources(self) -> tuple[str, ...]:
        """Specs of the collections that its images came from."""
        with sql.reading_rows(self.path) as rows:
            return tuple(spec for (spec,) in rows.execute("SELECT spec FROM sources ORDER BY key"))

    def values(self, column: str) -> tuple[str, ...]:
        """Return the different values of a column, sorted: what the group numbers of `moments` mean."""
        return tuple(sorted({str(value) for value in self.column(column)}))

    def codes(self, column: str) -> Int64[Tensor, " image"]:
        """Return each image's value of a column, as its place in `values(column)`."""
        column_values = [str(value) for value in self.column(column)]
        code = {value: at for at, value in enumerate(sorted(set(column_values)))}
        return torch.tensor([code[value] for value in column_values], dtype=torch.int64)

    # ---- within

    def _moments(self, groups: str | None, chunks: int | None) -> Moments:
        if self.is_catalogue and groups in (None, "group"):
            merge_moments(self.path, self.manifest, groups)
        return moments_of_store(self.path, self.manifest, self.blocks, self.epoch, groups=groups, chunks=chunks)

    def _index_of(self, key: int | None, place: int | None) -> int:
        block = None if key is None else self._by_key.get(key)
        if block is None or place is None:
            return -1
        return block.start + (place if block.alive is None else int(np.searchsorted(block.alive, place)))

    @cached_property
    def _by_key(self) -> dict[int, StoreBlock]:
        return {block.key: block for block in self.blocks}

    def gather(
        self, read: Callable[[StoreBlock], np.ndarray], rows: Rows, shape: tuple[int, ...], dtype: np.typing.DTypeLike
    ) -> Tensor:
        """Return rows of any array of the blocks, in the order asked for.

        Args:
            read: block → its array, image axis first.
            rows: which images; all for None.
            shape: of one image's entry.
            dtype: of the numbers.
        """
        if rows is None:
            pieces = [read(block) for block in self.blocks]
            return torch.from_numpy(np.concatenate(pieces) if pieces else np.zeros((0, *shape), dtype))
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        wanted = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows).reshape(-1)
        if wanted.size and (wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= len(self)):
            raise BadInput(f"rows {wanted[:5].tolist()} …: whole numbers from 0 to {len(self) - 1} were expected")
        gathered = np.zeros((len(wanted), *shape), dtype)
        for block in self.blocks:
            here = np.flatnonzero((wanted >= block.start) & (wanted < block.start + len(block)))
            if len(here):
                gathered[here] = read(block)[wanted[here].astype(np.int64) - block.start]
        return torch.from_numpy(gathered)
