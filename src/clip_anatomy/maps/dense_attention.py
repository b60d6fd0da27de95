"""Dense tokens: the last blocks run once more on a second path whose attention compares tokens with themselves.

One operator covers the family. With q, k, v from ln1 of the ORIGINAL path of each of the last `depth` blocks:

    dense ← dense + W_O( Attention · v ) + b_O,   then dense ← dense + MLP(dense) if `ffn`

where `dense` starts as the residual stream at the split (`residual`) or as zero. Attention per variant, s = d^(−1/2):

    qk        softmax(q kᵀ s)                        plain CLIP
    identity  1                                      MaskCLIP (Zhou et al. 2022, §3.2)
    qq, kk, vv  softmax(x xᵀ s), summed if several   SCLIP (Wang et al. 2024), ClearCLIP (Lan et al. 2024), CLIP Surgery (Li et al. 2023)
    + G       Gaussian of the patch distance added to the scores       NACLIP (Hajimiri et al. 2024, §3)
    gem       x̂ ← x; once x ← softmax(x̂ x̂ᵀ τ) x̂; softmax(x̂ x̂ᵀ τ); mean over q, k, v; τ = s · mean ‖ln1 output‖
                                                     GEM (Bousselham et al. 2024, §3; its code's "depth 7" counts six blocks)
    given     a matrix from outside, patches only    ProxyCLIP (Lan et al. 2024), see `proxyclip`

The original path is the model's own forward, whose last block runs for the readout row alone.
"""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.argument_kinds import described, expected, fits
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.number_ranges import moderate
from clip_anatomy.public_functions import public
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.forward import Step, walk
from clip_anatomy.towers.operations import linear, mlp, project_in, project_out
from clip_anatomy.towers.readout import Readout, embed_each, embed_readout, readout_of
from clip_anatomy.towers.transformer import Transformer

Attention = Literal["qk", "identity", "qq", "kk", "vv", "gem", "given"]
_NEEDS = {"qk": "qkv", "identity": "v", "qq": "qv", "kk": "kv", "vv": "v", "gem": "qkv", "given": "v"}


@public
@dataclass(frozen=True)
class DenseAttention:
    """How the second path is run: any member of the family, published or your own.

    Attributes:
        attention: which token–token products; the results of several are summed.
        residual: start the path from the residual stream, not from zero.
        ffn: run each block's MLP on the path.
        depth: how many of the last blocks it runs through; all where the model has fewer.
        neighbours: standard deviation, in patches, of NACLIP's Gaussian; None for none.
        class_row: take the class token from the original path (CLIP Surgery) or from the dense one.
        average: divide by the number of products instead of summing them.
        temperature: factor of the scores, beside d^(−1/2): above 1 each token looks at fewer.
        iterations: how often GEM lets q, k and v gather among themselves before they attend.
        minus_mean: take the mean over the texts away from each similarity.

    Raises:
        BadSpec: a value that no variant can have.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> own = DenseAttention(("qq", "vv"), residual=False, ffn=False, depth=3, neighbours=2.0)
        >>> ca.heatmap(ca.load("demo"), examples()[:1], ["a bird", "the sky"], method=own).method
        'dense attention'
    """

    attention: tuple[Attention, ...] = ("qq",)
    residual: bool = False
    ffn: bool = False
    depth: int = 1
    neighbours: float | None = None
    class_row: Literal["dense", "original"] = "dense"
    average: bool = False
    temperature: float = 1.0
    iterations: int = 1
    minus_mean: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        kinds, hints = get_args(Attention), get_type_hints(DenseAttention)
        for name, value in vars(self).items():
            if name != "attention" and not fits(value, hints[name]):
                raise BadSpec(
                    f"{name} is {described(value)}; {expected(hints[name])} was expected. Type: {name}={getattr(DenseAttention, name)!r}"
                )
            moderate(name, value)
        if not fits(self.attention, hints["attention"]) or not self.attention or set(self.attention) - set(kinds):
            raise BadSpec(
                f"attention {self.attention!r}: names were expected. Type: attention=('qq', 'kk'), of {', '.join(kinds)}"
            )
        checks = {
            "depth": self.depth >= 1,
            "temperature": self.temperature > 0,
            "iterations": self.iterations >= 0,
            "neighbours": self.neighbours is None or self.neighbours > 0,
        }
        for name in (name for name, good in checks.items() if not good):
            raise BadSpec(
                f"{name}={getattr(self, name)!r} is too small. Type: {name}={getattr(DenseAttention, name) or 5.0}"
            )
        if self.class_row not in ("dense", "original"):
            raise BadSpec(f"class_row={self.class_row!r} is not known. Type: 'dense' or 'original'")


