"""The CLIP-ResNet as plain data and its forward (Radford et al. 2021, §2.4), over borrowed weights.

    pixels ─▶ stem (3 convolutions, mean pool) ─▶ 4 stages of bottlenecks ─▶ one vector per place [image, place, channel]
           ─▶ tokens: their mean first, then each; plus a position vector
           ─▶ attention pool: the mean token asks, all tokens answer ─▶ embedding

BatchNorm runs on the statistics of the training, as in eval mode. The pool is the only place where tokens meet the joint space:

    embedding = W_c [ Σ_token a[h, token] (W_V^h x_token + b_V^h) ]_h + b_c        a = softmax(q_0 · k)
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.results import Compact
from clip_anatomy.towers.absent_tower import refuse_absent
from clip_anatomy.towers.layers import Linear, Norm, Resampling
from clip_anatomy.towers.operations import linear, widened
from clip_anatomy.towers.positions import resample_position
from clip_anatomy.towers.protocol import KINDS, Architecture, Tower
from clip_anatomy.towers.trace import LayerReading, Trace


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, and the BatchNorm behind it with the statistics of the training."""

    weight: Float[Tensor, "out in side side"]
    stride: int
    padding: int
    gain: Float[Tensor, " out"]
    bias: Float[Tensor, " out"]
    mean: Float[Tensor, " out"]
    variance: Float[Tensor, " out"]
    eps: float


@dataclass(frozen=True)
class Bottleneck:
    """relu(x' + conv3(pool(relu(conv2(relu(conv1 x)))))), x' = x, or a convolution of the pooled x."""

    conv1: Conv
    conv2: Conv
    conv3: Conv
    pool: int  # side of the mean pool that stands for a stride; 1 for none
    shortcut: Conv | None


@dataclass(frozen=True)
class AttentionPool:
    """One attention layer whose only query is the mean token. It has no residual stream, no LayerNorm and no MLP."""

    position: Float[Tensor, "token channel"]
    grid: tuple[int, int]
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    heads: int
    resampling: Resampling  # of the position vectors, where the grid is another one

    @property
    def scale_attention(self) -> None:
        """A transformer's block may have LayerScale; this never does."""
        return

    @property
    def norm_mixed(self) -> None:
        """Nor norms around its projection."""
        return

    @property
    def norm_written(self) -> None:
        """Neither of them."""
        return

    @property
    def norms_of_stream(self) -> tuple[()]:
        """Nor in its stream."""
        return ()


@dataclass(frozen=True, repr=False)
class ResNet(Compact):
    """A CLIP-ResNet. What its heads write into is the joint space itself: it counts as one layer without an MLP.

    Attributes:
        stem: the first three convolutions.
        stem_pool: side of the mean pool behind them.
        stages: four groups of bottlenecks.
        pool: the attention pool.
    """

    stem: tuple[Conv, ...]
    stem_pool: int
    stages: tuple[tuple[Bottleneck, ...], ...]
    pool: AttentionPool

    @property
    def blocks(self) -> tuple[AttentionPool, ...]:
        """The one layer that writes into the joint space."""
        return (self.pool,)

    @property
    def layers(self) -> int:
        """Number of layers that write into the joint space: one."""
        return 1

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return self.pool.heads

    @property
    def channels(self) -> int:
        """Width of a token."""
        return self.pool.value.weight.shape[1]

    @property
    def d(self) -> int:
        """Width of one head."""
        return self.pool.value.weight.shape[0] // self.heads

    @property
    def embed(self) -> int:
        """Width of the joint space."""
        return self.pool.out.weight.shape[0]

    @property
    def width(self) -> int:
        """Width of what the heads write into, which is the joint space."""
        return self.embed

    @property
    def kind(self) -> Literal["image", "text"]:
        """Which tower this is."""
        return "image"

    @property
    def architecture(self) -> Architecture:
        """Which family of methods it has."""
        return "resnet"

    @property
    def has_mlps(self) -> bool:
        """Whether MLPs write parts of the embedding: there are none."""
        return False

    @property
    def has_class_token(self) -> bool:
        """Whether one token of its own is read out: it is the mean of all places."""
        return False

    @property
    def own(self) -> int:
        """How many tokens are no places: that mean."""
        return 1

    @property
    def weighs_late(self) -> bool:
        """Whether what the row reads is known after the last layer only: there is one layer."""
        return False

    @property
    def rows(self) -> int:
        """How many rows are read: that of the mean token."""
        return 1

    @property
    def pooling(self) -> None:
        """No second pool follows."""
        return

    @property
    def ln_post(self) -> Norm | None:
        """No LayerNorm stands between what the heads write and the joint space."""
        return None

    @property
    def projection(self) -> Float[Tensor, "width embed"] | None:
        """Nor a projection."""
        return None

    @property
    def projection_bias(self) -> Float[Tensor, " embed"] | None:
        """Nor its bias."""
        return None

    @property
    def grid(self) -> tuple[int, int]:
        """(row, col) places at the tower's own resolution."""
        return self.pool.grid

    @property
    def patch(self) -> tuple[int, int]:
        """(row, col) pixels between two places of the last map: 32 in every published one."""
        side = self.stem_pool
        for conv in self.stem:
            side *= conv.stride
        for stage in self.stages:
            for block in stage:
                side *= block.pool
        return side, side

    @property
    def vocabulary(self) -> int:
        """It reads no text."""
        return 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.pool.value.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.pool.value.weight.device

    def token_count(self, inputs: Tensor) -> int:
        """Count the tokens a batch has: its places, and their mean."""
        return prod(patch_grid(inputs.shape, self.patch)) + 1

    def encode(self, inputs: Tensor) -> Float[Tensor, "image embed"]:
        """Compute the embedding alone, in the tower's dtype."""
        return run_resnet(self, inputs).embedding

    def trace(self, inputs: Tensor, each: Callable[[LayerReading], None] | None = None) -> Trace:
        """Run one forward and keep what the exact split needs: one layer, nothing before it, no MLP, no LayerNorm behind it."""
        pooled = run_resnet(self, inputs)
        if each is not None:
            each(_reading(self, pooled))
        embedding = pooled.embedding.float()
        nothing, one = torch.zeros_like(embedding), torch.ones(len(embedding), device=embedding.device)
        none = nothing[:, None][:, :0]
        return Trace(nothing, pooled.mixed.float()[:, None], none, embedding, one, one[:, None], embedding, none)

    def read_last(self, inputs: Tensor) -> LayerReading:
        """Tell what the attention pool reads."""
        return _reading(self, run_resnet(self, inputs))


