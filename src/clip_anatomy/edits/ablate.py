"""Direct effects: embeddings with some parts replaced, by their mean, by zero, by their texts or by another image's.

Nothing is run again (Gandelsman et al., ICLR 2024, §3.2). With the contributions x of the selected parts, divided by ‖embedding‖, and
y in their place:    new embedding = embedding + ‖embedding‖ · Σ (y − x)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import BATCH, Clip, Images
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.layernorm import (
    Convention,
    centre,
    check_convention,
    out_bias,
    shared_term,
    to_joint,
    write_heads,
)
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.parts import Parts, decompose
from clip_anatomy.towers.trace import LayerReading

__all__ = ["BYS", "By", "ablate", "mean_of", "rebuilt", "taken", "token_parts"]

By = Literal["mean", "zero", "texts", "swap"]
BYS: tuple[By, ...] = get_args(By)


def ablate(
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

    Returns:
        Embeddings in units of the original length: with nothing selected they equal `encode_image`.

    Raises:
        BadSpec: parts that do not exist, a way to replace that is not known.
        BadInput: what is needed for it is missing or of another model.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> same = ablate(clip, examples()[:2], "none")
        >>> bool(torch.allclose(same, clip.encode_image(examples()[:2])))
        True
        >>> ablate(clip, examples()[:2], "last=1+mlp=all", by="zero").shape == same.shape
        True
    """
    check_convention(convention)
    tower = clip.vision
    chosen = Selection.parse(selection, tower.layers, tower.heads, atlas) if isinstance(selection, str) else selection
    pixels = clip.pixels(images)
    chosen.checked(tower.layers, tower.heads, tower.token_count(pixels))
    _check(clip, chosen, by, over=over, other=other, span=span, convention=convention, images=len(pixels))
    if not chosen:
        return clip.encode_image(pixels)
    embeddings: list[Tensor] = []
    gone: list[Tensor] = []
    for batch in pixels.split(BATCH):
        parts = decompose(clip, batch, convention)
        embeddings.append(parts.embedding.float())
        x = taken(parts, chosen)
        gone.append(x if span is None else x - rebuilt(parts, chosen, span))
    x = torch.cat(gone)
    if not bool(torch.isfinite(x).all()):
        row = int(torch.nonzero(~torch.isfinite(x).all(1))[0])
        raise BadInput(f"the contributions of image {row} are not finite. Leave it out, or load the model in float32")
    put: Tensor = torch.zeros_like(x[0])
    if isinstance(over, Moments | Means):
        put = mean_of(over, chosen).to(x)
    elif by == "mean":
        put = (x if over is None else _taken_of(clip, over, chosen, convention)).double().mean(0).to(x)
    elif by == "swap":
        assert other is not None
        put = _taken_of(clip, other, chosen, convention)
        if len(put) not in (1, len(x)):
            raise BadInput(f"{len(put)} other images for {len(x)}: give one, or one for each")
    whole = torch.cat(embeddings)
    return whole + whole.norm(dim=-1, keepdim=True) * (put - x)


def taken(parts: Parts, selection: Selection) -> Float[Tensor, "image embed"]:
    """What the selected parts wrote, together, divided by ‖embedding‖.

    Args:
        parts: the split of some images.
        selection: which parts; tokens and class-to-class attention cost one more forward.
    """
    total = torch.zeros_like(parts.embedding)
    if selection.heads:
        layer, head = zip(*selection.heads, strict=True)
        total = total + parts.heads[:, list(layer), list(head)].sum(1)
    if selection.mlps:
        if not parts.mlps.shape[1]:
            raise BadSpec("this model has no MLPs that write into the embedding. Type heads, for example 0.3")
        total = total + parts.mlps[:, list(selection.mlps)].sum(1)
    if selection.input_embedding:
        total = total + parts.input_embedding
    if selection.tokens or selection.class_to_class:
        layers = parts.heads.shape[1]
        which = {
            layer: (*selection.tokens, *([0] if layer in selection.class_to_class else [])) for layer in range(layers)
        }
        read = token_parts(parts, {layer: tuple(sorted(set(tokens))) for layer, tokens in which.items() if tokens})
        for layer, head in selection.heads:  # gone already, as a whole
            read[:, layer, head] = 0
        total = total + read.sum((1, 2))
    return total / parts.embedding.norm(dim=-1, keepdim=True)


def token_parts(parts: Parts, tokens: Mapping[int, Sequence[int]]) -> Float[Tensor, "image layer head embed"]:
    """What every head wrote of what it read from some tokens; with all tokens it is `parts.heads`.

    Costs one forward. Not divided by ‖embedding‖, like all of `Parts`.

    Args:
        parts: the split of some images.
        tokens: layer → tokens, 0 the class token; layers that are not named stay zero.
    """
    tower = parts.source.network
    if tower.architecture != "transformer":
        raise UnsupportedModel(
            "source tokens and class-to-class attention are replaced in transformers only; this is a ResNet. Type heads, for example 0.3"
        )
    every = tower.token_count(parts.source.inputs)
    wrote: list[Tensor] = []

    def write(reading: LayerReading) -> None:
        chosen = list(tokens.get(reading.layer, ()))
        attention = reading.attention()[:, :, chosen]
        value = reading.values()[:, :, chosen].float()
        wrote.append(write_heads(tower, tower.blocks[reading.layer], torch.einsum("ihn,ihnd->ihd", attention, value)))

    with torch.no_grad():
        trace = tower.trace(parts.source.inputs, write)
        scale = trace.scale[:, None, None, None]
        found = torch.stack(wrote, 1)
        if parts.convention == "centered":
            return to_joint(tower, centre(found) * scale)
        biases = torch.stack([out_bias(block, tower.width, found.device) for block in tower.blocks])
        spread = biases[None, :, None] * trace.mass[:, None, None, None] * scale
        shares = (to_joint(tower, spread) + shared_term(tower, trace)[:, None, None]) / (tower.heads * every)
        many = torch.tensor([len(tokens.get(layer, ())) for layer in range(tower.layers)], device=found.device)
        return to_joint(tower, found * scale) + shares * many[None, :, None, None]