VARIANTS: dict[str, DenseAttention] = {
    "raw": DenseAttention(("qk",), residual=True, ffn=True),
    "maskclip": DenseAttention(("identity",), residual=False, ffn=False),
    "maskclip_ffn": DenseAttention(("identity",), residual=True, ffn=True),
    "sclip": DenseAttention(("qq", "kk"), residual=True, ffn=True),
    "clearclip": DenseAttention(("qq",), residual=False, ffn=False),
    "naclip": DenseAttention(("kk",), residual=False, ffn=False, neighbours=5.0),
    "qq": DenseAttention(("qq",), residual=True, ffn=True),
    "kk": DenseAttention(("kk",), residual=True, ffn=True),
    "vv": DenseAttention(("vv",), residual=True, ffn=True),
    "gem": DenseAttention(("gem",), residual=True, ffn=False, depth=6),
    "surgery": DenseAttention(("vv",), residual=True, ffn=False, depth=6, class_row="original"),
}


def dense_tokens(
    tower: Transformer, pixels: Float[Tensor, "image 3 row col"], variant: DenseAttention
) -> Float[Tensor, "image token embed"]:
    """Project every token into the joint space, not normalised; token 0 is the class token, then patches row by row.

    Args:
        tower: an image tower.
        pixels: preprocessed.
        variant: one of VARIANTS, or your own.

    Returns:
        Tokens after ln_post and projection. Of towers that average their patches, token 0 is the average where
        `class_row="original"`.

    Raises:
        UnsupportedModel: a tower that is read out at another place.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> dense_tokens(clip.image_tower, clip.pixels(examples()[:1]), VARIANTS["sclip"]).shape[1]
        65
    """
    return dense_path(tower, pixels, variant)[0]


def dense_path(
    tower: Transformer,
    pixels: Float[Tensor, "image 3 row col"],
    variant: DenseAttention,
    given: Float[Tensor, "image query query"] | None = None,
) -> tuple[Float[Tensor, "image token embed"], Step]:
    """Compute dense tokens, and the last block's step of the original path.

    Args:
        tower: an image tower.
        pixels: preprocessed.
        variant: how.
        given: the attention of "given": each patch's weights on all patches.
    """
    if tower.pool not in ("class", "first", "mean", "attention"):
        raise UnsupportedModel(f"dense maps read patches and a class token; this tower is pooled by {tower.pool!r}")
    grid = patch_grid(pixels.shape, tower.patch)
    first = max(0, tower.layers - variant.depth)
    with torch.no_grad():
        x = embed_image(tower, pixels)
        readout = readout_of(tower, pixels, x.shape[1])
        nearby = None if variant.neighbours is None else gaussian(grid, variant.neighbours, tower.own).to(x)
        dense, step = torch.zeros(1, device=x.device, dtype=x.dtype), None
        for step in walk(tower, x, readout):
            if step.layer < first:
                continue
            if step.layer == first and variant.residual:
                dense = step.before
            before, dense = dense, dense + _written(tower, step, variant, nearby, given, rotation=readout.rotation)
            if variant.ffn:
                dense = dense + mlp(tower, tower.blocks[step.layer], before.expand_as(dense), dense)
        assert step is not None
        tokens = embed_each(tower, dense).float()
        own = variant.class_row == "dense" and tower.own > 0
        first = tokens[:, :1] if own else _pooled(tower, step, readout)[:, None]
        return (tokens if own and tower.own == 1 else torch.cat([first, tokens[:, tower.own :]], 1)), step


def _pooled(tower: Transformer, step: Step, readout: Readout) -> Tensor:
    return embed_readout(tower, step.readout, step.after, readout).float()


