"""What is compared: the parts of an image that a search looks at, as plain vectors whose dot products are exact.

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
from jaxtyping import Float, Float16, Float64
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.store.blocks import Block
from clip_anatomy.store.store import Store

__all__ = ["MODES", "Part", "Space", "mean_embedding", "space_of", "units"]

MODES = ("heads", "whole", "without")
PIECE = 65_536


@dataclass(frozen=True)
class Part:
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

    def read(self, block: Block) -> Float16[np.ndarray, "image d"]:
        """The stored numbers of a block's images."""
        return block.run(self.at)

    def apply(self, x: Float[Tensor, "image d"]) -> Float[Tensor, "image out"]:
        """Centre and project numbers as they are stored, in their own precision."""
        x = x if self.centre is None else x - self.centre.to(x)
        return x if self.project is None else x @ self.project.to(x)


@dataclass(frozen=True)
class Space:
    """The vectors of a search.

    Attributes:
        mode: one of MODES.
        pairs: the chosen heads; none in mode "whole".
        parts: what they are made of.
        summed: parts add up to one vector instead of standing side by side.
        centred: whether means are taken away.
        focus: directions that are looked at; None for all.
    """

    mode: str
    pairs: tuple[tuple[int, int], ...]
    parts: tuple[Part, ...] = field(repr=False)
    summed: bool
    centred: bool
    focus: Float64[Tensor, "out embed"] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Numbers of one image's vector."""
        return self.parts[0].size if self.summed else sum(part.size for part in self.parts)

    def join(self, pieces: Sequence[Float[Tensor, "image _out"]]) -> Float[Tensor, "image out"]:
        """Applied parts → vectors."""
        if not self.summed:
            return torch.cat([*pieces], -1)
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total

    def place(
        self, heads: Float[Tensor, "image layer head d"], embedding: Float[Tensor, "image embed"]
    ) -> Float64[Tensor, "image out"]:
        """Vectors of pictures.

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
        """Vectors of texts: their dot product with an image's is the image's contribution to ⟨image, text⟩, its mean taken away."""
        found = [text.double() if part.text is None else text.double() @ part.text().T for part in self.parts]
        return found[0] if self.summed else torch.cat(found, -1)

    def rows(self, store: Store, rows: Sequence[int]) -> Float64[Tensor, "image out"]:
        """Vectors of stored images, from the stored numbers in float64."""
        found: list[Tensor] = []
        for part in self.parts:
            x = (
                units(store, rows)
                if part.at is None
                else store.heads(store.manifest.layers[part.at[0]], part.at[1], rows)
            )
            found.append(part.apply(x.double()))
        return self.join(found)

    def shares(
        self, vectors: Float64[Tensor, "image out"], direction: Float64[Tensor, " out"]
    ) -> Float64[Tensor, "image part"]:
        """Dot products part by part; they add up to the whole one. One column where parts are summed."""
        products = vectors * direction
        if self.summed:
            return products.sum(-1, keepdim=True)
        return torch.stack([piece.sum(-1) for piece in products.split([part.size for part in self.parts], -1)], -1)

    def average(self, direction: Float64[Tensor, " out"]) -> float:
        """What was taken away from every image's dot product with a direction, together with the means."""
        pieces = [direction] * len(self.parts) if self.summed else direction.split([part.size for part in self.parts])
        total = 0.0
        for part, piece in zip(self.parts, pieces, strict=True):
            if part.centre is not None:
                centre = part.centre if part.project is None else part.centre @ part.project
                total += float(centre @ piece)
        return total

    def joint(self, direction: Float64[Tensor, " out"], store: Store) -> Float64[Tensor, "part embed"]:
        """The same direction in the joint space, one row a part (one row where parts are summed)."""
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
    store: Store,
    mode: str,
    pairs: Sequence[tuple[int, int]],
    *,
    centred: bool,
    focus: Float64[Tensor, "out embed"] | None = None,
) -> Space:
    """Set up the vectors of a search.

    Args:
        store: the store.
        mode: one of MODES.
        pairs: (layer, head) of the chosen heads.
        centred: take the stored means away (of heads; of the embedding where that is compared).
        focus: orthonormal rows; only what lies along them counts.

    Raises:
        BadSpec: unknown mode, no heads where some are needed, or heads that are not stored.
    """
    if mode not in MODES:
        raise BadSpec(f"mode {mode!r} is not known. Type one of: {', '.join(MODES)}")
    if mode != "whole" and not pairs:
        raise BadSpec("no heads were chosen. Type heads='role=colour', '9.3,10.1', 'words=striped', 'auto' or 'all'")
    ats: list[tuple[int, int]] = []
    for layer, head in pairs:
        place = store.layer_at(layer)
        if not 0 <= head < store.manifest.heads:
            raise BadSpec(
                f"head {layer}.{head} is not stored: a layer has heads 0 to {store.manifest.heads - 1}. Type one of these"
            )
        ats.append((place, head))
    d, embed = store.manifest.d, store.manifest.embed
    size = embed if focus is None else len(focus)
    across = None if focus is None else focus.T
    # Heads are set to their mean also when the embedding itself is not centred: setting them to zero would move it far away.
    means = _means(store) if (centred and mode == "heads") or mode == "without" else None
    whole = None if focus is None else partial(_same, focus)
    parts: list[Part] = []
    if mode != "heads":
        parts.append(Part(None, mean_embedding(store) if centred else None, across, whole, size))
    if mode == "without":
        assert means is not None
        for at in ats:
            rows = store.basis.rows[at]
            parts.append(Part(at, means[at], -rows if across is None else -(rows @ across), whole, size))
    elif mode == "heads":
        for at in ats:
            centre = None if means is None else means[at]
            if across is None:
                parts.append(Part(at, centre, None, partial(_frame, store, at), d))
            else:
                parts.append(Part(at, centre, _frame(store, at) @ across, whole, size))
    chosen = () if mode == "whole" else tuple((layer, head) for layer, head in pairs)
    return Space(mode, chosen, tuple(parts), mode == "without", centred, focus)


def _frame(store: Store, at: tuple[int, int]) -> Float64[Tensor, "d embed"]:
    return store.basis.rows[at]


def _same(x: Float64[Tensor, "out embed"]) -> Float64[Tensor, "out embed"]:
    return x


_KNOWN: dict[tuple[str, int, int], Float64[Tensor, "layer head d"]] = {}
KNOWN = 4  # stores whose means are remembered: reading them takes as long as a scan


def _means(store: Store) -> Float64[Tensor, "layer head d"]:
    """Mean of every head, read once per store as it stands."""
    key = str(store.path.absolute()) + store.manifest.digest + store.manifest.created, store.epoch, len(store)
    if key not in _KNOWN:
        while len(_KNOWN) >= KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)), None)
        _KNOWN[key] = store.means()
    return _KNOWN[key]


def mean_embedding(store: Store) -> Float64[Tensor, " embed"]:
    """Mean of the unit embeddings of all images; reads them once."""
    total = torch.zeros(store.manifest.embed, dtype=torch.float64)
    for block in store.blocks:
        found = block.embedding()
        for first in range(0, len(block), PIECE):
            total += torch.from_numpy(found[first : first + PIECE]).double().sum(0)
    return total / max(len(store), 1)


def units(store: Store, rows: Sequence[int]) -> Float16[Tensor, "image embed"]:
    """Unit embeddings exactly as they are stored."""
    return store.gather(lambda block: block.run(None), rows, (store.manifest.embed,), np.float16)
