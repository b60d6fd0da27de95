"""Attention sinks: places that the readout looks at whatever they show, and that light up in every map.

Vision transformers keep notes in patches without content, whose tokens grow long (Darcet et al., "Vision Transformers Need
Registers", ICLR 2024); the attention pool of OpenAI's ResNets does so in its last place, at the bottom right of every picture.
Nothing here knows an index: a sink is found by its token's length and by the attention that it draws.
"""

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.registers import LONGER, far_longer

LOOKED_AT = 0.1  # of all attention that goes to patches
TIMES_EVEN = 10.0  # a place that draws attention draws at least so many times the even share
BATCH = 16


@dataclass(frozen=True, repr=False)
class AttentionSinks(Compact):
    """Where the sinks of some pictures are.

    Attributes:
        length: of each token into the last layer, divided by the median of its picture.
        attention: how much the readout looked at each patch, mean over the last layer's heads; the patches of a picture sum to 1.
        mask: the sinks.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = sinks(ca.load("demo"), examples()[:2])
        >>> result.mask.shape
        torch.Size([2, 8, 8])
    """

    length: Float[Tensor, "image row col"]
    attention: Float[Tensor, "image row col"]
    mask: Bool[Tensor, "image row col"]

    @property
    def share(self) -> Float[Tensor, " image"]:
        """The share of the attention to patches that goes to sinks, per picture."""
        return (self.attention * self.mask).sum((1, 2))

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(row, col, pictures) of every place that is a sink somewhere, the commonest first."""
        counted = Counter((row, col) for _, row, col in self.mask.nonzero().tolist())
        return [(row, col, count) for (row, col), count in counted.most_common()]

    @property
    def description(self) -> str:
        """Say in one line where the sinks are.

        Example:
            >>> one = torch.zeros(1, 5, 5)
            >>> one[0, 4, 4] = 1
            >>> AttentionSinks(one * 3, one, one > 0).description
            'sinks in 1 of 1 pictures, 100% of their attention; row 4 col 4 in 1'
        """
        images, with_sinks = len(self.mask), self.mask.any(2).any(1)
        if not with_sinks.any():
            return f"no sinks in {images} pictures"
        where = ", ".join(f"row {row} col {col} in {count}" for row, col, count in self.places[:3])
        more = f" and {len(self.places) - 3} other places" if len(self.places) > 3 else ""
        share = float(self.share[with_sinks].mean())
        return f"sinks in {int(with_sinks.sum())} of {images} pictures, {share:.0%} of their attention; {where}{more}"


@public
def sinks(
    clip: Clip, images: Images | Tensor, *, length: float = LONGER, attention: float = LOOKED_AT
) -> AttentionSinks:
    """Find the sinks of pictures: patches whose token is far longer than the others', or that draw attention in all of them.

    Args:
        clip: an opened model, transformer or CLIP-ResNet.
        images: paths, PIL images, arrays, or a preprocessed tensor [image, 3, row, col].
        length: a token counts from so many times the median length of its picture on, if it is also five robust standard
            deviations (of the logarithm) away.
        attention: a place counts that draws this share of the attention, if that is ten times the even share.

    Returns:
        AttentionSinks, one forward per picture.

    Raises:
        BadImage: an image cannot be used.
        BadSpec: limits that no sink could have.
    """
    if length <= 1 or not 0 < attention <= 1:
        raise BadSpec(
            f"length={length}, attention={attention}: above 1, and a share were expected. Type: length=2, attention=0.1"
        )
    parts = [sinks_of(clip.vision, part, length, attention) for part in clip.pixels(images).split(BATCH)]
    return AttentionSinks(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("length", "attention", "mask"))
    )


def sinks_of(
    tower: Tower, pixels: Float[Tensor, "image 3 _ _"], length: float = LONGER, attention: float = LOOKED_AT
) -> AttentionSinks:
    """Find the sinks of one batch of preprocessed pixels."""
    with torch.no_grad():
        grid, tokens, looked = _last_layer(tower, pixels)
        times, long = far_longer(tokens, length)
        share = looked / looked.sum(1, keepdim=True).clamp_min(1e-30)
        mask = long | (share >= max(attention, min(1.0, TIMES_EVEN / share.shape[1])))
        return AttentionSinks(times.unflatten(1, grid), share.unflatten(1, grid), mask.unflatten(1, grid))


def _last_layer(tower: Tower, pixels: Tensor) -> tuple[tuple[int, int], Tensor, Tensor]:
    """Grid, patch tokens into the last layer, and the readout's attention to them."""
    reading = tower.read_last(pixels)
    return (
        patch_grid(pixels.shape, tower.patch),
        reading.tokens[:, tower.own :],
        reading.attention()[..., tower.own :].mean(1),
    )


def without_sinks(
    values: Float[Tensor, "image text row col"], mask: Bool[Tensor, "image row col"]
) -> Float[Tensor, "image text row col"]:
    """Give the sinks of maps the mean of the places around them that are none (up to eight), from the edge inwards.

    A picture of nothing but sinks is left as it is.

    Example:
        >>> values = torch.tensor([[[[1.0, 3.0], [2.0, 99.0]]]])
        >>> without_sinks(values, values[:, 0] > 50)[0, 0].tolist()
        [[1.0, 3.0], [2.0, 2.0]]
    """
    left, values = mask & ~mask.flatten(1).all(1)[:, None, None], values.clone()
    kernel = torch.ones(1, 1, 3, 3, dtype=values.dtype, device=values.device)
    while left.any():  # each round fills at least one place of every picture that has one left
        known = (~left)[:, None].to(values.dtype)
        count = F.conv2d(known, kernel, padding=1)
        around = F.conv2d((values * known).flatten(0, 1)[:, None], kernel, padding=1).view_as(values)
        now = left[:, None] & (count > 0)
        values = torch.where(now, around / count.clamp_min(1), values)
        left = left & ~now[:, 0]
    return values
