"""What is compared: parts of an image as plain vectors whose dot products are exactly those in the joint space.

heads      x = [(u_h − μ_h) for the chosen heads]           side by side: heads do not mix
whole      x = embedding / ‖embedding‖
without    x = embedding / ‖embedding‖ − Σ_h (u_h − μ_h) Q_h  the chosen heads set to their mean (μ = 0: to nothing)

`focus` keeps of each only what the texts of one property tell apart: their directions V (orthonormal rows) replace x by x Vᵀ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.store.blocks import StoreBlock
from clip_anatomy.store.store import Store

__all__ = ["MODES", "Space", "SpacePart", "space_of"]

MODES = ("heads", "whole", "without")


@dataclass(frozen=True)
class SpacePart:
    """One array of the store, centred and projected.

    Attributes:
        at: (place of the layer, head) of a head; None for the embedding.
        centre: taken away from every image; None for nothing.
        project: what it is multiplied with then; None for nothing.
        text: makes what takes a text embedding to the same numbers (frames are large: read when a text comes); None where it
            stays as it is.
        size: numbers that come out.
    """

    at: tuple[int, int] | None
    centre: Float64[Tensor, " d"] | None
    project: Float64[Tensor, "d out"] | None
    text: Callable[[], Float64[Tensor, "out embed"]] | None
    size: int

    def read(self, block: StoreBlock) -> Float[np.ndarray, "image d"]:
        """Read the stored numbers of a block's images."""
        return block.embedding() if self.at is None else block.cached(self.at)

    def prefetch(self, block: StoreBlock) -> None:
        """Have them read from the disk."""
        if self.at is None:
            block.coded_embedding()
        else:
            block.cached(self.at)

    def apply(self, x: Float[Tensor, "image d"]) -> Float[Tensor, "image out"]:
        """Centre and project numbers as they are stored, in their own precision."""
        x = x if self.centre is None else x - self.centre.to(x)
        return x if self.project is None else x @ self.project.to(x)


@dataclass(frozen=True)
class Space:
    """The vectors that a search compares.

    Attributes:
        mode: one of MODES.
        pairs: the chosen heads; none in mode "whole".
        parts: what they are made of.
        summed: parts add up to one vector instead of standing side by side.
        focus: directions that are looked at; None for all.
    """

    mode: str
    pairs: tuple[tuple[int, int], ...]
    parts: tuple[SpacePart, ...] = field(repr=False)
    summed: bool
    focus: Float64[Tensor, "out embed"] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Numbers of one image's vector."""
        return self.parts[0].size if self.summed else sum(part.size for part in self.parts)

    def join(self, pieces: Sequence[Float[Tensor, "image _out"]]) -> Float[Tensor, "image out"]:
        """Join applied parts to vectors."""
        if not self.summed:
            return torch.cat([*pieces], -1)
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total

    def place(
        self, heads: Float[Tensor, "image layer head d"], embedding: Float[Tensor, "image embed"]
    ) -> Float64[Tensor, "image out"]:
        """Make the vectors of pictures.

        Args:
            heads: coordinates of all stored heads.
            embedding: of unit length.
        """
        return self.join(
            [
                part.apply((embedding if part.at is None else heads[:, part.at[0], part.at[1]]).double())
                for part in self.parts
            ]
        )

    def place_text(self, text: Float[Tensor, "text embed"]) -> Float64[Tensor, "text out"]:
        """Make the vectors of texts: their dot product with an image's is the image's contribution to ⟨image, text⟩, its mean taken away."""
        placed = [text.double() if part.text is None else text.double() @ part.text().T for part in self.parts]
        return placed[0] if self.summed else torch.cat(placed, -1)

    def rows(self, store: Store, rows: Sequence[int]) -> Float64[Tensor, "image out"]:
        """Make the vectors of stored images, from the stored numbers in float64."""
        layers = store.manifest.layers
        stored = (
            store.embeddings(rows, unit=True) if part.at is None else store.heads(layers[part.at[0]], part.at[1], rows)
            for part in self.parts
        )
        return self.join([part.apply(x.double()) for part, x in zip(self.parts, stored, strict=True)])

    def shares(
        self, vectors: Float64[Tensor, "image out"], direction: Float64[Tensor, " out"]
    ) -> Float64[Tensor, "image part"]:
        """Take dot products part by part; they add up to the whole one. One column where parts are summed."""
        products = vectors * direction
        if self.summed:
            return products.sum(-1, keepdim=True)
        return torch.stack([piece.sum(-1) for piece in products.split([part.size for part in self.parts], -1)], -1)

    def average(self, direction: Float64[Tensor, " out"]) -> float:
        """Return the dot product of the means with a direction: what centring takes from every image's."""
        pieces = [direction] * len(self.parts) if self.summed else direction.split([part.size for part in self.parts])
        total = 0.0
        for part, piece in zip(self.parts, pieces, strict=True):
            if part.centre is not None:
                centre = part.centre if part.project is None else part.centre @ part.project
                total += float(centre @ piece)
        return total

    def joint(self, direction: Float64[Tensor, " out"], store: Store) -> Float64[Tensor, "part embed"]:
        """Return the same direction in the joint space, one row a part (one row where parts are summed)."""
        if self.summed or self.mode == "whole":
            return (direction if self.focus is None else direction @ self.focus)[None]
        pieces = direction.split([part.size for part in self.parts])
        if self.focus is not None:
            return torch.stack([piece @ self.focus for piece in pieces])
        rows = store.basis.rows
        return torch.stack(
            [piece @ rows[part.at] for part, piece in zip(self.parts, pieces, strict=True) if part.at is not None]
        )


