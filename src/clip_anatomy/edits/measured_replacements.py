"""From a selection and measured means (or what TextSpan found) to replacements."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.replacement import By, Replacement, frame_of
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments

__all__ = ["check_class_token", "check_options", "check_source", "replacements_of"]

MEASURE = "Type Means.of(clip, images)"


def replacements_of(
    selection: Selection,
    source: Moments | Means | None = None,
    by: By = "mean",
    *,
    embed: int,
    span: TextSpanResult | None = None,
    directions: Mapping[tuple[int, int], Tensor] | None = None,
) -> tuple[Replacement, ...]:
    """Describe the replacement of every part of a selection, source tokens excepted.

    Args:
        selection: the parts.
        source: where means come from; not needed for "zero" and "texts".
        by: "mean", "zero", or "texts".
        embed: width of the joint space.
        span: for "texts": directions of the heads, and their means where no source is given.
        directions: (layer, head) → vectors [k, embed] (or [k, d], head coordinates of the source's basis) that span what is replaced.

    Returns:
        One replacement a part: heads, MLPs, class-to-class attention, input embedding.

    Raises:
        BadInput: means or directions that do not hold a part, or do not fit.
    """
    given = span if source is None and span is not None else source
    replacements = [
        Replacement(
            "head",
            layer,
            head,
            by,
            None if by == "zero" or given is None else _head_mean(given, layer, head, embed),
            _frame(source, span, directions or {}, (layer, head), embed),
        )
        for layer, head in selection.heads
    ]
    rest = selection - Selection(selection.heads)
    if rest and by == "zero":
        replacements += [Replacement("mlp", layer, by=by) for layer in rest.mlps]
        replacements += [Replacement("class-to-class", layer, by=by) for layer in rest.class_to_class]
        return tuple(replacements + [Replacement("input-embedding", by=by)] * rest.input_embedding)
    if rest and not isinstance(source, Means):
        raise BadInput(f"moments hold heads only, not {rest.description}. {MEASURE}, which hold all parts")
    if isinstance(source, Means):
        replacements += [
            Replacement("mlp", layer, by=by, baseline=source.mlps[layer][None].float()) for layer in rest.mlps
        ]
        for layer in rest.class_to_class:
            if source.class_to_class is None:
                raise BadInput(
                    "these means were taken without class-to-class attention. Type Means.of(..., class_to_class=True)"
                )
            replacements.append(
                Replacement("class-to-class", layer, by=by, baseline=source.class_to_class[layer].float())
            )
        if rest.input_embedding:
            replacements.append(Replacement("input-embedding", by=by, baseline=source.input_embedding[None].float()))
    return tuple(replacements)


def check_options(by: str, known: tuple[str, ...], **options: object) -> None:
    """Refuse an unknown way to replace, and options of another way.

    Args:
        by: the way.
        known: those that there are.
        options: `over` (for "mean"), `other` ("swap"), `span` ("texts"), None where not given.

    Raises:
        BadSpec: says what to type.
    """
    if by not in known:
        raise BadSpec(f"replaced by {by!r}? That is not known. Type one of: {', '.join(known)}")
    for name, needs in (("over", "mean"), ("other", "swap"), ("span", "texts")):
        if options.get(name) is not None and by != needs:
            raise BadSpec(f"{name}= is for by={needs!r}, not by={by!r}. Leave it away, or type by={needs!r}")


def check_source(
    source: Moments | Means | TextSpanResult, selection: Selection, *, model: tuple[str, str], convention: str
) -> None:
    """Refuse means or TextSpan results that are not those of a model under a convention, or that lack selected heads.

    Args:
        source: what was measured.
        selection: the parts.
        model: name and digest of the model.
        convention: the one that is needed.

    Raises:
        BadSpec: parts that have no texts.
        BadInput: another model or convention, no image, heads without texts.
    """
    noun = "span was found" if isinstance(source, TextSpanResult) else "means were taken"
    if source.convention != convention:
        raise BadInput(
            f"the {noun} under the convention {source.convention!r}; {convention!r} is needed here. Index with convention={convention!r} "
            f"and take them again, or type convention={source.convention!r} where that can be said"
        )
    if isinstance(source, TextSpanResult):
        if rest := selection - Selection(selection.heads):
            raise BadSpec(f"only heads have texts, not {rest.description}. Type by='mean' for these")
        if missing := sorted(set(selection.heads) - set(source.heads())):
            names = ", ".join(f"{layer}.{head}" for layer, head in missing[:5])
            raise BadInput(f"heads {names} are not in the span. Type textspan(moments, texts) without heads=")
        return
    name, digest = model
    if source.model and source.model not in (name, digest):
        raise BadInput(
            f"the means are of another model ({source.model[:8]}…), not of {name} (weights {digest[:8]}…). Take them with it: "
            f"{MEASURE.removeprefix('Type ')}"
        )
    if not source.count:
        raise BadInput(f"the means were taken over no image. {MEASURE}")


def check_class_token(clip: Clip, selection: Selection) -> None:
    """Refuse class-to-class attention of a model that averages its patches.

    Raises:
        BadSpec: says what to type instead.
    """
    if selection.class_to_class and clip.vision.architecture == "transformer" and not clip.vision.has_class_token:
        raise BadSpec(
            "this model averages its patches: no class token reads from itself. Type heads, MLPs or tokens instead"
        )


def _head_mean(source: Moments | Means | TextSpanResult, layer: int, head: int, embed: int) -> Float[Tensor, "1 embed"]:
    if isinstance(source, Means):
        return source.heads[layer, head][None].float()
    if layer not in source.layers or head >= source.mean.shape[1]:
        raise BadInput(
            f"head {layer}.{head} is not in the means: they hold layers {', '.join(map(str, source.layers))}. Index with "
            "layers='all'"
        )
    row = source.layers.index(layer)
    joint = _restored(source.mean[row, head][None], source.basis, layer, head)
    if joint.shape[1] != embed:
        raise BadInput(
            f"means of {joint.shape[1]} numbers for a joint space of {embed}: they are of another model. {MEASURE}"
        )
    return joint.float()


def _frame(
    source: Moments | Means | None,
    span: TextSpanResult | None,
    directions: Mapping[tuple[int, int], Tensor],
    at: tuple[int, int],
    embed: int,
) -> Float[Tensor, "direction embed"] | None:
    layer, head = at
    name = f"head {layer}.{head}"
    if span is not None:
        row = span.layers.index(layer)
        picked = span.directions[row, head][span.indices[row, head] >= 0]
        joint = _restored(picked, span.basis, layer, head)
        return joint.float() if not len(joint) else frame_of(joint, name)
    if (layer, head) not in directions:
        return None
    rows = torch.atleast_2d(torch.as_tensor(directions[layer, head]))
    basis = source.basis if isinstance(source, Moments) else None
    if rows.shape[1] != embed and basis is not None and rows.shape[1] == basis.d and layer in basis.layers:
        rows = _restored(rows, basis, layer, head)
    if rows.dim() != 2 or rows.shape[1] != embed:
        also = "" if basis is None else f", or [k, {basis.d}] (head coordinates)"
        raise BadInput(f"{name}: directions {list(rows.shape)}; [k, {embed}] was expected (the joint space){also}.")
    return frame_of(rows, name)


def _restored(rows: Tensor, basis: HeadBasis | None, layer: int, head: int) -> Tensor:
    rows = rows.to("cpu", torch.float64)
    return rows if basis is None else rows @ basis.rows[basis.layers.index(layer), head]
