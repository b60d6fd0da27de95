"""An `Edit` on parts that are there already: of decomposed images, or of a store's head coordinates. (While it runs: `EditedClip`.)"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.replacement import Change
from clip_anatomy.errors import BadInput
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.parts import Parts
from clip_anatomy.split.tokens import token_contributions

__all__ = ["edited", "shift"]


def edited(edit: Edit, parts: Parts) -> Float[Tensor, "image embed"]:
    """Edited embeddings of images that were decomposed; see `Edit.apply`."""
    if parts.convention != "centered" or parts.heads.shape[1:] != (edit.layers, edit.heads, edit.embed):
        raise BadInput(
            f"parts {list(parts.heads.shape[1:])} under {parts.convention!r}: an edit of {edit.model} needs [layer, head, embed] = "
            f"{[edit.layers, edit.heads, edit.embed]}. Type decompose(clip, images, 'centered')"
        )
    length = parts.embedding.norm(dim=-1, keepdim=True)
    new = parts.embedding.clone()
    looked = _class_to_class(parts) * length[:, None, None] if edit.parts.class_to_class else None
    frames = {(c.layer, c.head): c for c in edit.changes if c.kind == "head"}
    for one in edit.changes:
        if one.kind == "class-to-class":
            assert looked is not None
            for head in range(edit.heads):
                x = looked[:, one.layer, head]
                put = torch.zeros_like(x[0]) if one.mean is None else one.mean[head].to(x)
                gap = put * length - x
                over = frames.get((one.layer, head))  # what of it the head's own replacement takes anyway
                new = new + (gap if over is None else gap - over.takes(gap))
            continue
        x = _part(parts, one)
        put = torch.zeros_like(x[0]) if one.mean is None else one.mean[0].to(x)
        new = new + one.takes(put * length - x)
    return new


def shift(
    edit: Edit, coordinates: Mapping[tuple[int, int], Float[Tensor, "image d"]], basis: HeadBasis
) -> Float[Tensor, "image embed"]:
    """What to add to embedding / ‖embedding‖, from stored head coordinates; see `Edit.shift`."""
    if any(one.kind != "head" for one in edit.changes):
        raise BadInput(
            f"the edit does: {', '.join(edit.told[:4])}; from a store only heads can be replaced. Type "
            "EditedClip(clip, edit).encode_image(pixels)"
        )
    if basis.convention != "centered":
        raise BadInput(
            f"the coordinates are of the convention {basis.convention!r}; an edit needs 'centered'. Index with --convention centered"
        )
    if gone := sorted({one.layer for one in edit.changes} - set(basis.layers)):
        raise BadInput(
            f"layers {', '.join(map(str, gone))} are edited, the store keeps {', '.join(map(str, basis.layers))}. Index with --layers all"
        )
    if missing := [f"{c.layer}.{c.head}" for c in edit.changes if (c.layer, c.head) not in coordinates]:
        raise BadInput(
            f"heads {', '.join(missing[:5])} are replaced but their coordinates are not given. Type "
            "{pair: store.heads(*pair) for pair in edit.parts.heads}"
        )
    counts = {len(at) for at in coordinates.values()}
    if len(counts) > 1:
        raise BadInput(
            f"coordinates of {' and '.join(map(str, sorted(counts)))} images. Give all heads of the same images"
        )
    images = max(counts, default=0)
    total = torch.zeros(images, edit.embed, dtype=torch.float64)
    for one in edit.changes:
        at = coordinates[one.layer, one.head].to("cpu", torch.float64)
        x = at @ basis.rows[basis.layers.index(one.layer), one.head]
        total += one.takes((0.0 if one.mean is None else one.mean.double()) - x)
    return total


def _part(parts: Parts, one: Change) -> Float[Tensor, "image embed"]:
    if one.kind == "head":
        return parts.heads[:, one.layer, one.head]
    return parts.mlps[:, one.layer] if one.kind == "mlp" else parts.input_embedding


def _class_to_class(parts: Parts) -> Float[Tensor, "image layer head embed"]:
    """What each head's class token read from itself, divided by ‖embedding‖."""
    axes = torch.eye(parts.embedding.shape[1], device=parts.embedding.device)
    return token_contributions(parts.source, axes, parts.convention, only_readout=True)[0][:, :, :, 0]