def space_of(
    store: Store, mode: str, pairs: Sequence[tuple[int, int]], *, focus: Float64[Tensor, "out embed"] | None = None
) -> Space:
    """Set up the vectors of a search.

    Args:
        store: the store.
        mode: one of MODES.
        pairs: (layer, head) of the chosen heads.
        focus: orthonormal rows; only what lies along them counts.

    Raises:
        BadSpec: unknown mode.
    """
    if mode not in MODES:
        raise BadSpec(f"mode {mode!r} is not known. Type one of: {', '.join(MODES)}")
    size = store.manifest.embed if focus is None else len(focus)
    across = None if focus is None else focus.T
    text = None if focus is None else partial(_same, focus)
    if mode == "whole":
        return Space(mode, (), (SpacePart(None, None, across, text, size),), summed=False, focus=focus)
    means = _means(store)
    parts: list[SpacePart] = []
    if mode == "without":
        parts.append(SpacePart(None, None, across, text, size))
    for at in ((store.layer_at(layer), head) for layer, head in pairs):
        if mode == "heads" and across is None:
            parts.append(SpacePart(at, means[at], None, partial(_frame, store, at), store.manifest.d))
            continue
        project = _frame(store, at) if across is None else _frame(store, at) @ across
        parts.append(SpacePart(at, means[at], -project if mode == "without" else project, text, size))
    return Space(mode, tuple(pairs), tuple(parts), summed=mode == "without", focus=focus)


def _frame(store: Store, at: tuple[int, int]) -> Float64[Tensor, "d embed"]:
    return store.basis.rows[at]


def _same(x: Float64[Tensor, "out embed"]) -> Float64[Tensor, "out embed"]:
    return x


_KNOWN: dict[tuple[str, int, int], Float64[Tensor, "layer head d"]] = {}
KNOWN = 4  # stores whose means are remembered: reading them takes as long as a scan


def _means(store: Store) -> Float64[Tensor, "layer head d"]:
    """Compute mean of every head, read once per store as it stands."""
    key = str(store.path.absolute()) + store.manifest.digest + store.manifest.created, store.epoch, len(store)
    if key not in _KNOWN:
        while len(_KNOWN) >= KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)), None)
        _KNOWN[key] = store.means()
    return _KNOWN[key]
