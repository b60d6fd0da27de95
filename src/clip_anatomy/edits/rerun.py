"""Replacements that later blocks feel: the forward runs with the parts' writes into the class token's row held at mean or zero.

With a frame F (orthonormal rows of the joint space) only what that changes along it is taken:  e + (e′ − e) FᵀF, with the embeddings e of
the model and e′ of the re-run. F of the class texts ablates every path from the parts that ends in the answer to one question, and no other.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.measured_replacements import MEASURE
from clip_anatomy.edits.replacement import EFFECTS, By, Replacement, frame_of
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.split.means import Means
from clip_anatomy.towers.ablated_writes import check_rerun, with_fixed
from clip_anatomy.towers.transformer import Transformer

__all__ = ["direct_only", "rerun_encode", "rerun_frame", "rerun_replacements", "rerun_tower"]


def rerun_replacements(
    clip: Clip,
    selection: Selection,
    means: object,
    by: By | str,
    effect: str = "rerun",
    *,
    along: Float[Tensor, "vector embed"] | None = None,
) -> tuple[Replacement, ...]:
    """Describe the replacement of every part of a selection that is to be felt by later blocks.

    Args:
        clip: the model.
        selection: heads and MLPs.
        means: `Means`, for "mean".
        by: "mean" or "zero".
        effect: as it was asked for.
        along: vectors of the joint space: only what the re-run changes along their span is taken.

    Raises:
        BadSpec: an unknown effect, other parts than heads and MLPs, another way to replace.
        BadInput: no means, or those of another model.
        UnsupportedModel: see `check_rerun`.
    """
    if effect != "rerun":
        raise BadSpec(f"effect={effect!r} is not known. Type one of: {', '.join(map(repr, EFFECTS))}")
    tower = check_rerun(clip.vision)
    others = selection - Selection(selection.heads, tuple(layer for layer in selection.mlps if layer < tower.layers))
    if others:
        raise BadSpec(f"{others.description}: a re-run holds heads and MLPs. Type 9.3,10.1+mlp=4, or effect='direct'")
    frame = None if along is None else frame_of(along, selection.spec)
    if by == "zero":
        return (
            *(Replacement("head", *pair, by="zero", frame=frame, effect="rerun") for pair in selection.heads),
            *(Replacement("mlp", layer, by="zero", frame=frame, effect="rerun") for layer in selection.mlps),
        )
    if by != "mean":
        raise BadSpec(f"by={by!r}: a re-run holds parts at their mean or zero. Type by='mean', or effect='direct'")
    if not isinstance(means, Means) or means.mixed is None or means.mlp_writes is None:
        raise BadInput(
            f"a re-run needs the means of what the parts write, before they are divided. {MEASURE}, or by='zero'"
        )
    if means.model != clip.digest:
        raise BadInput(f"these means are of another model (digest {means.model[:8]}…). {MEASURE}")
    return (
        *(
            Replacement("head", layer, head, "mean", means.mixed[layer, head][None].float(), frame, effect="rerun")
            for layer, head in selection.heads
        ),
        *(Replacement("mlp", layer, by="mean", baseline=means.mlp_writes[layer][None].float(), frame=frame, effect="rerun") for layer in selection.mlps),
    )  # fmt: skip


def rerun_tower(tower: Transformer, replacements: Sequence[Replacement]) -> Transformer:
    """Return the tower with what is replaced by re-run held; itself where nothing is."""
    felt = [one for one in replacements if one.effect == "rerun"]
    if not felt:
        return tower
    check_rerun(tower)

    def value(one: Replacement) -> Tensor:
        width = tower.d if one.kind == "head" else tower.width
        return torch.zeros(width) if one.baseline is None else one.baseline[0]

    heads = {(one.layer, one.head): value(one) for one in felt if one.kind == "head"}
    return with_fixed(tower, heads, {one.layer: value(one) for one in felt if one.kind == "mlp"})


def rerun_frame(replacements: Sequence[Replacement]) -> Float[Tensor, "direction embed"] | None:
    """Return the directions along which a re-run is felt; None: along all.

    Raises:
        BadInput: parts that are felt along different directions, which one re-run cannot tell apart.
    """
    frames = [one.frame for one in replacements if one.effect == "rerun"]
    given = [one for one in frames if one is not None]
    if given and (len(given) < len(frames) or not all(torch.equal(one, given[0]) for one in given)):
        raise BadInput(
            "parts of one re-run are felt along different directions, which cannot be told apart. Type one edit for each"
        )
    return given[0] if given else None


def rerun_encode(
    tower: Transformer, replacements: Sequence[Replacement], pixels: Tensor, whole: Float[Tensor, "image embed"]
) -> Float[Tensor, "image embed"]:
    """Embed pixels with what is replaced by re-run held, and felt along its directions alone if it has any; not normalised.

    Args:
        tower: as it is by itself.
        replacements: what is held.
        pixels: of the images.
        whole: what the tower embeds them as.
    """
    after, frame = rerun_tower(tower, replacements).encode(pixels).to(whole), rerun_frame(replacements)
    if frame is None:
        return after
    rows = frame.to(whole)
    return whole + (after - whole) @ rows.T @ rows


def direct_only(replacements: Sequence[Replacement]) -> tuple[Replacement, ...]:
    """Return those whose term alone is replaced."""
    return tuple(one for one in replacements if one.effect == "direct")
