"""Towers whose host runs them: split where the places of a picture are averaged, or not at all.

    pixels ─▶ trunk, the host's own ─▶ one vector x_n per place ─▶ mean ─▶ norm ─▶ projection ─▶ embedding      (split at the readout)

What lies before the mean (convolutions, windows of attention, a text model with norms in its stream) is no sum of parts; behind it
everything is linear once the norm is frozen, so each place has its exact share:

    embedding = Σ_n 1/N · ((x_n − mean) / σ ⊙ γ) P + β P

As one layer with one head that looks at every place alike, such a tower runs through everything that asks the protocol.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.towers.layers import AttentionPooling, Linear, Norm
from clip_anatomy.towers.operations import inverse_deviation
from clip_anatomy.towers.protocol import Architecture
from clip_anatomy.towers.trace import LayerReading, Trace


@dataclass(frozen=True)
class MeanOfPlaces:
    """What stands for attention in a tower that averages its places: each counts alike, and is written as it is."""

    out: Linear
    scale_attention: None = None
    norm_mixed: None = None
    norm_written: None = None
    norms_of_stream: tuple[()] = ()


@dataclass(frozen=True)
class HostTower:
    """A tower that its host runs, whole or up to the places that it averages.

    Attributes:
        what: what the host calls it.
        why: why it is one part, where it is; a sentence that goes on from “one part, not split”.
        kind: what it reads.
        run: the host's own code: inputs → embeddings, or pixels → places [image, channel, row, col].
        state: its tensors, for the model's digest.
        embed: width of the joint space.
        grid: (row, col) places at its own resolution; (1, context) for texts.
        patch: (row, col) pixels between two places.
        vocabulary: ids that a text is written with.
        pad: the id that its host does not look at.
        blocks: the mean over the places, where it is split there.
        ln_post: the LayerNorm between that mean and the projection; None where there is none.
        projection: into the joint space.
        projection_bias: what it adds.
    """

    what: str
    kind: Literal["image", "text"]
    run: Callable[[Tensor], Tensor] = field(repr=False)
    state: tuple[Tensor, ...] = field(repr=False)
    embed: int
    grid: tuple[int, int]
    patch: tuple[int, int] = (1, 1)
    vocabulary: int = 0
    pad: int | None = None
    why: str = ""
    blocks: Sequence[MeanOfPlaces] = ()
    ln_post: Norm | None = None
    projection: Float[Tensor, "width embed"] | None = None
    projection_bias: Float[Tensor, " embed"] | None = None

    architecture: Architecture = field(init=False, default="whole")
    heads: int = field(init=False, default=1)
    has_mlps: bool = field(init=False, default=False)
    has_class_token: bool = field(init=False, default=False)
    own: int = field(init=False, default=0)
    rows: int = field(init=False, default=1)
    weighs_late: bool = field(init=False, default=False)
    pooling: AttentionPooling | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Tell by what is there how far down it is split."""
        object.__setattr__(self, "architecture", "places" if self.blocks else "whole")

    @property
    def layers(self) -> int:
        """Number of layers whose heads write: the mean over the places, or none."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Width of a place's vector; of an unsplit tower, of its embedding."""
        return self.blocks[0].out.weight.shape[0] if self.blocks else self.embed

    @property
    def d(self) -> int:
        """Width of the one head: that of a place's vector."""
        return self.width

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it runs."""
        return next(t.dtype for t in self.state if t.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.state[0].device

    def token_count(self, inputs: Tensor) -> int:
        """Count the places of a picture, or the ids of a text."""
        return inputs.shape[1] if self.kind == "text" else prod(patch_grid(inputs.shape, self.patch))

    def encode(self, inputs: Tensor) -> Float[Tensor, "image embed"]:
        """Compute the embedding, by the host's own code as far as that goes."""
        with torch.no_grad():
            return self._embed(self._mean(self._places(inputs))) if self.blocks else self.run(inputs)

    def trace(self, inputs: Tensor, each: Callable[[LayerReading], None] | None = None) -> Trace:
        """Run one forward and keep what the exact split needs; see `Tower.trace`."""
        with torch.no_grad():
            if not self.blocks:
                embedding = self.run(inputs).float()
                one, none = torch.ones(len(embedding), device=embedding.device), embedding[:, None][:, :0]
                mixed = none[:, :, None]
                return Trace(embedding, mixed, none, embedding, one, one[:, None], embedding, none)
            reading = self.read_last(inputs)
            if each is not None:
                each(reading)
            mean = reading.mixed[:, 0]
            embedding, mixed = self._embed(mean).float(), reading.mixed.float()[:, None]
            mean = mean.float()
            one, none = torch.ones(len(mean), device=mean.device), mean[:, None][:, :0]
            scale = one if self.ln_post is None else inverse_deviation(self.ln_post, mean)
            return Trace(torch.zeros_like(mean), mixed, none, mean, scale, one[:, None], embedding, none)

    def read_last(self, inputs: Tensor) -> LayerReading:
        """Tell what the mean over the places reads."""
        with torch.no_grad():
            places = self._places(inputs)
        counts = torch.full((len(places), 1, places.shape[1]), 1 / places.shape[1], device=places.device)
        return LayerReading(
            layer=0,
            tokens=places,
            mixed=self._mean(places)[:, None],
            own=0,
            attention=lambda: counts,
            values=lambda: places[:, None],
            shares=lambda: counts[:, :, None],
        )

    def _places(self, pixels: Tensor) -> Float[Tensor, "image place channel"]:
        return self.run(pixels).flatten(2).transpose(1, 2)

    @staticmethod
    def _mean(places: Float[Tensor, "image place channel"]) -> Float[Tensor, "image channel"]:
        return places.mean(1)

    def _embed(self, mean: Float[Tensor, "image channel"]) -> Float[Tensor, "image embed"]:
        if self.ln_post is not None:
            mean = F.layer_norm(mean, mean.shape[1:], self.ln_post.weight, self.ln_post.bias, self.ln_post.eps)
        y = mean if self.projection is None else mean @ self.projection.to(mean.dtype)
        return y if self.projection_bias is None else y + self.projection_bias
