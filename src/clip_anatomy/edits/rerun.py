"""Replacements that later blocks feel: the forward runs with the parts' writes into the class token's row held at mean or zero."""

from collections.abc import Sequence

import torch

from clip_anatomy.edits.measured_replacements import MEASURE
from clip_anatomy.edits.replacement import EFFECTS, By, Replacement
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.split.means import Means
from clip_anatomy.towers.ablated_writes import check_rerun, with_fixed
from clip_anatomy.towers.transformer import Transformer

__all__ = ["direct_only", "rerun_replacements", "rerun_tower"]


def rerun_replacements(
    clip: Clip, selection: Selection, means: object, by: By | str, effect: str = "rerun"
) -> tuple[Replacement, ...]:
    """Describe the replacement of every part of a selection that is to be felt by later blocks.

    Args:
        clip: the model.
        selection: heads and MLPs.
        means: `Means`, for "mean".
        by: "mean" or "zero".
        effect: as it was asked for.

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
    if by == "zero":
        return (
            *(Replacement("head", *pair, by="zero", effect="rerun") for pair in selection.heads),
            *(Replacement("mlp", layer, by="zero", effect="rerun") for layer in selection.mlps),
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
            Replacement("head", layer, head, "mean", means.mixed[layer, head][None].float(), effect="rerun")
            for layer, head in selection.heads
        ),
        *(Replacement("mlp", layer, by="mean", baseline=means.mlp_writes[layer][None].float(), effect="rerun") for layer in selection.mlps),
    )  # fmt: skip


def rerun_tower(tower: Transformer, replacements: Sequence[Replacement]) -> Transformer:
    """Return the tower with what is replaced by re-run held; itself where nothing is."""
    felt = [one for one in replacements if one.effect == "rerun"]
    if not felt:
        return tower
    check_rerun(tower)

    def value(one: Replacement) -> torch.Tensor:
        width = tower.d if one.kind == "head" else tower.width
        return torch.zeros(width) if one.baseline is None else one.baseline[0]

    heads = {(one.layer, one.head): value(one) for one in felt if one.kind == "head"}
    return with_fixed(tower, heads, {one.layer: value(one) for one in felt if one.kind == "mlp"})


def direct_only(replacements: Sequence[Replacement]) -> tuple[Replacement, ...]:
    """Return those whose term alone is replaced."""
    return tuple(one for one in replacements if one.effect == "direct")
