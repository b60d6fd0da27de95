"""Dense tokens: the last blocks run once more on a second path whose attention compares tokens with themselves.

One operator covers the family. With q, k, v from ln1 of the ORIGINAL path of each of the last `depth` blocks:

    dense ← dense + W_O( Attention · v ) + b_O,   then dense ← dense + MLP(dense) if `ffn`

where `dense` starts as the residual stream at the split (`residual`) or as zero. Attention per recipe, s = d^(−1/2):

    qk        softmax(q kᵀ s)                        plain CLIP
    identity  1                                      MaskCLIP (Zhou et al. 2022, §3.2)
    qq, kk, vv  softmax(x xᵀ s), summed if several   SCLIP (Wang et al. 2024), ClearCLIP (Lan et al. 2024), CLIP Surgery (Li et al. 2023)
    + G       Gaussian of the patch distance added to the scores       NACLIP (Hajimiri et al. 2024, §3)
    gem       x̂ ← x; once x ← softmax(x̂ x̂ᵀ τ) x̂; softmax(x̂ x̂ᵀ τ); mean over q, k, v; τ = s · mean ‖ln1 output‖
                                                     GEM (Bousselham et al. 2024, §3; its code's "depth 7" counts six blocks)
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.model.forward import embed_image, mlp, norm, project_in, project_out
from clip_anatomy.model.tower import Block, PatchEmbedding, Tower

Attention = Literal["qk", "identity", "qq", "kk", "vv", "gem"]


@dataclass(frozen=True)
class Recipe:
    """How the second path is run.

    Attributes:
        attention: which token–token products; the softmaxes of several are summed.
        residual: start the path from the residual stream, not from zero.
        ffn: run each block's MLP on the path.
        depth: how many of the last blocks it runs through.
        neighbours: standard deviation, in patches, of NACLIP's Gaussian; None for none.
        class_row: take the class token from the original path (CLIP Surgery) or from the dense one.
    """

    attention: tuple[Attention, ...]
    residual: bool
    ffn: bool
    depth: int = 1
    neighbours: float | None = None
    class_row: Literal["dense", "original"] = "dense"


RECIPES: dict[str, Recipe] = {
    "raw": Recipe(("qk",), residual=True, ffn=True),
    "maskclip": Recipe(("identity",), residual=False, ffn=False),
    "maskclip_ffn": Recipe(("identity",), residual=True, ffn=True),
    "sclip": Recipe(("qq", "kk"), residual=True, ffn=True),
    "clearclip": Recipe(("qq",), residual=False, ffn=False),
    "naclip": Recipe(("kk",), residual=False, ffn=False, neighbours=5.0),
    "kk": Recipe(("kk",), residual=True, ffn=True),
    "gem": Recipe(("gem",), residual=True, ffn=False, depth=6),
    "surgery": Recipe(("vv",), residual=True, ffn=False, depth=6, class_row="original"),
}


def dense_tokens(
    tower: Tower, pixels: Float[Tensor, "image 3 row col"], recipe: Recipe
) -> Float[Tensor, "image token embed"]:
    """Every token in the joint space, not normalised; token 0 is the class token, then patches row by row.

    Args:
        tower: an image tower.
        pixels: preprocessed.
        recipe: one of RECIPES, or your own.

    Returns:
        Tokens after ln_post and projection.

    Raises:
        UnsupportedModel: a tower without a class token readout.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.model.demo import examples
        >>> clip = ca.load("demo")
        >>> dense_tokens(clip.image_tower, clip.pixels(examples()[:1]), RECIPES["sclip"]).shape[1]
        65
    """
    if tower.pool != "class":
        raise UnsupportedModel(
            f"dense maps read a class token; this tower is pooled by {tower.pool!r}. Type: method='decomposition'"
        )
    e = tower.embedding
    assert isinstance(e, PatchEmbedding)
    grid = (pixels.shape[2] // e.weight.shape[2], pixels.shape[3] // e.weight.shape[3])
    first = max(0, tower.layers - recipe.depth)
    with torch.no_grad():
        x = embed_image(tower, pixels)
        nearby = None if recipe.neighbours is None else gaussian(grid, recipe.neighbours).to(x)
        dense = torch.zeros_like(x)
        for i, block in enumerate(tower.blocks):
            normed = norm(block.ln1, x)
            q, k, v = project_in(tower, block, normed)
            if i == first and recipe.residual:
                dense = x
            if i >= first:
                mixed = _attend(tower, recipe, normed, (q, k, v), nearby)
                dense = dense + project_out(block, mixed.transpose(1, 2).flatten(2))
                dense = dense + mlp(tower, block, dense) if recipe.ffn else dense
            if i < tower.layers - 1 or recipe.class_row == "original":
                x = _original(tower, block, x, (q, k, v))
        if recipe.class_row == "original":
            dense = torch.cat([x[:, :1], dense[:, 1:]], 1)
        tokens = norm(tower.ln_post, dense) @ tower.projection
        return (tokens if tower.projection_bias is None else tokens + tower.projection_bias).float()


def _original(tower: Tower, block: Block, x: Tensor, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    middle = x + project_out(block, F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
    return middle + mlp(tower, block, middle)


def _attend(
    tower: Tower, recipe: Recipe, normed: Tensor, qkv: tuple[Tensor, Tensor, Tensor], nearby: Tensor | None
) -> Float[Tensor, "image head token d"]:
    q, k, v = qkv
    scale = tower.d**-0.5
    pairs = {"qk": (q, k), "qq": (q, q), "kk": (k, k), "vv": (v, v)}
    total = torch.zeros_like(v)
    for kind in recipe.attention:
        if kind == "identity":
            total = total + v
        elif kind == "gem":
            total = total + _gem(normed, qkv, scale)
        else:
            left, right = pairs[kind]
            scores = left @ right.transpose(-1, -2) * scale
            total = total + (scores if nearby is None else scores + nearby).softmax(-1) @ v
    return total


def _gem(normed: Tensor, qkv: tuple[Tensor, Tensor, Tensor], scale: float) -> Tensor:
    temperature = (scale * normed.norm(dim=-1).mean(1)).view(-1, 1, 1, 1)

    def compare(x: Tensor) -> tuple[Tensor, Tensor]:
        unit = F.normalize(x, dim=-1)
        return (unit @ unit.transpose(-1, -2) * temperature).softmax(-1), unit

    mixed: list[Tensor] = []
    for x in qkv:
        attention, unit = compare(x)
        mixed.append(compare(attention @ unit)[0] @ qkv[2])
    return torch.stack(mixed).mean(0)


def gaussian(grid: tuple[int, int], std: float) -> Float[Tensor, "query token"]:
    """NACLIP's bias: exp(−distance² / 2 std²) between patches, zero to and from the class token."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), cols.flatten()], 1).float()
    square = ((places[:, None] - places[None]) ** 2).sum(-1)
    return F.pad(torch.exp(-square / (2 * std**2)), (1, 0, 1, 0))