def as_resnet(tower: Tower) -> ResNet:
    """Return the tower itself where it is a CLIP-ResNet, for what needs one.

    Raises:
        UnsupportedModel: it is another architecture.
    """
    refuse_absent(tower)
    if not isinstance(tower, ResNet):
        raise UnsupportedModel(
            f"a CLIP-ResNet was expected, and this is {KINDS[tower.architecture]}. Type load('open_clip:RN50/openai')"
        )
    return tower


def _reading(resnet: ResNet, pooled: "Pooled") -> LayerReading:
    """Token 0 is the mean token, which is the one that asks."""
    pool, shape = resnet.pool, (resnet.heads, resnet.d)
    return LayerReading(
        layer=0,
        tokens=pooled.tokens,
        mixed=pooled.mixed,
        own=0,
        attention=lambda: pooled.attention,
        values=lambda: linear(pool.value, pooled.tokens).unflatten(2, shape).transpose(1, 2),
        shares=lambda: pooled.attention[:, :, None],
    )


@dataclass(frozen=True)
class Pooled:
    """What the attention pool computed.

    Attributes:
        tokens: mean token first, then the places row by row, each with its position vector.
        attention: how much the mean token looked at each token, in float32.
        mixed: z_h = Σ_token a v, b_V included.
        embedding: the host's own formula.
    """

    tokens: Float[Tensor, "image token channel"]
    attention: Float[Tensor, "image head token"]
    mixed: Float[Tensor, "image head d"]
    embedding: Float[Tensor, "image embed"]


def _convolve(conv: Conv, x: Tensor) -> Tensor:
    y = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
    return F.batch_norm(y, conv.mean, conv.variance, conv.gain, conv.bias, training=False, eps=conv.eps)


def _bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    y = _convolve(block.conv2, _convolve(block.conv1, x).relu_()).relu_()
    y = _convolve(block.conv3, F.avg_pool2d(y, block.pool) if block.pool > 1 else y)
    if block.shortcut is not None:
        x = _convolve(block.shortcut, F.avg_pool2d(x, block.pool) if block.pool > 1 else x)
    return y.add_(x).relu_()


def features(
    resnet: ResNet, pixels: Float[Tensor, "image 3 row col"]
) -> Float[Tensor, "image channel grid_row grid_col"]:
    """Compute the last stage's map, before the attention pool: what every place of the picture became."""
    x = pixels.to(resnet.dtype)
    for conv in resnet.stem:
        x = _convolve(conv, x).relu_()
    x = F.avg_pool2d(x, resnet.stem_pool)
    for stage in resnet.stages:
        for block in stage:
            x = _bottleneck(block, x)
    return x


def pool_tokens(
    resnet: ResNet, features: Float[Tensor, "image channel row col"]
) -> Float[Tensor, "image token channel"]:
    """Tell what the pool attends over: the mean over the places, then each place, plus position vectors.

    Position vectors of another grid are resampled into a new tensor; the mean token keeps its own.
    """
    places = features.flatten(2).transpose(1, 2)
    tokens = torch.cat([places.mean(1, keepdim=True), places], 1)
    pool = resnet.pool
    grid = (features.shape[2], features.shape[3])
    return tokens + resample_position(pool.position, pool.grid, grid, pool.resampling).to(tokens.dtype)


def run_pool(resnet: ResNet, tokens: Float[Tensor, "image token channel"]) -> Pooled:
    """Run the attention pool for its one query, the mean token.

    Keys are folded into the query (W_Kᵀ q; q·b_K is the same for all tokens, so softmax removes it) and values out of the sum
    (W_V Σ a x), which costs one row of the pool instead of all.
    """
    pool, heads, d = resnet.pool, resnet.heads, resnet.d
    query = F.linear(tokens[:, 0], pool.query.weight, pool.query.bias).unflatten(1, (heads, d))
    folded = torch.einsum("bhd,hdc->bhc", widened(query) * d**-0.5, widened(pool.key.weight).unflatten(0, (heads, d)))
    attention = (folded @ widened(tokens).transpose(1, 2)).softmax(-1)
    mean = attention.to(tokens.dtype) @ tokens
    mixed = torch.einsum("bhc,hdc->bhd", mean, pool.value.weight.unflatten(0, (heads, d)))
    if pool.value.bias is not None:
        mixed = mixed + pool.value.bias.view(heads, d)
    return Pooled(tokens, attention.float(), mixed, F.linear(mixed.flatten(1), pool.out.weight, pool.out.bias))


def run_resnet(resnet: ResNet, pixels: Float[Tensor, "image 3 row col"]) -> Pooled:
    """Turn pixels into the embedding, and what the attention pool computed on the way.

    Args:
        resnet: the tower.
        pixels: preprocessed; rows and cols are multiples of `resnet.patch`.
    """
    with torch.no_grad():
        return run_pool(resnet, pool_tokens(resnet, features(resnet, pixels)))
