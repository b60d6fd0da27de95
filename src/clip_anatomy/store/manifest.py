"""`store.json`: what a store holds and of which model, written once when it is made and never changed."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec, StoreError, UnsupportedModel, reading
from clip_anatomy.files import digest, read_json, read_safetensors, write_safetensors, written_whole
from clip_anatomy.loading.clip import Clip
from clip_anatomy.run_record import versions
from clip_anatomy.split.basis import HeadBasis, coordinate_count
from clip_anatomy.split.layernorm import check_convention
from clip_anatomy.store.fixed_point import fixed_point_arrays
from clip_anatomy.towers.absent_tower import refuse_unsplit
from clip_anatomy.towers.protocol import KINDS, has_pool_mlp

__all__ = ["Manifest", "layers_of", "manifest_for", "parts_of"]

FORMAT = "clip-anatomy store 3"
HALF = "clip-anatomy store 2"  # embeddings in float16; read, and continued as it is
NAME = "store.json"
BASIS = "basis.safetensors"
BASIS_FORMAT = "clip-anatomy basis 1"
PARTS = ("heads", "mlps")
LARGEST = 2**20  # bytes of store.json; it has 2 kB
MOST = 2**20  # of heads, layers and coordinates


@dataclass(frozen=True)
class Manifest:
    """What a store says about itself.

    Attributes:
        model: the spec that the model was loaded from.
        digest: hash of its weights; this, not the name, decides whether two models are the same.
        convention: how LayerNorm's mean and the biases are shared: "centered" or "official".
        preprocess: how the pixels were made.
        layers: which layers are kept, numbered as in the model.
        heads: heads per layer.
        d: coordinates per head.
        embed: width of the joint space.
        depth: layers of the model.
        keep: which parts are kept: "heads", "mlps".
        versions: of the libraries that made it.
        created: date and time, UTC.
        origin: where the model lies, so that it is opened again from anywhere (see `Origin`); empty for a live one.
        pool_mlp: whether the model has an MLP behind an attention pool, which no store holds.
        format: version of this layout.
    """

    model: str
    digest: str
    convention: str
    preprocess: Mapping[str, Any]
    layers: tuple[int, ...]
    heads: int
    d: int
    embed: int
    depth: int
    keep: tuple[str, ...]
    versions: Mapping[str, str]
    created: str
    origin: Mapping[str, str] = field(default_factory=dict[str, str])
    pool_mlp: bool = False
    format: str = FORMAT

    @staticmethod
    def of(
        clip: Clip, layers: tuple[int, ...], keep: tuple[str, ...], convention: str, folder: Path | None = None
    ) -> "Manifest":
        """Describe a store that is about to be made with this model, in a folder that the places of the model are seen from."""
        check_convention(convention)
        tower = clip.vision
        if "mlps" in keep and not tower.has_mlps:
            raise BadSpec(
                f"this image tower is {KINDS[tower.architecture]}, and no MLPs write into the joint space. Type keep='heads'"
            )
        return Manifest(
            model=clip.name,
            digest=clip.digest,
            convention=convention,
            preprocess=clip.preprocess.to_dict(),
            layers=layers,
            heads=tower.heads,
            d=coordinate_count(tower, convention),
            embed=tower.embed,
            depth=tower.layers,
            keep=keep,
            pool_mlp=has_pool_mlp(tower),
            versions=versions(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            origin={} if folder is None or clip.origin is None else clip.origin.to_dict(folder),
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of arrays that one image takes."""
        mlps = len(self.layers) * self.embed if "mlps" in self.keep else 0
        of_image = sum(np.dtype(dtype).itemsize * width for dtype, width in self.coded_embedding.values())
        return 2 * (len(self.layers) * self.heads * self.d + mlps) + of_image + 4

    @property
    def coded_embedding(self) -> dict[str, tuple[str, int]]:
        """Name → type and width of the arrays that embeddings are coded in."""
        return {"embedding": ("float16", self.embed)} if self.format == HALF else fixed_point_arrays(self.embed)

    @property
    def image_arrays(self) -> dict[str, tuple[str, int]]:
        """Name → type and width of the arrays that hold one row an image; width 0 for one number."""
        return {**self.coded_embedding, "norm": ("float32", 0)}

    @property
    def cell_bytes(self) -> int:
        """Bytes of the moments of all heads over one set of images."""
        return 8 * len(self.layers) * self.heads * self.d * (self.d + 1) + 8

    @property
    def one_part(self) -> bool:
        """Whether all that the image tower writes is one part: its places are averaged, or nothing of it is split."""
        return self.depth * self.heads <= 1

    def need_heads(self, instead: str) -> None:
        """Raise UnsupportedModel where the image tower has no heads to tell apart; `instead` is what to type."""
        if self.one_part:
            raise UnsupportedModel(
                f"the image tower of {self.model} has no heads: all that it writes is one part. Type {instead}"
            )

    def refuse_other(self, model: str, digest: str, where: Path | str) -> None:
        """Raise StoreError, naming both, unless the digest is this store's."""
        if digest != self.digest:
            raise StoreError(
                f"{where} was made with {self.model} (weights {self.digest[:8]}); this is {model} (weights {digest[:8]}). "
                f"Type model={self.model!r}, or the path of another store"
            )

    def refuse_unlike(self, other: "Manifest", where: Path | str) -> None:
        """Raise StoreError when a store that is to be continued was made in another way; names the difference."""
        self.refuse_other(other.model, other.digest, where)
        for name in ("layers", "keep", "convention", "preprocess"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise StoreError(
                    f"{where} was made with {name} {_in_words(mine)}, {_in_words(theirs)} was asked for. Leave it away to go on, or "
                    "type the path of a new store"
                )

    @property
    def text(self) -> bytes:
        """The content of `store.json`."""
        fields = {name: value for name, value in asdict(self).items() if name != "pool_mlp" or value}
        return (json.dumps(fields, indent=2) + "\n").encode()

    @property
    def text_digest(self) -> str:
        """Hash of it."""
        return digest(self.text)

    def save(self, folder: Path) -> None:
        """Write the description, whole or not at all."""
        with written_whole(folder / NAME, "Type the path of a folder with room") as temporary:
            temporary.write_bytes(self.text)

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            StoreError: no store, or one of another version.
        """
        path, again = folder / NAME, "It is damaged: index anew, or put its copy back"
        with reading(path, again, StoreError):
            there = path.exists()
        if not there:
            raise StoreError(f"{folder} is no store. Make one: clip-anatomy index SOURCE {folder}")
        return Manifest.read(read_json(path, again, kind=StoreError, largest=LARGEST), folder)

    @staticmethod
    def read(fields: Mapping[str, Any], where: Path | str) -> "Manifest":
        """Read what stands in `store.json`.

        Raises:
            StoreError: it is of another version, or damaged.
        """
        if fields.get("format") not in (FORMAT, HALF):
            raise StoreError(f"{where} is {fields.get('format')!r}, this version reads {FORMAT!r}. Index it anew")
        with reading(f"{where}/{NAME}", "It is damaged: index anew, or put its copy back", StoreError):
            return _checked(
                Manifest(
                    model=str(fields["model"]),
                    digest=str(fields["digest"]),
                    convention=str(fields["convention"]),
                    created=str(fields["created"]),
                    heads=int(fields["heads"]),
                    d=int(fields["d"]),
                    embed=int(fields["embed"]),
                    depth=int(fields["depth"]),
                    preprocess=dict(fields["preprocess"]),
                    versions=dict(fields["versions"]),
                    layers=tuple(int(layer) for layer in fields["layers"]),
                    keep=parts_of(fields["keep"]),
                    format=str(fields["format"]),
                    pool_mlp=fields.get("pool_mlp") is True,
                    origin={str(name): str(place) for name, place in dict(fields.get("origin", {})).items()},
                )
            )


def manifest_for(
    clip: Clip,
    old: Manifest | None,
    where: Path | str,
    *,
    layers: str | int | Sequence[int] | None,
    keep: str | Sequence[str] | None,
    convention: str | None,
) -> Manifest:
    """Tell what a store is to be: as asked for; where nothing was asked, as it is; where nothing is, all heads.

    Args:
        clip: the model.
        old: what is there.
        where: its folder, or the address of a sharded store.
        layers: as typed.
        keep: as typed.
        convention: as typed.

    Raises:
        StoreError: what is there is of another model.
        BadSpec: no such layers, parts or convention.
    """
    if old is not None:
        old.refuse_other(clip.name, clip.digest, where)
    refuse_unsplit(clip.vision)
    kept = layers_of("all" if layers is None else layers, clip.vision.layers)
    return Manifest.of(
        clip,
        old.layers if old is not None and layers is None else kept,
        old.keep if old is not None and keep is None else parts_of("heads" if keep is None else keep),
        old.convention if old is not None and convention is None else convention or "centered",
        where if isinstance(where, Path) else None,
    )


def _checked(manifest: Manifest) -> Manifest:
    """Refuse numbers that no model has."""
    numbers = (manifest.heads, manifest.d, manifest.embed, manifest.depth)
    if not all(0 < number < MOST for number in numbers) or not all(
        0 <= layer < manifest.depth for layer in manifest.layers
    ):
        raise ValueError(f"heads, d, embed, depth = {numbers} and layers {list(manifest.layers)[:5]} are of no model")
    return manifest


def save_basis(basis: HeadBasis, folder: Path) -> None:
    """Write the frames of the kept heads in float32 (their error, 6e-8, is far below that of float16 coordinates)."""
    write_safetensors(folder / BASIS, *_basis_tensors(basis))


def basis_bytes(basis: HeadBasis) -> bytes:
    """Return what `save_basis` writes."""
    from safetensors.torch import save

    return save(*_basis_tensors(basis))


def _basis_tensors(basis: HeadBasis) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {name: tensor.float().contiguous() for name, tensor in basis.tensors().items()}
    return tensors, {"format": BASIS_FORMAT, "axes": "rows: layer head d embed; factor: layer head source d"}


def load_basis(manifest: Manifest, folder: Path) -> HeadBasis:
    """Read the frames.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        tensors, _ = read_safetensors(folder / BASIS, BASIS_FORMAT, "clip-anatomy index")
    except BadInput as error:
        raise StoreError(str(error)) from error
    return HeadBasis.of_tensors(tensors["rows"], tensors["factor"], manifest.convention, manifest.layers)


def layers_of(spec: str | int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Tell which layers are meant: "all", "last:4", "8-11", "0,3,11", or numbers.

    Raises:
        BadSpec: none of these, or layers that the model does not have.

    Example:
        >>> layers_of("last:4", 12), layers_of("0,8-9", 12)
        ((8, 9, 10, 11), (0, 8, 9))
    """
    numbers: list[int] = []
    try:
        if not isinstance(spec, str):
            numbers = [spec] if isinstance(spec, int) else [int(layer) for layer in spec]
        elif spec == "all":
            numbers = list(range(depth))
        elif spec.startswith("last:"):
            last = int(spec.removeprefix("last:"))
            numbers = list(range(depth - last, depth)) if 0 < last <= depth else []
        else:
            for part in spec.split(","):
                first, dash, end = part.strip().partition("-")
                ends = int(first), int(end if dash else first)
                if not 0 <= ends[0] <= ends[1] < depth:  # before a range of that size is made
                    raise ValueError
                numbers += range(ends[0], ends[1] + 1)
    except (ValueError, TypeError, OverflowError):
        numbers = []
    if not numbers or min(numbers) < 0 or max(numbers) >= depth:
        raise BadSpec(
            f"layers {spec!r}: the model has 0 to {depth - 1}. Type all, last:4, 8-{depth - 1} or 0,{depth - 1}"
        )
    return tuple(sorted(set(numbers)))


def parts_of(keep: str | Sequence[str]) -> tuple[str, ...]:
    """Tell which parts are meant.

    Raises:
        BadSpec: an unknown part, or no heads.

    Example:
        >>> parts_of("mlps,heads")
        ('heads', 'mlps')
    """
    names = [name.strip() for name in (keep.split(",") if isinstance(keep, str) else keep)]
    if unknown := [name for name in names if name not in PARTS]:
        raise BadSpec(f"keep {unknown[0]!r} is not known. Type heads or heads,mlps (embeddings are always kept)")
    if "heads" not in names:
        raise BadSpec(f"keep {keep!r} leaves out the heads, which a store is made for. Type heads or heads,mlps")
    return tuple(name for name in PARTS if name in names)


def _in_words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
