"""What a method asks of a tower, whatever its architecture: one protocol, which the transformer and the ResNet implement.

A tower is anything whose heads write into a space that a frozen linear map takes to the joint space:

    embedding = (Σ parts · scale ⊙ γ) P + what the biases write        γ, P: `ln_post` and `projection`, or nothing at all

A new architecture is one file beside these, with a dataclass that has these names. Where several rows are read (one for each head of
an attention pool) they stand side by side on the last axis of a `Trace`, already weighed; the MLP behind the pool is one more MLP.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.towers.layers import AttentionPooling, Linear, Norm
from clip_anatomy.towers.trace import LayerReading, Trace

Architecture = Literal["transformer", "resnet", "places", "whole", "absent"]
"""Split block by block; at CLIP's attention pool; at the mean over the places; not at all; not there."""

KINDS: dict[Architecture, str] = {
    "transformer": "a transformer, split block by block",
    "resnet": "a CLIP-ResNet: one layer of heads, its attention pool, writes into the joint space",
    "places": "split where its places are averaged: what lies before is run by its own library, as one part",
    "whole": "one part that its own library runs, not split",
    "absent": "not there",
}
"""What kind of split a tower gets, by its architecture."""


@runtime_checkable
class AttentionOutput(Protocol):
    """The end of one layer's attention: what the heads computed is projected and, with LayerScale, scaled."""

    @property
    def out(self) -> Linear:
        """W_O and b_O."""
        ...

    @property
    def scale_attention(self) -> Float[Tensor, " width"] | None:
        """LayerScale."""
        ...

    @property
    def norm_mixed(self) -> Norm | None:
        """A LayerNorm over all heads' Σ a v, in front of W_O."""
        ...

    @property
    def norm_written(self) -> Norm | None:
        """A LayerNorm over what W_O writes, in front of LayerScale."""
        ...

    @property
    def norms_of_stream(self) -> Sequence[Norm]:
        """LayerNorms that the stream itself goes through in this layer, in order (BERT's); none where it is a plain sum."""
        ...


@runtime_checkable
class Tower(Protocol):
    """An image or text tower. Weights are the host's own; nothing here is ever written to."""

    @property
    def architecture(self) -> Architecture:
        """Which family of methods it has: the key of their registries."""
        ...

    @property
    def kind(self) -> Literal["image", "text"]:
        """What it reads."""
        ...

    @property
    def layers(self) -> int:
        """Number of layers whose heads write."""
        ...

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        ...

    @property
    def d(self) -> int:
        """Width of one head."""
        ...

    @property
    def width(self) -> int:
        """Width of what the heads write into."""
        ...

    @property
    def embed(self) -> int:
        """Width of the joint space."""
        ...

    @property
    def patch(self) -> tuple[int, int]:
        """(row, col) pixels between two places; (1, 1) for texts."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """(row, col) places at the tower's own resolution; (1, context) for texts."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many ids a text is written with; 0 of an image tower."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it runs."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        ...

    @property
    def has_mlps(self) -> bool:
        """Whether MLPs write parts of the embedding."""
        ...

    @property
    def has_class_token(self) -> bool:
        """Whether one token of its own is read out."""
        ...

    @property
    def own(self) -> int:
        """How many tokens of an image are no places of the picture: they stand in front."""
        ...

    @property
    def rows(self) -> int:
        """How many weighted sums of tokens the embedding is read from: one, or one for each head of an attention pool."""
        ...

    @property
    def weighs_late(self) -> bool:
        """Whether how much each token counts in the rows is known after the last layer only."""
        ...

    @property
    def pooling(self) -> AttentionPooling | None:
        """The attention pool behind the layers, which takes the rows to the joint space; None where one row is read."""
        ...

    @property
    def blocks(self) -> Sequence[AttentionOutput]:
        """The layers' attention."""
        ...

    @property
    def ln_post(self) -> Norm | None:
        """The LayerNorm between what is written and the rows that are read; None where there is none."""
        ...

    @property
    def projection(self) -> Float[Tensor, "width embed"] | None:
        """The projection to the joint space; None where the heads write into it themselves."""
        ...

    @property
    def projection_bias(self) -> Float[Tensor, " embed"] | None:
        """What the projection adds."""
        ...

    def token_count(self, inputs: Tensor) -> int:
        """Count the tokens that a batch of pixels or token ids has, the readout's own (token 0 of an image) included."""
        ...

    def encode(self, inputs: Tensor) -> Float[Tensor, "image embed"]:
        """Compute the embedding, equal to the host's own."""
        ...

    def trace(self, inputs: Tensor, each: Callable[[LayerReading], None] | None = None) -> Trace:
        """Run one forward and keep what the exact split needs.

        Args:
            inputs: pixels [image, 3, row, col] or token ids [text, token].
            each: called with what every layer read, while its tensors live.
        """
        ...

    def read_last(self, inputs: Tensor) -> LayerReading:
        """Tell what the last layer reads, from a forward of its own."""
        ...


def has_pool_mlp(tower: Tower) -> bool:
    """Whether an MLP stands behind an attention pool: a part of its own, the last of the MLPs."""
    return tower.pooling is not None and tower.pooling.up is not None
