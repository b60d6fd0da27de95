"""What stands in place of parts of a store: their mean (of this store, another one, or given), zero, their texts, another image's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.measured_replacements import check_options, check_source, replacements_of
from clip_anatomy.edits.replacement import BYS, By, Replacement
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.studies.stored_contributions import ExtraTokens, stored_contribution
from clip_anatomy.studies.token_parts import TokenParts

__all__ = ["Baseline", "baseline_of", "parts_of_selection", "refuse_missing"]

PIECE = 4096


@dataclass(frozen=True)
class Baseline:
    """What stands in place of every part that a study replaces.

    Attributes:
        replacements: one for each part: heads, MLPs, class-to-class attention of a layer, the input embedding (with the biases, which a
            store does not keep apart), source tokens of all layers together.
        description: what stands there, in words.
    """

    replacements: tuple[Replacement, ...]
    description: str

    def of(self, part: Replacement) -> Replacement:
        """Return the replacement of a part; that of what no study named is by zero."""
        return next((one for one in self.replacements if one.key == part.key), part)


def baseline_of(
    store: Store,
    selection: Selection,
    by: str = "mean",
    *,
    over: Store | Moments | Means | None = None,
    other: int | None = None,
    span: TextSpanResult | None = None,
    tokens: Mapping[tuple[int, ...], TokenParts] | None = None,
) -> Baseline:
    """Work out what stands in place of all parts that a study replaces.

    Args:
        store: the store.
        selection: all parts that will be replaced.
        by: "mean", "zero", "texts" (heads only) or "swap".
        over: for "mean": another store of the model, `Moments` or `Means`; by default this store.
        other: for "swap": place of the image in the store.
        span: for "texts": found on the store's moments.
        tokens: contributions of tokens, by tokens.

    Raises:
        BadSpec: a way to replace that is not known or does not fit.
        StoreError: parts that the store, or the other one, does not hold.
        BadInput: means that do not hold a part, or are of another model.
    """
    check_options(by, BYS, over=over, other=other, span=span)
    refuse_missing(store, selection)
    manifest, extra = store.manifest, tokens or {}
    model, embed = (manifest.model, manifest.digest), manifest.embed
    parts = parts_of_selection(selection, embed)
    if by == "zero":
        return Baseline(parts, "zero")
    if by == "texts":
        if span is None:
            raise BadSpec("by='texts' needs what TextSpan found. Type span=textspan(store.moments(), texts)")
        check_source(span, selection, model=model, convention=manifest.convention)
        if span.layers != manifest.layers or span.directions.shape[-1] != manifest.d:
            raise BadInput(f"this span is not of {store.path}: span its own moments, textspan(store.moments(), pool)")
        replacements = replacements_of(selection, by="texts", embed=embed, span=span)
        return Baseline(replacements, f"their first {span.texts_per_head} texts")
    if by == "swap":
        if other is None:
            raise BadSpec("by='swap' needs the other image. Type other=ID, an image of the store")
        at = np.array([other])
        replacements = [_at(one, "swap", stored_contribution(store, one, at, extra)) for one in parts]
        return Baseline(tuple(replacements), f"what image {store.column('id')[other]} has")
    if isinstance(over, Moments | Means):
        return _given(store, selection, over)
    source = store if over is None else over
    if source is not store:
        manifest.refuse_other(source.manifest.model, source.manifest.digest, store.path)
        refuse_missing(source, selection)
        if source.manifest.convention != manifest.convention:
            raise BadInput(
                f"the means are under the convention {source.manifest.convention!r}, {store.path} is under {manifest.convention!r}. "
                "Take both the same way"
            )
    if not len(source):
        raise BadInput(f"{source.path} holds no image to take means of. Type: clip-anatomy index SOURCE {source.path}")
    if (selection.tokens or selection.class_to_class) and (source is not store or not extra):
        raise BadInput("means of tokens are taken over the store itself. Leave means= away for these")
    heads = Selection(selection.heads)
    replacements = replacements_of(heads, source.moments(), embed=embed) if heads else ()
    others = [_at(one, "mean", _mean(source, one, extra)[None]) for one in parts if one.kind != "head"]
    where = "over this store" if source is store else f"over {source.path.name}"
    return Baseline((*replacements, *others), f"their mean {where}")


def parts_of_selection(selection: Selection, embed: int) -> tuple[Replacement, ...]:
    """Return every part of a selection, by zero; source tokens of all layers together."""
    tokens = (Replacement("tokens", by="zero", tokens=selection.tokens),) if selection.tokens else ()
    return (*replacements_of(selection, by="zero", embed=embed), *tokens)


def refuse_missing(store: Store, selection: Selection) -> None:
    """Raise StoreError for parts that exist in the model but not in the store, BadSpec for those that exist nowhere."""
    manifest = store.manifest
    selection.checked(manifest.depth, manifest.heads)
    if selection.input_embedding and manifest.pool_mlp:
        raise StoreError(
            f"{store.path} holds nothing of the MLP behind this model's attention pool, so that what is left of an embedding is not the "
            "input embedding alone. Type replace_parts(clip, images, 'input-embedding')"
        )
    needed = {layer for layer, _ in selection.heads} | set(selection.mlps)
    needed |= set(range(manifest.depth)) if selection.input_embedding else set()
    if missing := sorted(needed - set(manifest.layers)):
        raise StoreError(
            f"{store.path} holds layers {_few(manifest.layers)} of {manifest.depth}; {_few(missing)} are needed. Make a store with all of them: "
            "clip-anatomy index SOURCE STORE --layers all"
        )
    others = Selection(mlps=selection.mlps, input_embedding=selection.input_embedding)
    if others and "mlps" not in manifest.keep:
        raise StoreError(
            f"{store.path} holds no MLPs, so that {others.description} cannot be replaced. Make a store with them: clip-anatomy index "
            "SOURCE STORE --keep heads,mlps"
        )


def _at(part: Replacement, by: By, baseline: Float[Tensor, "1 embed"]) -> Replacement:
    return replace(part, by=by, baseline=baseline)


def _few(numbers: object) -> str:
    names = [str(number) for number in numbers]  # pyright: ignore
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _mean(source: Store, part: Replacement, tokens: ExtraTokens) -> Float[Tensor, " embed"]:
    if (
        part.kind == "input-embedding"
    ):  # the whole minus everything else, so that means of the heads need not be read again
        wrote = torch.einsum("lhd,lhde->e", source.moments().mean, source.basis.rows)
        mlps = [_mean_of(len(source), lambda at, n=layer: source.mlps(n, at)) for layer in source.manifest.layers]
        whole = _mean_of(len(source), lambda at: source.embeddings(at, unit=True))
        return whole - wrote.float() - torch.stack(mlps).sum(0)
    return _mean_of(len(source), lambda at: stored_contribution(source, part, at, tokens))


def _mean_of(images: int, read: Callable[[np.ndarray], Tensor]) -> Float[Tensor, " embed"]:
    sums = [
        read(np.arange(first, min(first + PIECE, images))).double().sum(0, keepdim=True)
        for first in range(0, images, PIECE)
    ]
    return (torch.cat(sums).sum(0) / images).float()


def _given(store: Store, selection: Selection, source: Moments | Means) -> Baseline:
    manifest = store.manifest
    check_source(source, selection, model=(manifest.model, manifest.digest), convention=manifest.convention)
    held = Selection(selection.heads, selection.mlps if isinstance(source, Means) else ())
    if rest := selection - held:
        raise BadInput(f"these means do not hold {rest.description}. Leave them away: the store's own are taken")
    if isinstance(source, Moments) and source.basis is None and source.mean.shape[-1] == manifest.d:
        source = replace(source, basis=store.basis.select(source.layers))  # head coordinates without their frames
    replacements = replacements_of(held, source, embed=manifest.embed)
    return Baseline(replacements, f"their mean over {source.count:,} other images")
