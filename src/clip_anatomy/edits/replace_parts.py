"""`replace_parts`: embeddings of a live model with some parts replaced, by their mean, by zero, by their texts or by another image's.

Direct effects only, nothing is run again (Gandelsman et al., ICLR 2024, §3.2). With the contributions x of the selected parts, divided
by ‖embedding‖, and their baselines y:    new embedding = embedding + ‖embedding‖ · Σ (y − x)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.measured_replacements import (
    check_class_token,
    check_options,
    check_source,
    replacements_of,
)
from clip_anatomy.edits.replacement import BYS, By, Replacement
from clip_anatomy.edits.rerun import rerun_replacements, rerun_tower
from clip_anatomy.edits.selection import Selection
from clip_anatomy.edits.split_contributions import change_of_parts
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import BATCH, Clip, Images
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.public_functions import public
from clip_anatomy.split.layernorm import Convention, check_convention
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.parts import decompose
from clip_anatomy.towers.absent_tower import refuse_unsplit
from clip_anatomy.towers.protocol import has_pool_mlp

__all__ = ["replace_parts"]


@public
def replace_parts(
    clip: Clip,
    images: Images | Tensor,
    selection: Selection | str,
    by: By | str = "mean",
    *,
    over: "Moments | Means | Images | Tensor | None" = None,
    other: "Images | Tensor | None" = None,
    span: TextSpanResult | None = None,
    atlas: Atlas | None = None,
    convention: Convention = "centered",
    effect: str = "direct",
) -> Float[Tensor, "image embed"]:
    """Encode images with some parts of each embedding replaced.

    A head is replaced whole; class-to-class attention and tokens are what the other heads read from these tokens. Each (layer, head,
    token) counts once, however often it was selected.

    Args:
        clip: an opened model.
        images: paths, PIL images, arrays, or a preprocessed tensor [image, 3, row, col].
        selection: the parts, or what `Selection.parse` reads: "9.3,10.1", "layer=0-5+mlp=all", "class-to-class=all", "token=0".
        by: "mean", "zero", "texts" (heads only: their TextSpan reconstruction), "swap" (another image's).
        over: where the mean comes from: `Moments` (heads; `Store.moments()`), `Means`, or other images. Default: these images.
        other: for "swap": one image, or as many as there are images.
        span: for "texts": what `textspan` found.
        atlas: names of heads, for a selection of "role=background".
        convention: how LayerNorm's mean and the biases are shared; the part's mean and what zero means depend on it.
        effect: "direct": the parts' terms are replaced, nothing is run again. "rerun": heads and MLPs are held at mean or zero while the
            forward runs, so that later blocks feel it; the embeddings are the re-run's own.

    Returns:
        Embeddings in units of the original length: with nothing selected they equal `encode_image`.

    Raises:
        BadSpec: parts that do not exist, a way to replace that is not known.
        BadInput: what is needed for it is missing or of another model.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> same = ca.replace_parts(clip, examples()[:2], "none")
        >>> bool(torch.allclose(same, clip.encode_image(examples()[:2])))
        True
        >>> ca.replace_parts(clip, examples()[:2], "last=1+mlp=all", by="zero").shape == same.shape
        True
    """
    check_convention(convention)
    tower = clip.vision
    refuse_unsplit(tower)
    chosen, pool, pixels = selection, has_pool_mlp(tower), clip.pixels(images)
    if isinstance(chosen, str):
        chosen = Selection.parse(chosen, tower.layers, tower.heads, atlas, pool=pool)
    chosen.checked(tower.layers, tower.heads, tower.token_count(pixels), pool=pool)
    check_options(by, BYS, over=over, other=other, span=span)
    check_class_token(clip, chosen)
    if effect != "direct":
        return _rerun(
            clip,
            pixels,
            rerun_replacements(clip, chosen, _written_means(clip, pixels, over) if by == "mean" else None, by, effect),
        )
    if by == "swap" and other is None:
        raise BadSpec("by='swap' needs the other image. Type other=IMAGE")
    if by == "texts" and span is None:
        raise BadSpec("by='texts' needs what TextSpan found. Type span=textspan(moments, texts)")
    if by == "mean" and over is None and len(pixels) == 1 and chosen:
        raise BadInput("the mean over one image is that image, so nothing would change. Type over=IMAGES, or by='zero'")
    measured = span if span is not None else over if isinstance(over, Moments | Means) else None
    if measured is not None:
        check_source(measured, chosen, model=(clip.name, clip.digest), convention=convention)
    if not chosen:
        return clip.encode_image(pixels)
    if measured is None:  # nothing in their place for now: the mean, or the other image's, is added below
        parts = _zeroed(chosen, tower.layers, tower.embed)
    elif chosen.tokens:
        raise BadInput("means of source tokens are not kept. Type over=images, which takes the mean of anything")
    elif span is not None:
        parts = replacements_of(chosen, by="texts", embed=tower.embed, span=span)
    else:
        assert isinstance(over, Moments | Means)
        parts = replacements_of(chosen, over, embed=tower.embed)
    embeddings, change = _changes(clip, pixels, parts, convention)
    _refuse_not_finite(change)
    if by == "mean" and measured is None:
        others = change if over is None else _changes(clip, clip.pixels(over), parts, convention)[1]  # pyright: ignore[reportArgumentType]
        change = change - others.double().mean(0).to(change)
    if other is not None:
        swapped = clip.pixels(other)
        if len(swapped) not in (1, len(pixels)):
            raise BadInput(f"{len(swapped)} other images for {len(pixels)}: give one, or one for each")
        change = change - _changes(clip, swapped, parts, convention)[1]
    return embeddings + embeddings.norm(dim=-1, keepdim=True) * change


def _refuse_not_finite(change: Float[Tensor, "image embed"]) -> None:
    if not bool(torch.isfinite(change).all()):
        row = int(torch.nonzero(~torch.isfinite(change).all(1))[0])
        raise BadInput(f"the contributions of image {row} are not finite. Leave it out, or load the model in float32")


def _written_means(clip: Clip, pixels: Tensor, over: object) -> Means:
    if isinstance(over, Moments):
        raise BadInput(
            "moments are of head coordinates, a re-run holds what parts write. Type over=Means.of(clip, images)"
        )
    return over if isinstance(over, Means) else Means.of(clip, pixels if over is None else over)  # pyright: ignore[reportArgumentType]


def _rerun(clip: Clip, pixels: Tensor, held: tuple[Replacement, ...]) -> Float[Tensor, "image embed"]:
    tower = rerun_tower(clip.image_tower, held)
    return torch.cat([tower.encode(part) for part in pixels.split(BATCH)]).float()


def _zeroed(selection: Selection, layers: int, embed: int) -> tuple[Replacement, ...]:
    """Return every part by zero; of each layer's tokens the union of those selected and of class-to-class attention's."""
    whole = Selection(selection.heads, selection.mlps, input_embedding=selection.input_embedding)
    class_token = {layer: (0,) if layer in selection.class_to_class else () for layer in range(layers)}
    read = {layer: tuple(sorted({*selection.tokens, *class_token[layer]})) for layer in range(layers)}
    tokens = (Replacement("tokens", layer, by="zero", tokens=some) for layer, some in read.items() if some)
    return (*replacements_of(whole, by="zero", embed=embed), *tokens)


def _changes(
    clip: Clip, pixels: Tensor, parts: tuple[Replacement, ...], convention: Convention
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "image embed"]]:
    """Compute embeddings, and what the replacements add to embedding / ‖embedding‖."""
    embeddings: list[Tensor] = []
    changes: list[Tensor] = []
    for batch in pixels.split(BATCH):
        split = decompose(clip, batch, convention)
        embeddings.append(split.embedding.float())
        changes.append(change_of_parts(parts, split))
    return torch.cat(embeddings), torch.cat(changes)
