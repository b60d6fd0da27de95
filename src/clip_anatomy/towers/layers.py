"""A CLIP transformer as plain data, image and text alike: its layers, and all of them together, over borrowed weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
Pool = Literal["class", "mean", "first", "last", "argmax", "eos", "attention"]
Resampling = Literal[
    "bicubic-antialias", "bicubic", "bilinear-antialias"
]  # open_clip and timm; transformers; its SigLIP 2


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
class Registers:
    """Neurons of one block whose activations are moved from the patches into tokens that stand for no place (test-time registers).

    Attributes:
        neurons: their numbers.
        tokens: how many of the last tokens in front of the patches receive them, each all of them.
        shared: one value for all neurons, the greatest of any, instead of each its own.
    """

    neurons: Int[Tensor, " neuron"]
    tokens: int = 1
    shared: bool = False


@dataclass(frozen=True)
class FixedWrites:
    """What parts of one block write into the readout row, held at constants while the forward runs: later blocks see them.

    Attributes:
        heads: which of its heads.
        mixed: what each of these computes instead of Σ a v; other rows have no meaning.
        mlp: what the MLP writes instead of its own; None where it is left alone.
    """

    heads: Bool[Tensor, " head"]
    mixed: Float[Tensor, "head d"]
    mlp: Float[Tensor, " width"] | None = None


@dataclass(frozen=True)
class Block:
    """One residual block: x + out(attention(ln1 x)), then x + down(act(up(ln2 x))).

    Attributes:
        qkv: query, key and value as one tensor, where the host stores them so: one matmul instead of three.
        scale_attention: LayerScale of the attention.
        scale_mlp: and of the MLP.
        gate: act(gate x) ⊙ up x instead of act(up x): SwiGLU, GeGLU.
        norm_up: a second LayerNorm in front of the MLP.
        norm_down: one between its activation and `down`.
        norm_query: over each head's query; needs `norm_key`.
        norm_key: over each head's key.
        norm_mixed: over Σ a v of all heads side by side, in front of `out`.
        norm_out: over what `out` writes, in front of LayerScale.
        post_norm: ln1 and ln2 stand behind attention and MLP, inside the branch: x + ln1(out(attention x)).
        in_stream: ln1 and ln2 normalise the stream itself: x ← ln1(x), x + attention(x), x ← ln2(x), x + mlp(x). So are BERT's blocks,
            each with the norm that ends the one before as its ln1.
        norm_after: over the stream behind such a block, in front of ln_post (AltCLIP's last).
        parallel: the MLP reads what the attention reads, not what it left: ln2 is ln1, or stands beside it.
        registers: neurons whose activations are moved out of the patches; None for none.
        fixed: writes into the readout row that are held; None for none.
    """

    ln1: Norm
    query: Linear
    key: Linear
    value: Linear
    qkv: Linear | None
    out: Linear
    ln2: Norm
    up: Linear
    down: Linear
    scale_attention: Float[Tensor, " width"] | None
    scale_mlp: Float[Tensor, " width"] | None
    gate: Linear | None = None
    norm_up: Norm | None = None
    norm_down: Norm | None = None
    norm_query: Norm | None = None
    norm_key: Norm | None = None
    norm_mixed: Norm | None = None
    norm_out: Norm | None = None
    post_norm: bool = False
    in_stream: bool = False
    norm_after: Norm | None = None
    parallel: bool = False
    registers: Registers | None = None
    fixed: FixedWrites | None = None

    @property
    def norm_written(self) -> Norm | None:
        """The LayerNorm over what the attention writes, where one stands there."""
        return self.ln1 if self.post_norm else self.norm_out

    @property
    def norms_of_stream(self) -> tuple[Norm, ...]:
        """The LayerNorms that the stream itself goes through here, in order: in front of the attention, of the MLP, behind the block."""
        if not self.in_stream:
            return ()
        return (self.ln1, self.ln2) if self.norm_after is None else (self.ln1, self.ln2, self.norm_after)


def norms_behind(blocks: Sequence[Any], layer: int, *, mlp: bool = False) -> tuple[Norm, ...]:
    """Give the norms of the stream between what one layer's attention writes (or its MLP) and the last norm: none but in BERT's blocks."""
    after = 2 if mlp else 1
    later = (one for block in blocks[layer + 1 :] for one in block.norms_of_stream)
    return (*blocks[layer].norms_of_stream[after:], *later)


@dataclass(frozen=True)
class Stem:
    """A host's own module from pixels to one vector for each place, where that is more than a strided convolution.

    It runs as it is: nothing in it is split, and it is never written to.

    Attributes:
        run: pixels [image, 3, row, col] → [image, width, row, col].
        state: its tensors, for the model's digest.
        patch: (row, col) pixels between two places.
    """

    run: Callable[[Tensor], Tensor]
    state: tuple[Tensor, ...]
    patch: tuple[int, int]


@dataclass(frozen=True)
class PatchEmbedding:
    """Pixels to tokens: a strided convolution (or a stem), tokens of its own in front, one position vector per token.

    Attributes:
        weight: the convolution's kernel; None behind a stem.
        class_token: the token in front of the patches that is read out, or that stands beside them.
        position: one vector for each token, or for the patches and the first few of those in front; None where positions are
            rotations only.
        grid: (row, col) patches of that table.
        resampling: how the host fits the position vectors to another grid of patches.
        bias: the convolution's.
        registers: more tokens, between the class token and the patches.
        stem: what makes the patches instead of the convolution.
        blank: tokens of zeros behind those in front, put in after ln_pre and without a position.
    """

    weight: Float[Tensor, "width channel patch_row patch_col"] | None
    class_token: Float[Tensor, " width"] | None
    position: Float[Tensor, "token width"] | None
    grid: tuple[int, int]
    resampling: Resampling
    bias: Float[Tensor, " width"] | None = None
    registers: Float[Tensor, "register width"] | None = None
    stem: Stem | None = None
    blank: int = 0

    @property
    def own(self) -> int:
        """How many tokens stand in front of the patches."""
        return (self.class_token is not None) + (0 if self.registers is None else len(self.registers)) + self.blank

    @property
    def patch(self) -> tuple[int, int]:
        """(row, col) pixels of one patch."""
        if self.stem is not None:
            return self.stem.patch
        assert self.weight is not None
        return self.weight.shape[2], self.weight.shape[3]


@dataclass(frozen=True)
class Rotary:
    """Positions as rotations of queries and keys: pairs of numbers turn by frequency · coordinate, half of them per axis.

    Attributes:
        frequencies: of one axis.
        reference: coordinates are stretched so that any grid spans this one.
        offset: of the first coordinate.
        shift: of all coordinates once they are stretched; only the tokens in front, which do not turn, notice it.
        columns_first: the first half turns with the column, not with the row.
        halves: a pair is (i, i + d/2), not two neighbours.
        table: sines and cosines that the host holds for the tower's own grid, side by side; None where it computes them.
        grid: that grid, (row, col).
    """

    frequencies: Float[Tensor, " quarter"]
    reference: tuple[int | float, int | float] | None = None
    offset: float = 0.0
    columns_first: bool = False
    halves: bool = False
    table: Float[Tensor, "place both"] | None = None
    grid: tuple[int, int] | None = None
    shift: float = 0.0


@dataclass(frozen=True)
class AttentionPooling:
    """Attention whose one query is learned (SigLIP's MAP head, CoCa's pooler): what all tokens become in one vector.

        u = out(Σ_token a v)      pooled = u + down(act(up(ln_mlp u)))     then norm, where there is one

    Attributes:
        latent: what asks.
        ln_latent: over it.
        query: None where the latent is the query itself.
        ln_mlp: None where no MLP follows; so are `up` and `down`.
        norm: LayerNorm behind the pool.
    """

    latent: Float[Tensor, " latent"]
    ln_latent: Norm | None
    query: Linear | None
    key: Linear
    value: Linear
    out: Linear
    heads: int
    norm_query: Norm | None = None
    norm_key: Norm | None = None
    ln_mlp: Norm | None = None
    up: Linear | None = None
    down: Linear | None = None
    activation: Activation = "gelu"
    norm: Norm | None = None

    @property
    def d(self) -> int:
        """Width of one of its heads."""
        return self.value.weight.shape[0] // self.heads


@dataclass(frozen=True)
class WordEmbedding:
    """Token ids to tokens.

    Attributes:
        weight: one vector for each word piece.
        position: and one for each place.
        class_token: a token behind all of them, which is read out (CoCa).
        pad: this id cannot be looked at; None where every one can.
        pad_shift: by how many places the host's mask of padding is moved (CoCa's first weights were trained so).
        scale: factor of the word pieces' vectors.
        segment: a vector that every token gets (BERT's first segment).
        counted: a token's place counts those before it that are no padding, from row 1 of `position` on; padding has row 0.
    """

    weight: Float[Tensor, "vocabulary width"]
    position: Float[Tensor, "token width"]
    class_token: Float[Tensor, " width"] | None = None
    pad: int | None = None
    pad_shift: int = 0
    scale: float = 1.0
    segment: Float[Tensor, " width"] | None = None
    counted: bool = False


@dataclass(frozen=True)
class TransformerWeights:
    """The data of a transformer tower. Weights are the host's own storage; nothing here is ever written to.

    `Transformer` adds what methods ask of a tower; `forward` needs this alone, and so does an exported encoder.
    """

    embedding: PatchEmbedding | WordEmbedding
    ln_pre: Norm | None
    blocks: tuple[Block, ...]
    ln_post: Norm
    projection: Float[Tensor, "width embed"] | None
    projection_bias: Float[Tensor, " embed"] | None
    heads: int
    activation: Activation
    pool: Pool
    pool_before_norm: bool  # the order of mean pooling and ln_post; without meaning when one row is read
    causal: bool
    eos: int | None = None  # the id that marks the readout row when pool == "eos"
    pooling: AttentionPooling | None = None  # when pool == "attention"
    rotary: Rotary | None = None

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return len(self.ln_post.weight)

    @property
    def d(self) -> int:
        """Width of one head."""
        return self.blocks[0].value.weight.shape[0] // self.heads

    @property
    def embed(self) -> int:
        """Width of the joint space."""
        if self.projection is not None:
            return self.projection.shape[1]
        return self.width if self.pooling is None else self.pooling.out.weight.shape[0]

    @property
    def own(self) -> int:
        """How many tokens of an image are no patches: they stand in front of them."""
        return self.embedding.own if isinstance(self.embedding, PatchEmbedding) else 0

    @property
    def vocabulary(self) -> int:
        """How many ids a text is written with; 0 of an image tower."""
        return len(self.embedding.weight) if isinstance(self.embedding, WordEmbedding) else 0

    @property
    def rows(self) -> int:
        """How many weighted sums of tokens the readout takes: one for each head of an attention pool, else one."""
        return 1 if self.pooling is None else self.pooling.heads

    @property
    def weighs_late(self) -> bool:
        """Whether how much each token counts is known after the last block only: norms follow that are not frozen yet."""
        mean = self.pool == "mean" and not self.pool_before_norm
        return self.pooling is not None or mean or self.blocks[0].in_stream

    @property
    def kind(self) -> Literal["image", "text"]:
        """Which tower this is."""
        return "image" if isinstance(self.embedding, PatchEmbedding) else "text"

    @property
    def patch(self) -> tuple[int, int]:
        """(row, col) pixels of one patch; (1, 1) for texts, where each id is a token."""
        if isinstance(self.embedding, WordEmbedding):
            return 1, 1
        return self.embedding.patch

    @property
    def grid(self) -> tuple[int, int]:
        """(row, col) patches at the tower's own resolution; (1, context) for texts."""
        if isinstance(self.embedding, WordEmbedding):
            return 1, len(self.embedding.position) - (self.embedding.class_token is not None) - self.embedding.counted
        return self.embedding.grid

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the residual stream runs."""
        return self.blocks[0].up.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.ln_post.weight.device
