"""`TextSpanResult`: picked texts, explained variance and directions per head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.split.basis import HeadBasis

__all__ = ["Pick", "TextSpanResult"]


@dataclass(frozen=True)
class Pick:
    """One picked text of one head, as a row to print.

    Attributes:
        place: 0 for the first pick.
        text: the description.
        explained_alone: share of the head's variance along this text by itself.
        cumulative: share of the variance explained by all picks up to this one.
        runner_up: the text that came second.
        margin: 1 − (its score / the winner's): 0 is a tie, 1 is no contest.
    """

    place: int
    text: str
    explained_alone: float
    cumulative: float
    runner_up: str
    margin: float


@dataclass(frozen=True)
class TextSpanResult:
    """Texts that span what each head writes. A place without a pick (the head has no more dimensions) holds −1 and zeros.

    Attributes:
        indices: picked texts, as rows of the pool.
        score: t_jᵀ C t_j of each pick when it was picked.
        explained_alone: share of the head's variance along each picked text by itself.
        cumulative: share explained by the picks so far, together.
        pca_explained: the most that as many directions could explain: that of the principal components.
        runner_up: the text with the second score.
        margin: 1 − second score / first score.
        directions: orthonormal q_k of the reconstruction.
        mean: mean contribution of each head.
        rank: dimensions searched in each head; 0 for heads not asked for.
        unnamed: heads whose first `top_k` picks explain less than `threshold` of the variance.
        threshold: see `unnamed`.
        top_k: see `unnamed`.
        count: images behind the moments.
        layers: which layer of the model each entry of the layer axis is.
        convention: "centered" or "official".
        basis: frames of the coordinates, or None for the joint space.
    """

    indices: Int64[Tensor, "layer head pick"]
    score: Float64[Tensor, "layer head pick"]
    explained_alone: Float64[Tensor, "layer head pick"]
    cumulative: Float64[Tensor, "layer head pick"]
    pca_explained: Float64[Tensor, "layer head pick"]
    runner_up: Int64[Tensor, "layer head pick"]
    margin: Float64[Tensor, "layer head pick"]
    directions: Float64[Tensor, "layer head pick d"]
    mean: Float64[Tensor, "layer head d"]
    rank: Int64[Tensor, "layer head"]
    unnamed: Bool[Tensor, "layer head"]
    threshold: float
    top_k: int
    count: int
    layers: tuple[int, ...]
    convention: str
    basis: HeadBasis | None

    @property
    def texts_per_head(self) -> int:
        """Length of the pick axis."""
        return self.indices.shape[2]

    @property
    def covered(self) -> Bool[Tensor, "layer head"]:
        """Heads that were asked for."""
        return self.rank > 0

    def heads(self) -> Iterator[tuple[int, int]]:
        """(layer, head) of every covered head, layers numbered as in the model."""
        for row, head in torch.nonzero(self.covered).tolist():
            yield self.layers[row], head

    def first(self, texts_per_head: int) -> "TextSpanResult":
        """Keep the first picks only: exactly what fewer texts per head would have given."""
        keep = slice(0, texts_per_head)
        names = (
            "indices",
            "score",
            "explained_alone",
            "cumulative",
            "pca_explained",
            "runner_up",
            "margin",
            "directions",
        )
        return replace(self, **{name: getattr(self, name)[:, :, keep] for name in names})

    def reconstruct(self, coordinates: Float64[Tensor, "image layer head d"]) -> Float64[Tensor, "image layer head d"]:
        """Replace each covered head's contribution by its affine reconstruction; others by their mean.

        Args:
            coordinates: contributions in the coordinates of the moments, divided by ‖embedding‖.

        Returns:
            mean + Σ_k q_k q_kᵀ (x − mean).
        """
        along = torch.einsum("ilhd,lhpd->ilhp", coordinates - self.mean, self.directions)
        return self.mean + torch.einsum("ilhp,lhpd->ilhd", along, self.directions)

    def picks(self, layer: int, head: int, texts: Sequence[str]) -> list[Pick]:
        """List the picks of one head with their texts.

        Args:
            layer: number of the layer in the model.
            head: number of the head.
            texts: the pool, in the order of its embeddings.
        """
        if layer not in self.layers:
            raise BadInput(f"layer {layer} is not in this span. Type one of: {', '.join(map(str, self.layers))}")
        at = self.layers.index(layer), head
        chosen: list[int] = self.indices[at].tolist()
        second: list[int] = self.runner_up[at].tolist()
        return [
            Pick(
                place,
                texts[index],
                float(self.explained_alone[at][place]),
                float(self.cumulative[at][place]),
                texts[second[place]] if second[place] >= 0 else "",
                float(self.margin[at][place]),
            )
            for place, index in enumerate(chosen)
            if index >= 0
        ]
