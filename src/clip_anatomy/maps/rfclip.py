"""RF-CLIP: attention moved from distractors to the foreground in every block (AAAI 2026, arXiv 2511.16170; no code is out).

    channels  the few that are extreme in all blocks and pictures (4, 162, 474 of OpenAI's ViT-B/16)
    distractors  patches whose share max_channels |f| / Σ |f| is above 5/width: there the channels ← mean of the places around
    foreground   the side of the normalised cut of the key–key attention (mean over heads, made symmetric) that lies above its mean
    attention    to distractors × (1 − β); what that frees goes to the foreground in proportion to what each token has
    last block   attention of patches = mean over the blocks of softmax(k kᵀ/√d), head by head        no residual, no MLP

The paper leaves open which side of a cut is the foreground (here the one with the greatest magnitude, as in TokenCut), that distractors
get nothing back, and that channels are filtered where a block reads them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_steps import attended, attention_moved, attention_of, dense_cosines, read_block, started
from clip_anatomy.maps.token_repair import channel_shares, extreme_channels, second_eigenvector, without_outliers
from clip_anatomy.towers.operations import mlp, project_out


@dataclass(frozen=True)
class RfclipOptions:
    """Which RF-CLIP.

    Attributes:
        channels: their numbers, or how many are taken: those with the greatest share on the bundled pictures.
        above: a patch is a distractor from this share on, in units of 1/width.
        beta: how much of the attention to distractors is moved.
    """

    channels: tuple[int, ...] | int = 3
    above: float = 5.0
    beta: float = 0.7


def rfclip(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: RfclipOptions
) -> Float[Tensor, "image token text"]:
    """Compare every patch's token, of a forward without distractors, with every text by cosine."""
    tower, grid, own = clip.image_tower, patch_grid(pixels.shape, clip.patch), clip.image_tower.own
    count = options.channels
    if isinstance(count, int):
        channels = list(extreme_channels(clip, count)) if 1 <= count <= tower.width else []
    else:
        channels = list(count)
    if not channels or not 0 <= min(channels) <= max(channels) < tower.width:
        raise BadSpec(f"channels={count!r}: some of 0 to {tower.width - 1} were expected. Type: channels=3")
    with torch.no_grad():
        x, readout = started(tower, pixels)
        total: Tensor | None = None
        for block in tower.blocks:
            share = channel_shares(x[:, own:])[..., channels].amax(-1)
            distractor = share > options.above / tower.width
            x = x.clone()
            x[:, own:, channels] = without_outliers(x[:, own:, channels], distractor, grid)
            q, k, v = read_block(tower, block, x, readout)
            alike = attention_of(k[:, :, own:], k[:, :, own:])
            total = alike.clone() if total is None else total.add_(alike)
            if block is tower.blocks[-1]:
                return dense_cosines(tower, attended(block, total / tower.layers, v[:, :, own:]), text)
            graph = alike.mean(1)
            cut = second_eigenvector(graph + graph.transpose(1, 2))
            front = (cut > cut.mean(1, keepdim=True)) & ~distractor
            distractor &= front.any(1, keepdim=True)  # where there is no foreground, nothing is moved
            masks = (F.pad(mask, (own, 0)) for mask in (distractor, front))
            mixed = attention_moved((q, k, v), *masks, options.beta)
            middle = x + project_out(block, mixed.transpose(1, 2).flatten(2))
            x = middle + mlp(tower, block, x, middle)
    raise AssertionError("a transformer without blocks")