def keys(tower: Transformer, step: Step) -> Float[Tensor, "image token width"]:
    """Compute the keys of one block, heads side by side."""
    return linear(tower.blocks[step.layer].key, step.normed)


def _written(
    tower: Transformer,
    step: Step,
    variant: DenseAttention,
    nearby: Tensor | None,
    given: Tensor | None,
    *,
    rotation: Tensor | None,
) -> Tensor:
    """Tell what the second path's attention writes: every kind's Σ a v through W_O once."""
    block = tower.blocks[step.layer]
    wanted = set("".join(_NEEDS[kind] for kind in variant.attention))
    held = {"q": (step.query, block.query), "k": (step.key, block.key), "v": (step.value, block.value)}
    x: dict[str, Tensor] = {}
    if step.query is None and (rotation is not None or block.norm_key is not None) and wanted - {"v"}:
        x = dict(zip("qkv", project_in(tower, block, step.normed, rotation), strict=True))
    for name in wanted - set(x):  # the folded last block kept none of them: only what the variant asks for is computed
        known, layer = held[name]
        made = (
            linear(layer, step.normed).unflatten(2, (tower.heads, tower.d)).transpose(1, 2) if known is None else known
        )
        x[name] = made
    scale = tower.d**-0.5 * variant.temperature
    total: Tensor | None = None
    for kind in variant.attention:
        if kind == "identity":
            mixed = x["v"]
        elif kind == "gem":
            mixed = _gem(step.normed, x, scale, variant.iterations)
        elif kind == "given":
            mixed = _by_given(x["v"], given, tower.own)
        else:
            mixed = F.scaled_dot_product_attention(x[kind[0]], x[kind[1]], x["v"], attn_mask=nearby, scale=scale)
        total = mixed if total is None else total + mixed
    assert total is not None
    if variant.average:
        total = total / len(variant.attention)
    return project_out(block, total.transpose(1, 2).flatten(2))


def _gem(normed: Tensor, x: dict[str, Tensor], scale: float, iterations: int) -> Tensor:
    root = (scale * normed.norm(dim=-1).mean(1)).sqrt().view(-1, 1, 1, 1)  # √τ on either side of the product is τ
    total = torch.zeros_like(x["v"])
    for one in (x["q"], x["k"], x["v"]):
        unit = F.normalize(one, dim=-1) * root
        for _ in range(iterations):  # what is gathered is made unit again: its length √τ does not matter
            unit = F.normalize(F.scaled_dot_product_attention(unit, unit, unit, scale=1.0), dim=-1) * root
        total += F.scaled_dot_product_attention(unit, unit, x["v"], scale=1.0)
    return total / 3


def _by_given(
    value: Float[Tensor, "image head token d"], given: Tensor | None, own: int
) -> Float[Tensor, "image head token d"]:
    if given is None:
        raise BadSpec("attention 'given' needs a matrix. Type: heatmap(..., method='proxyclip', affinity=...)")
    mixed = given.to(value)[:, None] @ value[:, :, own:]
    return torch.cat([value[:, :, :own], mixed], 2)


def gaussian(grid: tuple[int, int], std: float, own: int = 1) -> Float[Tensor, "query token"]:
    """Build NACLIP's bias: exp(−distance² / 2 std²) between patches, zero to and from the `own` tokens in front of them."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), cols.flatten()], 1).float()
    square = ((places[:, None] - places[None]) ** 2).sum(-1)
    return F.pad(torch.exp(-square / (2 * std**2)), (own, 0, own, 0))


def similarities(
    tokens: Float[Tensor, "image token embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "image token-1 text"]:
    """Compare every patch with every text by cosine; the class token, first of the tokens, is left out."""
    return F.normalize(tokens[:, 1:], dim=-1) @ F.normalize(text.float(), dim=-1).T


def cosines(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: DenseAttention
) -> Float[Tensor, "image token text"]:
    """Compare every patch's dense token with every text by cosine."""
    maps = similarities(dense_tokens(clip.image_tower, pixels, options), text)
    return maps - maps.mean(-1, keepdim=True) if options.minus_mean else maps
