"""A CLIP transformer, image or text: its weights, and what the methods ask of a tower."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.results import Compact
from clip_anatomy.towers.absent_tower import refuse_unsplit
from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import encode, walk
from clip_anatomy.towers.layers import TransformerWeights, WordEmbedding
from clip_anatomy.towers.protocol import KINDS, Architecture, Tower
from clip_anatomy.towers.readout import readout_of
from clip_anatomy.towers.trace import LayerReading, Trace, read_step, record


@dataclass(frozen=True, repr=False)
class Transformer(Compact, TransformerWeights):
    """A transformer as a `Tower`: every block writes into one residual stream, which the readout row is read from (BERT's goes on normalised)."""

    @property
    def architecture(self) -> Architecture:
        """Which family of methods it has."""
        return "transformer"

    @property
    def has_mlps(self) -> bool:
        """Whether its MLPs write parts of the embedding: they do."""
        return True

    @property
    def has_class_token(self) -> bool:
        """Whether one token of its own is read out, rather than a sum over all."""
        return self.pool not in ("mean", "attention")

    def token_count(self, inputs: Tensor) -> int:
        """Count the tokens a batch has: patches and class token, or the columns of the token ids."""
        if self.kind == "text":
            return inputs.shape[1] + (
                isinstance(self.embedding, WordEmbedding) and self.embedding.class_token is not None
            )
        return prod(patch_grid(inputs.shape, self.patch)) + self.own

    def encode(self, inputs: Tensor) -> Float[Tensor, "image embed"]:
        """Compute the embedding alone, in the tower's dtype."""
        with torch.no_grad():
            return encode(self, inputs)

    def trace(self, inputs: Tensor, each: Callable[[LayerReading], None] | None = None) -> Trace:
        """Run one forward and keep what the exact split needs; see `Tower.trace`."""
        return record(self, inputs, each)

    def read_last(self, inputs: Tensor) -> LayerReading:
        """Tell what the last layer reads."""
        with torch.no_grad():
            x = embed_inputs(self, inputs)
            readout = readout_of(self, inputs, x.shape[1])
            for step in walk(self, x, readout):
                if step.layer == self.layers - 1:
                    return read_step(self, step, readout)
        raise AssertionError("a transformer without blocks")


def as_transformer(tower: Tower) -> Transformer:
    """Return the tower itself where it is a transformer, for what needs one.

    Raises:
        UnsupportedModel: it is none.
    """
    refuse_unsplit(tower)
    if not isinstance(tower, Transformer):
        raise UnsupportedModel(
            f"this {tower.kind} tower is {KINDS[tower.architecture]}, and what was asked for needs a transformer's layers. Type one "
            "of: encode_image, decompose, Moments, textspan, explain, index, search, heatmap (its message names the methods)"
        )
    return tower
