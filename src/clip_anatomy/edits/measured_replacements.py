"""From a selection and measured means to the changes of an `Edit`."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.replacement import By, Change, frame_of
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments

__all__ = ["changes_of"]

MEASURE = "Type Edit.of(clip, selection, Means.of(clip, images))"


def changes_of(
    clip: Clip,
    selection: Selection,
    moments: Moments | Means | None,
    *,
    by: By,
    span: TextSpanResult | None,
    directions: Mapping[tuple[int, int], Tensor],
) -> tuple[tuple[Change, ...], int]:
    """One change per part, and over how many images the means were taken.

    Raises:
        BadSpec: parts or directions that an edit cannot have.
        BadInput: means or directions that do not fit the model.
    """
    if selection.tokens:
        raise BadSpec(
            "source tokens are places in one image, an edit is for all images. Type heads, MLPs, class-to-class=LAYERS or input-embedding; "
            "for one image: ablate(clip, images, selection)"
        )
    tower = clip.vision
    if selection.class_to_class and not tower.has_class_token:
        raise BadSpec(
            "this model has no class token that could read from itself. Type heads, MLPs or input-embedding instead"
        )
    if not tower.has_mlps and (selection.mlps or selection.input_embedding):
        raise BadSpec("a CLIP-ResNet is split at its attention pool, which has heads only. Type heads, such as 0.3")
    if strangers := [f"{layer}.{head}" for layer, head in directions if (layer, head) not in selection.heads]:
        raise BadSpec(f"directions for heads that are not selected: {', '.join(strangers[:5])}. Select them too")
    if by == "texts":
        _check_texts(selection, span, directions)
    elif span is not None:
        raise BadSpec(
            f"a span is the reconstruction of by='texts', not of by={by!r}. Leave it away, or type by='texts'"
        )
    if moments is not None and not isinstance(moments, Moments | Means):
        raise BadInput(f"means of type {type(moments).__name__}: Moments or Means were expected. {MEASURE}")
    if moments is not None:
        _check_measured(clip, moments)
    source = span if moments is None and span is not None else moments
    if by != "zero" and source is None and selection:
        raise BadInput(f"by={by!r} needs means, and none are given. {MEASURE}, or by='zero'")
    changes = [
        Change(
            "head",
            layer,
            head,
            by,
            None if by == "zero" or source is None else _head_mean(source, layer, head, clip.vision.embed),
            _frame(moments, span, directions, (layer, head), clip.vision.embed),
        )
        for layer, head in selection.heads
    ]
    changes += _others(selection, moments, by)
    count = 0 if by == "zero" or source is None or not selection else source.count
    return tuple(changes), count


def _check_texts(
    selection: Selection, span: TextSpanResult | None, directions: Mapping[tuple[int, int], Tensor]
) -> None:
    if span is None:
        raise BadSpec("by='texts' needs what TextSpan found. Type span=textspan(moments, texts)")
    if directions:
        raise BadSpec("by='texts' has the directions of its span. Leave directions away, or type by='mean'")
    if len(selection) > len(selection.heads):
        raise BadSpec(
            "by='texts' is for heads only: MLPs and the rest have no texts. Type by='mean' for them, and add the two"
        )
    if span.convention != "centered":
        raise BadInput(
            f"the span was found under the convention {span.convention!r}; an edit needs 'centered'. Index with --convention centered, and "
            "type textspan(moments, texts) again"
        )


def _check_measured(clip: Clip, moments: Moments | Means) -> None:
    if moments.model and moments.model not in (clip.digest, clip.name):
        raise BadInput(
            f"the means are of another model ({moments.model[:8]}…), not of {clip.name} ({clip.digest[:8]}…). {MEASURE}"
        )
    if moments.convention != "centered":
        again = "Index with --convention centered" if isinstance(moments, Moments) else MEASURE
        raise BadInput(
            f"the means were taken under the convention {moments.convention!r}; an edit needs 'centered', in which a part that writes "
            f"nothing contributes nothing. {again}"
        )
    if not moments.count:
        raise BadInput(f"the means were taken over no image. {MEASURE}")


def _head_mean(source: Moments | Means | TextSpanResult, layer: int, head: int, embed: int) -> Float[Tensor, "1 embed"]:
    if isinstance(source, Means):
        return source.heads[layer, head][None].float()
    if layer not in source.layers or head >= source.mean.shape[1]:
        raise BadInput(
            f"head {layer}.{head} is not in the means: they hold layers {', '.join(map(str, source.layers))}. Index with "
            "--layers all"
        )
    row = source.layers.index(layer)
    if isinstance(source, TextSpanResult) and not bool(source.covered[row, head]):
        raise BadInput(f"head {layer}.{head} is not in the span. Type textspan(moments, texts) without heads=")
    at = source.mean[row, head][None]
    joint = at if source.basis is None else at @ source.basis.rows[row, head]
    if joint.shape[1] != embed:
        raise BadInput(
            f"means of {joint.shape[1]} numbers for a joint space of {embed}: they are of another model. {MEASURE}"
        )
    return joint.float()


def _frame(
    moments: Moments | Means | None,
    span: TextSpanResult | None,
    directions: Mapping[tuple[int, int], Tensor],
    at: tuple[int, int],
    embed: int,
) -> Float[Tensor, "direction embed"] | None:
    layer, head = at
    name = f"head {layer}.{head}"
    if span is not None:
        if layer not in span.layers or not bool(span.covered[span.layers.index(layer), head]):
            raise BadInput(f"{name} is not in the span. Type textspan(moments, texts) without heads=")
        row = span.layers.index(layer)
        kept = span.directions[row, head][span.indices[row, head] >= 0]
        joint = _restored(kept, span.basis, layer, head)
        return joint.float() if not len(joint) else frame_of(joint, name)
    if (layer, head) not in directions:
        return None
    rows = torch.atleast_2d(torch.as_tensor(directions[layer, head]))
    basis = moments.basis if isinstance(moments, Moments) else None
    if rows.shape[1] != embed and basis is not None and rows.shape[1] == basis.d and layer in basis.layers:
        rows = _restored(rows, basis, layer, head)
    if rows.dim() != 2 or rows.shape[1] != embed:
        also = "" if basis is None else f", or [k, {basis.d}] (head coordinates)"
        raise BadInput(f"{name}: directions {list(rows.shape)}; [k, {embed}] was expected (the joint space){also}.")
    return frame_of(rows, name)


def _restored(rows: Tensor, basis: HeadBasis | None, layer: int, head: int) -> Tensor:
    rows = rows.to("cpu", torch.float64)
    return rows if basis is None else rows @ basis.rows[basis.layers.index(layer), head]


def _others(selection: Selection, moments: Moments | Means | None, by: By) -> list[Change]:
    """MLPs, class-to-class attention, the start."""
    if len(selection) == len(selection.heads):
        return []
    if by == "zero":
        empty: list[Change] = [Change("mlp", layer, by="zero") for layer in selection.mlps]
        empty += [Change("class-to-class", layer, by="zero") for layer in selection.class_to_class]
        return empty + ([Change("input-embedding", by="zero")] if selection.input_embedding else [])
    if not isinstance(moments, Means):
        raise BadInput(f"moments hold heads only; {selection.told}: more is asked for. {MEASURE}")
    found = [Change("mlp", layer, by=by, mean=moments.mlps[layer][None].float()) for layer in selection.mlps]
    if selection.class_to_class and moments.class_to_class is None:
        raise BadInput(
            "these means were taken without class-to-class attention. Type Means.of(..., class_to_class=True)"
        )
    for layer in selection.class_to_class:
        assert moments.class_to_class is not None
        found.append(Change("class-to-class", layer, by=by, mean=moments.class_to_class[layer].float()))
    return found + (
        [Change("input-embedding", by=by, mean=moments.input_embedding[None].float())]
        if selection.input_embedding
        else []
    )
