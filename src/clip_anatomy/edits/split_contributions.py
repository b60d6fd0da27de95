"""Contributions that decomposed images, or a store's head coordinates, supply to replacements."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.replacement import Replacement, embedding_change
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.parts import Parts
from clip_anatomy.split.source_tokens import token_parts

__all__ = ["change_of_coordinates", "change_of_parts"]


def change_of_parts(replacements: Sequence[Replacement], parts: Parts) -> Float[Tensor, "image embed"]:
    """Sum what replacements add to embedding / ‖embedding‖ of images that were decomposed.

    Args:
        replacements: each part once. What is read from tokens (class-to-class attention too) costs one more forward.
        parts: the split of the images.

    Raises:
        BadSpec: MLPs of a model that has none.
    """
    if not replacements:
        return torch.zeros_like(parts.embedding)
    if not parts.mlps.shape[1] and any(one.kind == "mlp" for one in replacements):
        raise BadSpec("this model has no MLPs that write into the embedding. Type heads, for example 0.3")
    length = parts.embedding.norm(dim=-1, keepdim=True)
    tokens = {one.layer: one.tokens or (0,) for one in replacements if one.kind in ("class-to-class", "tokens")}
    read = token_parts(parts, tokens) if tokens else parts.heads

    def contribution(one: Replacement) -> Tensor:
        if one.kind in ("class-to-class", "tokens"):
            return read[:, one.layer] / length[:, None]
        if one.kind == "head":
            return parts.heads[:, one.layer, one.head] / length
        return (parts.mlps[:, one.layer] if one.kind == "mlp" else parts.input_embedding) / length

    return embedding_change(replacements, contribution)


def change_of_coordinates(
    replacements: Sequence[Replacement],
    coordinates: Mapping[tuple[int, int], Float[Tensor, "image d"]],
    basis: HeadBasis,
) -> Float[Tensor, "image embed"]:
    """Sum what replacements of heads add to embedding / ‖embedding‖, from head coordinates alone.

    Args:
        replacements: of heads.
        coordinates: (layer, head) → coordinates, divided by ‖embedding‖.
        basis: their frames.

    Raises:
        BadInput: more than heads is replaced, or a head or its layer is not there.
    """
    if rest := [one.description for one in replacements if one.kind != "head"]:
        raise BadInput(
            f"the edit does: {', '.join(rest[:4])}; from a store only heads can be replaced. Type "
            "EditedClip(clip, edit).encode_image(pixels)"
        )
    if basis.convention != "centered":
        raise BadInput(
            f"the coordinates are of the convention {basis.convention!r}; an edit needs 'centered'. Index with convention='centered'"
        )
    if gone := sorted({one.layer for one in replacements} - set(basis.layers)):
        raise BadInput(
            f"layers {', '.join(map(str, gone))} are edited, the store keeps {', '.join(map(str, basis.layers))}. Index with layers='all'"
        )
    if missing := [f"{one.layer}.{one.head}" for one in replacements if (one.layer, one.head) not in coordinates]:
        raise BadInput(
            f"heads {', '.join(missing[:5])} are replaced but their coordinates are not given. Type "
            "{pair: store.heads(*pair) for pair in edit.parts.heads}"
        )
    counts = {len(at) for at in coordinates.values()}
    if len(counts) > 1:
        raise BadInput(
            f"coordinates of {' and '.join(map(str, sorted(counts)))} images. Give all heads of the same images"
        )
    if not replacements:
        return torch.zeros(max(counts, default=0), basis.embed, dtype=torch.float64)
    rows = {layer: at for at, layer in enumerate(basis.layers)}
    return embedding_change(
        replacements,
        lambda one: coordinates[one.layer, one.head].to("cpu", torch.float64) @ basis.rows[rows[one.layer], one.head],
    )