def rebuilt(parts: Parts, selection: Selection, span: TextSpanResult) -> Float[Tensor, "image embed"]:
    """The TextSpan reconstructions of the selected heads, together, divided by ‖embedding‖."""
    x = (
        parts.heads[:, list(span.layers)].double().cpu()
        / parts.embedding.double().cpu().norm(dim=-1)[:, None, None, None]
    )
    again = span.reconstruct(x if span.basis is None else span.basis.coordinates(x))
    joint = again if span.basis is None else span.basis.restore(again)
    rows = [span.layers.index(layer) for layer, _ in selection.heads]
    return joint[:, rows, [head for _, head in selection.heads]].sum(1).to(parts.embedding)


def mean_of(over: Moments | Means, selection: Selection) -> Float[Tensor, " embed"]:
    """Mean of what the selected parts wrote together, from statistics that were taken before.

    Raises:
        BadInput: they do not hold a part; says what to type.
    """
    images = "Type over=images, which takes the mean of anything"
    if selection.tokens:
        raise BadInput(f"means of source tokens are not kept. {images}")
    if isinstance(over, Moments):
        if len(selection) > len(selection.heads):
            raise BadInput(f"moments hold heads only, not {(selection - Selection(selection.heads)).told}. {images}")
        if missing := sorted({layer for layer, _ in selection.heads} - set(over.layers)):
            raise BadInput(f"layers {missing} are not in these moments, which hold {list(over.layers)}. {images}")
        total = torch.zeros(over.means.shape[-1] if over.basis is None else over.basis.embed, dtype=torch.float64)
        for layer, head in selection.heads:
            at = over.layers.index(layer), head
            total += over.mean[at] if over.basis is None else over.mean[at] @ over.basis.rows[at]
        return total
    total = torch.zeros_like(over.input_embedding)
    for layer, head in selection.heads:
        total += over.heads[layer, head]
    for layer in selection.mlps:
        total += over.mlps[layer]
    if selection.input_embedding:
        total += over.input_embedding
    if selection.class_to_class and over.class_to_class is None:
        raise BadInput(
            "these means were taken without class-to-class attention. Type Means.of(..., class_to_class=True)"
        )
    for layer in selection.class_to_class:
        assert over.class_to_class is not None
        kept = [head for head in range(over.heads.shape[1]) if (layer, head) not in selection.heads]
        total += over.class_to_class[layer, kept].sum(0)
    return total


def _taken_of(
    clip: Clip, images: Images | Tensor, selection: Selection, convention: Convention
) -> Float[Tensor, "image embed"]:
    batches: Iterable[Tensor] = clip.pixels(images).split(BATCH)
    return torch.cat([taken(decompose(clip, batch, convention), selection) for batch in batches])


def _check(
    clip: Clip,
    selection: Selection,
    by: str,
    *,
    over: object,
    other: object,
    span: TextSpanResult | None,
    convention: str,
    images: int,
) -> None:
    """Refuse what does not fit together, before the model runs."""
    if by not in BYS:
        raise BadSpec(f"replaced by {by!r}? That is not known. Type one of: {', '.join(BYS)}")
    for name, given, needs in (("over", over, "mean"), ("other", other, "swap"), ("span", span, "texts")):
        if given is not None and by != needs:
            raise BadSpec(f"{name}= is for by={needs!r}, not by={by!r}. Leave it away, or type by={needs!r}")
    if selection.class_to_class and clip.vision.architecture == "transformer" and not clip.vision.has_class_token:
        raise BadSpec(
            "this model averages its patches: no class token reads from itself. Type heads, MLPs or tokens instead"
        )
    if by == "swap" and other is None:
        raise BadSpec("by='swap' needs the other image. Type other=IMAGE")
    if by == "mean" and over is None and images == 1 and selection:
        raise BadInput("the mean over one image is that image, so nothing would change. Type over=IMAGES, or by='zero'")
    if isinstance(over, Moments | Means) and over.model and over.model not in (clip.digest, clip.name):
        raise BadInput(
            f"the means are of another model ({over.model[:8]}), not of {clip.name} ({clip.digest[:8]}). Take them with it"
        )
    if isinstance(over, Moments | Means) and over.convention != convention:
        raise BadInput(
            f"the means were taken under the convention {over.convention!r}. Type convention={over.convention!r}"
        )
    if by == "texts":
        _check_span(selection, span, convention)


def _check_span(selection: Selection, span: TextSpanResult | None, convention: str) -> None:
    if span is None:
        raise BadSpec("by='texts' needs what TextSpan found. Type span=textspan(moments, texts)")
    if len(selection) > len(selection.heads):
        raise BadSpec(
            f"only heads have texts, not {(selection - Selection(selection.heads)).told}. Type by='mean' for these"
        )
    covered = set(span.heads())
    if missing := [f"{layer}.{head}" for layer, head in selection.heads if (layer, head) not in covered]:
        raise BadInput(
            f"heads {', '.join(missing[:5])} are not in the span. Type textspan(moments, texts) without heads="
        )
    if span.convention != convention:
        raise BadInput(
            f"the span was found under the convention {span.convention!r}. Type convention={span.convention!r}"
        )
