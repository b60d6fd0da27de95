"""Mergeable statistics of head contributions: count, mean and scatter of each head, over any number of images.

TextSpan, mean ablation and the naming of heads are functions of these three. They add up: over batches, shards and
machines, in any order. They are kept in float64 with the pairwise update of Chan, Golub and LeVeque (1979), which
never subtracts two large numbers. Images are dealt into `chunks` cells by a hash of their id, so that a bootstrap over
images needs no second pass, and into one row of cells per group when groups are given.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy.errors import BadInput, reading
from clip_anatomy.files import read_safetensors, write_safetensors
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.head_batches import HasFrames, HasHeads, chunk_of, contributions_of, one_each

__all__ = ["Moments"]

FORMAT = "clip-anatomy moments 2"


@public
@dataclass(frozen=True, repr=False)
class Moments(Compact):
    """Count, mean and scatter of each head's contribution, per (group, chunk) cell.

    Coordinates (axis `d`) are head coordinates of `basis`, or those of the joint space itself when `basis` is None.
    Contributions are divided by ‖embedding‖: parts of a cosine, without unit.

    Attributes:
        counts: images in each cell.
        means: mean per cell; zero where the cell is empty.
        scatters: Σ (x − mean)(x − mean)ᵀ per cell.
        groups: the label of each entry of the group axis, ascending; (0,) when no groups were given.
        layers: which layer of the model each entry of the layer axis is.
        convention: "centered" or "official".
        model: name or digest of the model; moments of two models do not merge.
        basis: the frames of the head coordinates, or None.
        frames: where coordinates are those of the joint space: the frames that the heads write in, if they are known (of `Parts` they are).
    """

    counts: Int64[Tensor, "group chunk"]
    means: Float64[Tensor, "group chunk layer head d"]
    scatters: Float64[Tensor, "group chunk layer head d d"]
    groups: tuple[int, ...] = (0,)
    layers: tuple[int, ...] = ()
    convention: str = "centered"
    model: str = ""
    basis: HeadBasis | None = None
    frames: HeadBasis | None = None

    def __post_init__(self) -> None:
        """Fill in the layer numbers and check that frame and statistics fit."""
        if not self.layers:
            known = self.basis.layers if self.basis is not None else range(self.means.shape[2])
            object.__setattr__(self, "layers", tuple(known))
        if self.basis is not None:
            expected = (*self.basis.rows.shape[:2], self.basis.d)
            if tuple(self.means.shape[2:]) != expected:
                raise BadInput(
                    f"moments over [layer, head, d] = {list(self.means.shape[2:])} with a basis for {list(expected)}: "
                    "give the head coordinates of that basis, `basis.coordinates(contributions)`."
                )

    # ---- making

    @staticmethod
    def of(
        x: "Tensor | NDArray[Any] | HasHeads",
        *,
        basis: HeadBasis | None = None,
        groups: "Tensor | Sequence[int] | None" = None,
        ids: "Tensor | Sequence[int] | None" = None,
        chunks: int = 1,
        layers: Sequence[int] = (),
        convention: str = "centered",
        model: str = "",
    ) -> "Moments":
        """Take the moments of one batch of images.

        Args:
            x: `Parts` (its heads are divided by ‖embedding‖ here), or contributions [image, layer, head, d] that
                already are: head coordinates of `basis`, or joint-space vectors when `basis` is None.
            basis: the frames; `Parts` are turned into their coordinates.
            groups: one integer per image: moments are then kept per group.
            ids: one integer per image, which alone decides its chunk (default: its place in the batch). Give the
                store's row number, so that the same images always fall into the same chunks.
            chunks: how many independent sub-moments to keep; 32 is good for bootstraps, 1 keeps memory small.
            layers: the model's layer numbers, when only some layers are kept.
            convention: "centered" or "official" (taken from `Parts` or `basis` when they say).
            model: name or digest of the model.

        Returns:
            Moments, exact to float64 rounding. `Moments.of(a).merge(Moments.of(b))` equals `Moments.of(a and b)`.

        Raises:
            BadInput: wrong shapes, non-finite numbers.

        Example:
            >>> x = torch.arange(12.0).reshape(6, 1, 1, 2)
            >>> m = Moments.of(x[:2]).merge(Moments.of(x[2:]))
            >>> m.count, m.mean.flatten().tolist(), m.covariance[0, 0].tolist()
            (6, [5.0, 6.0], [[14.0, 14.0], [14.0, 14.0]])
        """
        data, convention = contributions_of(x, basis, convention)
        if chunks < 1:
            raise BadInput(f"chunks={chunks}: keep at least one. Type chunks=1 (or 32 for bootstraps).")
        cell = chunk_of(one_each(ids, len(data), "ids", torch.arange(len(data))), chunks)
        label = one_each(groups, len(data), "groups", torch.zeros(len(data), dtype=torch.int64))
        names = torch.unique(label)
        row = torch.searchsorted(names, label)
        blank = Moments(
            *_zeros(data.shape[1:], len(names) or 1, chunks),
            tuple(names.tolist()) or (0,),
            tuple(layers),
            convention,
            model,
            basis,
            x.basis if basis is None and isinstance(x, HasFrames) else None,
        )
        for g, c in torch.unique(torch.stack([row, cell], 1), dim=0).tolist():
            here = (row == g) & (cell == c)
            part = data if bool(here.all()) else data[here.to(data.device)]
            mean = part.mean(0)
            centred = (part - mean).permute(1, 2, 0, 3)  # [layer, head, image, d]
            blank.counts[g, c] = len(part)
            blank.means[g, c] = mean.cpu()
            blank.scatters[g, c] = (centred.transpose(-1, -2) @ centred).cpu()
        return blank

    @staticmethod
    def merged(parts: "Iterable[Moments]") -> "Moments":
        """Merge any number of moments, in any order (a stream of batches, the shards of many machines).

        They are merged in a tree, as sums of about equal sizes: rounding grows with the logarithm of their number, and so does what is held.
        """
        sums: list[tuple[int, Moments]] = []  # number of parts in each: falling powers of two
        for part in parts:
            size, total = 1, part
            while sums and sums[-1][0] == size:
                total, size = sums.pop()[1].merge(total), 2 * size
            sums.append((size, total))
        if not sums:
            raise BadInput("no moments to merge: give at least one.")
        total = sums.pop()[1]
        while sums:
            total = sums.pop()[1].merge(total)
        return total

    def merge(self, other: "Moments") -> "Moments":
        """Merge the moments of two sets of images.

        Raises:
            BadInput: the two are of different models, layers, conventions, frames or chunk numbers; names the
                difference.
        """
        self._refuse_unlike(other)
        groups = tuple(sorted({*self._filled(), *other._filled()})) or (0,)
        a, b = self._spread(groups), other._spread(groups)
        n = a.counts + b.counts
        weight = _ratio(b.counts, n)
        gap = b.means - a.means
        mean = a.means + gap * weight
        pull = gap * (_cells(a.counts.double(), 3) * weight)
        scatters = torch.add(a.scatters, b.scatters).addcmul_(
            pull[..., None], gap[..., None, :]
        )  # one new array, not three
        frames = None if b.frames is None else a.frames
        return replace(a, counts=n, means=mean, scatters=scatters, frames=frames)

    def without(self, other: "Moments") -> "Moments":
        """Take out images that were merged in before (the inverse of `merge`, to float64 rounding)."""
        self._refuse_unlike(other)
        if missing := sorted({*other._filled()} - {*self.groups}):
            raise BadInput(f"groups {missing} are not in these moments: only what was merged can be taken out.")
        b = other._spread(self.groups)
        n = self.counts - b.counts
        if int(n.min()) < 0:
            raise BadInput("more images to take out than there are in a cell: only what was merged can be taken out.")
        left = _cells((n > 0).double(), 3)
        ratio = _ratio(b.counts, n)
        mean = (self.means + (self.means - b.means) * ratio) * left
        gap = b.means - mean
        pull = gap * (_ratio(b.counts, self.counts) * _cells(n.double(), 3))
        scatter = self.scatters - b.scatters - pull[..., None] * gap[..., None, :]
        return replace(self, counts=n, means=mean, scatters=scatter * left[..., None])

    # ---- reading

    @cached_property
    def pooled(self) -> "Moments":
        """One cell over all groups and chunks."""
        return self.ungrouped._pool(1)

    @cached_property
    def ungrouped(self) -> "Moments":
        """The chunks, each over all groups."""
        return replace(self._pool(0), groups=(0,))

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @property
    def chunks(self) -> int:
        """Number of independent sub-moments."""
        return self.counts.shape[1]

    @property
    def mean(self) -> Float64[Tensor, "layer head d"]:
        """Mean contribution of each head."""
        return (self.means * _ratio(self.counts, self.counts.sum())).sum((0, 1))

    @property
    def covariance(self) -> Float64[Tensor, "layer head d d"]:
        """Unbiased covariance (n − 1), zero for fewer than two images."""
        return self.pooled.scatters[0, 0] / max(self.count - 1, 1)

    @property
    def uncentred(self) -> Float64[Tensor, "layer head d d"]:
        """E[x xᵀ], whose eigenvectors are the right singular vectors of the official, uncentred, SVD."""
        mean = self.mean
        return self.pooled.scatters[0, 0] / max(self.count, 1) + mean[..., :, None] * mean[..., None, :]

    def group(self, label: int) -> "Moments":
        """Only the images of one group."""
        if label not in self.groups:
            raise BadInput(f"group {label} is not in these moments. Type one of: {', '.join(map(str, self.groups))}")
        at = self.groups.index(label)
        cells = slice(at, at + 1)
        return replace(
            self, counts=self.counts[cells], means=self.means[cells], scatters=self.scatters[cells], groups=(label,)
        )

    def select(self, layers: Sequence[int]) -> "Moments":
        """Only these layers (numbers as in the model)."""
        if missing := [layer for layer in layers if layer not in self.layers]:
            raise BadInput(f"layers {missing} are not in these moments. Type some of: {list(self.layers)}")
        rows = [self.layers.index(layer) for layer in layers]
        basis, frames = (None if kept is None else kept.select(layers) for kept in (self.basis, self.frames))
        means, scatters = self.means[:, :, rows], self.scatters[:, :, rows]
        return replace(self, means=means, scatters=scatters, layers=tuple(layers), basis=basis, frames=frames)

    # ---- keeping

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (the basis included) by a temporary file and a rename; never half a file.

        Raises:
            OutputError: the place cannot be written.
        """
        tensors = {"counts": self.counts, "means": self.means, "scatters": self.scatters}
        for kind, kept in (("basis", self.basis), ("frames", self.frames)):
            if kept is not None:
                tensors |= {f"{kind}_{name}": tensor for name, tensor in kept.tensors().items()}
        metadata = {
            "format": FORMAT,
            "axes": "counts: group chunk; means: group chunk layer head d; scatters: group chunk layer head d d",
            "unit": "contribution / ‖embedding‖",
            "convention": self.convention,
            "model": self.model,
            "layers": json.dumps(self.layers),
            "groups": json.dumps(self.groups),
        }
        return write_safetensors(Path(path), tensors, metadata)

    @staticmethod
    def load(path: str | Path) -> "Moments":
        """Read what `save` wrote.

        Raises:
            BadInput: not such a file; says what it is instead.
        """
        tensors, metadata = read_safetensors(Path(path), FORMAT, "Moments.of(parts).save(path)")
        with reading(path, "It holds no whole moments. Make them anew with Moments.of(parts).save(path)"):
            layers, groups = (tuple(map(int, json.loads(metadata[name]))) for name in ("layers", "groups"))
            counts, means, scatters = (tensors[name] for name in ("counts", "means", "scatters"))
            if means.ndim != 5 or scatters.shape != (*means.shape, means.shape[-1]) or counts.shape != means.shape[:2]:
                raise ValueError(f"counts {[*counts.shape]}, means {[*means.shape]}, scatters {[*scatters.shape]}")
            if len(groups) != counts.shape[0] or len(layers) != means.shape[2]:
                raise ValueError(f"{len(groups)} groups and {len(layers)} layers of {[*means.shape[:3]]}")
            convention = metadata["convention"]
            basis, frames = (
                HeadBasis.of_tensors(tensors[f"{kind}_rows"], tensors[f"{kind}_factor"], convention, layers)
                if f"{kind}_rows" in tensors
                else None
                for kind in ("basis", "frames")
            )
            return Moments(counts, means, scatters, groups, layers, convention, metadata["model"], basis, frames)

    # ---- within

    def _pool(self, axis: int) -> "Moments":
        """Pool all cells along one axis into one."""
        if self.counts.shape[axis] == 1:
            return self
        n = self.counts.sum(axis, keepdim=True)
        mean = (self.means * _ratio(self.counts, n)).sum(axis, keepdim=True)
        gap = self.means - mean
        between = (gap * _cells(self.counts.double(), 3))[..., None] * gap[..., None, :]
        groups = self.groups[:1] if axis == 0 else self.groups
        scatters = (self.scatters + between).sum(axis, keepdim=True)
        return replace(self, counts=n, means=mean, scatters=scatters, groups=groups)

    def _filled(self) -> list[int]:
        """Return labels of the groups that hold images."""
        return [label for label, n in zip(self.groups, self.counts.sum(1).tolist(), strict=True) if n]

    def _spread(self, groups: tuple[int, ...]) -> "Moments":
        """Return the same moments over another group axis, which holds at least the filled groups."""
        if groups == self.groups:
            return self
        counts, means, scatters = _zeros(self.means.shape[2:], len(groups), self.chunks)
        for label in self._filled():
            at, to = self.groups.index(label), groups.index(label)
            counts[to], means[to], scatters[to] = self.counts[at], self.means[at], self.scatters[at]
        return replace(self, counts=counts, means=means, scatters=scatters, groups=groups)

    def _refuse_unlike(self, other: "Moments") -> None:
        for name in ("model", "convention", "layers", "chunks"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise BadInput(f"moments with {name} {mine!r} and {theirs!r} do not merge: take both the same way.")
        if self.means.shape[2:] != other.means.shape[2:]:
            shapes = list(self.means.shape[2:]), list(other.means.shape[2:])
            raise BadInput(f"moments over [layer, head, d] = {shapes[0]} and {shapes[1]} do not merge.")
        if (self.basis is None) != (other.basis is None) or (
            _other_frames(self.basis, other.basis) or _other_frames(self.frames, other.frames)
        ):
            raise BadInput("moments in different head coordinates do not merge: take both with the same basis.")


def _other_frames(mine: HeadBasis | None, theirs: HeadBasis | None) -> bool:
    if mine is None or theirs is None or mine is theirs:
        return False
    return not torch.allclose(mine.rows, theirs.rows, atol=1e-6)


def _zeros(shape: Sequence[int], groups: int, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    layer, head, d = shape
    return (
        torch.zeros(groups, chunks, dtype=torch.int64),
        torch.zeros(groups, chunks, layer, head, d, dtype=torch.float64),
        torch.zeros(groups, chunks, layer, head, d, d, dtype=torch.float64),
    )


def _cells(x: Tensor, more: int) -> Tensor:
    return x.reshape(*x.shape, *[1] * more)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    # In float64: torch divides two integer tensors in float32, which would cost nine digits.
    return _cells(part.double() / whole.clamp(min=1).double(), 3)
