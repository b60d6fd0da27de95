"""A CLIP transformer as plain data, image and text alike: its layers, and all of them together, over borrowed weights."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Pool = Literal["class", "mean", "first", "last", "argmax", "eos"]
Resampling = Literal["bicubic-antialias", "bicubic"]  # open_clip and timm; transformers


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b, tensors borrowed from the host library."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None


def split_qkv(qkv: Linear) -> tuple[Linear, Linear, Linear]:
    """Split the fused projection into query, key and value: views of the same storage."""
    biases = (None, None, None) if qkv.bias is None else qkv.bias.chunk(3)
    query, key, value = (Linear(w, b) for w, b in zip(qkv.weight.chunk(3), biases, strict=True))
    return query, key, value


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the width."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float


@dataclass(frozen=True)
class Block:
    """One residual block: x + out(attention(ln1 x)), then x + down(act(up(ln2 x)))."""

    ln1: Norm
    query: Linear
    key: Linear
    value: Linear
    qkv: Linear | None  # the same three as one tensor, where the host stores them so: one matmul instead of three
    out: Linear
    ln2: Norm
    up: Linear
    down: Linear
    scale_attention: Float[Tensor, " width"] | None  # LayerScale
    scale_mlp: Float[Tensor, " width"] | None


@dataclass(frozen=True)
class PatchEmbedding:
    """Pixels to tokens: a strided convolution, a class token, one position vector per token.

    `resampling` is how the host fits the position vectors to another grid of patches.
    """

    weight: Float[Tensor, "width channel patch_row patch_col"]
    class_token: Float[Tensor, " width"]
    position: Float[Tensor, "token width"]
    grid: tuple[int, int]
    resampling: Resampling


@dataclass(frozen=True)
class WordEmbedding:
    """Token ids to tokens."""

    weight: Float[Tensor, "vocabulary width"]
    position: Float[Tensor, "token width"]


@dataclass(frozen=True)
class TransformerWeights:
    """The data of a transformer tower. Weights are the host's own storage; nothing here is ever written to.

    `Transformer` adds what methods ask of a tower; `forward` needs this alone, and so does an exported encoder.
    """

    embedding: PatchEmbedding | WordEmbedding
    ln_pre: Norm | None
    blocks: tuple[Block, ...]
    ln_post: Norm
    projection: Float[Tensor, "width embed"]
    projection_bias: Float[Tensor, " embed"] | None
    heads: int
    activation: Activation
    pool: Pool
    pool_before_norm: bool  # the order of mean pooling and ln_post; without meaning when one row is read
    causal: bool
    eos: int | None = None  # the id that marks the readout row when pool == "eos"

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.projection.shape[0]

    @property
    def d(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def embed(self) -> int:
        """Width of the joint space."""
        return self.projection.shape[1]

    @property
    def kind(self) -> Literal["image", "text"]:
        """Which tower this is."""
        return "image" if isinstance(self.embedding, PatchEmbedding) else "text"

    @property
    def patch(self) -> tuple[int, int]:
        """(row, col) pixels of one patch; (1, 1) for texts, where each id is a token."""
        if isinstance(self.embedding, WordEmbedding):
            return 1, 1
        return self.embedding.weight.shape[2], self.embedding.weight.shape[3]

    @property
    def grid(self) -> tuple[int, int]:
        """(row, col) patches at the tower's own resolution; (1, context) for texts."""
        if isinstance(self.embedding, WordEmbedding):
            return 1, self.embedding.position.shape[0]
        return self.embedding.grid

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the residual stream runs."""
        return self.blocks[0].up.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.projection.device
