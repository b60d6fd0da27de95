"""The dense methods by name: each a `DenseAttention` of the one operator in `dense`, compared with the texts by cosine."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_attention import RECIPES, DenseAttention, dense_tokens
from clip_anatomy.maps.method import Method


def similarities(
    tokens: Float[Tensor, "image token embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "image token-1 text"]:
    """Cosine of every patch with every text; the class token, first of the tokens, is left out."""
    return F.normalize(tokens[:, 1:], dim=-1) @ F.normalize(text.float(), dim=-1).T


def cosines(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: DenseAttention
) -> Float[Tensor, "image token text"]:
    """Cosine of every patch's dense token with every text."""
    found = similarities(dense_tokens(clip.image_tower, pixels, options), text)
    return found - found.mean(-1, keepdim=True) if options.minus_mean else found


TOLD = {
    "raw": "cosine of the last patch tokens: plain CLIP, for contrast",
    "sclip": "query–query plus key–key attention in the last block (SCLIP)",
    "clearclip": "query–query attention, no residual, no MLP (ClearCLIP)",
    "naclip": "key–key attention and a Gaussian over neighbours, no residual, no MLP (NACLIP)",
    "qq": "query–query attention in the last block, with residual and MLP",
    "kk": "key–key attention in the last block, with residual and MLP",
    "vv": "value–value attention in the last block, with residual and MLP",
    "gem": "repeated self–self attention of q, k and v in the last six blocks (GEM)",
}

DENSE = {name: Method(cosines, told, RECIPES[name]) for name, told in TOLD.items()}
OWN = Method(cosines, "a recipe of your own", DenseAttention())
