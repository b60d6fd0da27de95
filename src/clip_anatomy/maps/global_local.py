"""Global–Local CLIP (Yu et al., CVPR 2023): each mask is looked at on its own, once in its picture and once cut out.

    global   the whole picture; from three quarters of the blocks on (block 9 of 12) no token looks at patches outside of the mask
    local    the mask's box, squashed to the model's input, with the mean colour outside of the mask
    f_m      v · global + (1 − v) · local, unit vectors

One forward for the first blocks of the picture, and two more for each mask. Written from the paper; the release multiplies masked tokens by zero,
here nothing looks at them.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import walk
from clip_anatomy.towers.readout import embed_readout, keeping, readout_of
from clip_anatomy.towers.transformer import Transformer, as_transformer

__all__ = ["GLOBAL", "global_local"]

GLOBAL = 0.95  # v: of RefCOCO and RefCOCO+ in the paper; of RefCOCOg 0.85
MASKED_FROM = 0.75  # of the blocks
BATCH = 16


def global_local(
    clip: Clip,
    picture: Image.Image,
    pixels: Float[Tensor, "1 3 _ _"],
    masks: Bool[np.ndarray, "mask row col"],
    cover: Float64[Tensor, "mask token"],
) -> Float64[Tensor, "mask embed"]:
    """Embed each mask of a picture.

    Args:
        clip: an opened model whose image tower is a transformer.
        picture: the original.
        pixels: what the model sees of it.
        masks: in pixels of the original.
        cover: share of each patch that lies in each mask.

    Returns:
        Unit vectors.

    Raises:
        UnsupportedModel: a CLIP-ResNet, or a tower that its own library runs.
    """
    if clip.vision.architecture != "transformer":
        raise UnsupportedModel("Global–Local CLIP takes tokens of a transformer away. Type method='split'")
    tower = as_transformer(clip.vision)
    inside = (cover >= 0.5) | (cover == cover.amax(1, keepdim=True))
    kept = F.pad(inside, (tower.own, 0), value=True).to(pixels.device)
    crops = [clip.preprocess.squashed()(_cut_out(picture, mask, clip.preprocess.mean)) for mask in masks]
    embeddings: list[Tensor] = []
    with torch.no_grad():
        for first in range(0, len(masks), BATCH):
            of_picture = _masked(tower, pixels, kept[first : first + BATCH])
            alone = clip.encode_image(torch.stack(crops[first : first + BATCH]))
            unit = [F.normalize(x.double().cpu(), dim=-1) for x in (of_picture, alone)]
            embeddings.append(F.normalize(GLOBAL * unit[0] + (1 - GLOBAL) * unit[1], dim=-1))
    return torch.cat(embeddings)


def _masked(tower: Transformer, pixels: Tensor, kept: Bool[Tensor, "mask token"]) -> Float[Tensor, "mask embed"]:
    """Run the first blocks once, and the others for each mask with its tokens only."""
    begin = int(MASKED_FROM * tower.layers)
    x = embed_inputs(tower, pixels)
    readout = readout_of(tower, pixels, x.shape[1])
    for step in walk(replace(tower, blocks=tower.blocks[:begin]), x, readout, fold_last=False):
        assert step.after is not None
        x = step.after
    each = pixels.expand(len(kept), -1, -1, -1)
    readout = keeping(readout_of(tower, each, x.shape[1]), kept)
    x = x.expand(len(kept), -1, -1)
    row, after = x[:, 0], None
    for step in walk(replace(tower, blocks=tower.blocks[begin:]), x, readout):
        row, after = step.readout, step.after if readout.late else None
    return embed_readout(tower, row, after, readout)


def _cut_out(picture: Image.Image, mask: Bool[np.ndarray, "row col"], mean: tuple[float, ...]) -> Image.Image:
    """Cut out the box of a mask, with the mean colour outside of the mask."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    colour = np.round(255 * np.asarray(mean)).astype(np.uint8)
    return Image.fromarray(np.where(mask[box][..., None], np.asarray(picture.convert("RGB"))[box], colour))
