"""What stands in place of parts of a store: their mean (of this store, another one, or given), zero, their texts, another image's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.edits.ablate import BYS
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.studies.token_parts import TokenParts

__all__ = ["Instead", "instead_of", "refuse_missing"]

PIECE = 4096


@dataclass(frozen=True)
class Instead:
    """Replacements, divided by ‖embedding‖ like everything in a store.

    Attributes:
        by: "mean", "zero", "texts" or "swap".
        told: the same in words.
        layers: of the layer axis.
        heads: of each head, in head coordinates.
        joint: of the other parts, in the joint space: ("mlp", layer), ("class-to-class", layer) for class-to-class attention, ("rest", −1) for
            the start with the biases, ("tokens", −1).
        directions: what "texts" keep of each head.
        tokens: the source tokens of ("tokens", −1).
    """

    by: str
    told: str
    layers: tuple[int, ...]
    heads: Float64[Tensor, "layer head d"]
    joint: Mapping[tuple[str, int], Float[Tensor, " embed"]] = field(default_factory=dict[tuple[str, int], Tensor])
    directions: Float64[Tensor, "layer head pick d"] | None = None
    tokens: tuple[int, ...] = ()

    def head(self, layer: int, head: int) -> Float64[Tensor, " d"]:
        """What stands in place of one head."""
        return self.heads[self.layers.index(layer), head]


def instead_of(
    store: Store,
    selection: Selection,
    by: str = "mean",
    *,
    over: Store | Moments | Means | None = None,
    other: int | None = None,
    span: TextSpanResult | None = None,
    extra: Mapping[tuple[int, ...], TokenParts] | None = None,
) -> Instead:
    """Work out what stands in place of all parts that a study replaces.

    Args:
        store: the store.
        selection: all parts that will be replaced.
        by: "mean", "zero", "texts" (heads only) or "swap".
        over: for "mean": another store of the model, `Moments` or `Means`; by default this store.
        other: for "swap": place of the image in the store.
        span: for "texts": found on the store's moments.
        extra: contributions of tokens, by tokens.

    Raises:
        BadSpec: a way to replace that is not known or does not fit.
        StoreError: parts that the store, or the other one, does not hold.
        BadInput: means that do not hold a part, or are of another model.
    """
    if by not in BYS:
        raise BadSpec(f"replaced by {by!r}? That is not known. Type one of: {', '.join(BYS)}")
    for name, given, needs in (("over", over, "mean"), ("other", other, "swap"), ("span", span, "texts")):
        if given is not None and by != needs:
            raise BadSpec(f"{name}= is for by={needs!r}, not by={by!r}. Leave it away, or type by={needs!r}")
    refuse_missing(store, selection)
    manifest, more = store.manifest, extra or {}
    nothing = torch.zeros(len(manifest.layers), manifest.heads, manifest.d, dtype=torch.float64)
    if by == "zero":
        zero = {name: torch.zeros(manifest.embed) for name in _names(selection)}
        return Instead(by, "zero", manifest.layers, nothing, zero, None, selection.tokens)
    if by == "texts":
        return _texts(store, selection, span)
    if by == "swap":
        if other is None:
            raise BadSpec("by='swap' needs the other image. Type --other ID, an image of the store")
        at = np.array([other])
        for layer, head in selection.heads if not selection.input_embedding else _every(store):
            nothing[store.layer_at(layer), head] = store.heads(layer, head, at)[0].double()
        found = {name: _other(store, name, at, more, selection.tokens)[0] for name in _names(selection)}
        told = f"what image {store.column('id')[other]} has"
        return Instead(by, told, manifest.layers, nothing, found, None, selection.tokens)
    source = store if over is None else over
    if isinstance(source, Store):
        if source is not store:
            manifest.refuse_other(source.manifest.model, source.manifest.digest, store.path)
            refuse_missing(source, selection)
        _same_convention(store, source.manifest.convention)
        heads = source.moments().mean if selection.heads or selection.input_embedding else nothing
        joint = _joint_means(source, selection, more if source is store else {})
        where = "over this store" if source is store else f"over {source.path.name}"
        return Instead(
            by, f"their mean {where}", manifest.layers, _aligned(store, source, heads), joint, None, selection.tokens
        )
    return _given(store, selection, source)


def refuse_missing(store: Store, selection: Selection) -> None:
    """Raise StoreError for parts that exist in the model but not in the store, BadSpec for those that exist nowhere."""
    manifest = store.manifest
    selection.checked(manifest.depth, manifest.heads)
    asked = {layer for layer, _ in selection.heads} | set(selection.mlps)
    asked |= set(range(manifest.depth)) if selection.input_embedding else set()
    if missing := sorted(asked - set(manifest.layers)):
        raise StoreError(
            f"{store.path} holds layers {_few(manifest.layers)} of {manifest.depth}; {_few(missing)} are needed. Make a store with all of them: "
            "clip-anatomy index SOURCE STORE --layers all"
        )
    if (selection.mlps or selection.input_embedding) and "mlps" not in manifest.keep:
        raise StoreError(
            f"{store.path} holds no MLPs, so that {_others(selection)} cannot be replaced. Make a store with them: clip-anatomy index "
            "SOURCE STORE --keep heads,mlps"
        )


def _others(selection: Selection) -> str:
    return Selection(mlps=selection.mlps, input_embedding=selection.input_embedding).told


def _few(numbers: object) -> str:
    said = [str(number) for number in numbers]  # pyright: ignore
    return ", ".join(said[:8]) + (f" and {len(said) - 8} more" if len(said) > 8 else "")


def _every(store: Store) -> list[tuple[int, int]]:
    return [(layer, head) for layer in store.manifest.layers for head in range(store.manifest.heads)]


def _names(selection: Selection) -> list[tuple[str, int]]:
    found = [("mlp", layer) for layer in selection.mlps] + [
        ("class-to-class", layer) for layer in selection.class_to_class
    ]
    return (
        found + ([("rest", -1)] if selection.input_embedding else []) + ([("tokens", -1)] if selection.tokens else [])
    )


def _other(
    store: Store,
    name: tuple[str, int],
    rows: np.ndarray,
    extra: Mapping[tuple[int, ...], TokenParts],
    tokens: tuple[int, ...],
) -> Float[Tensor, "image embed"]:
    """One part that is no head, of some images."""
    kind, layer = name
    if kind == "mlp":
        return store.mlps(layer, rows).float()
    if kind == "class-to-class":
        return extra[(0,)].layer(layer, rows)
    if kind == "tokens":
        return extra[tokens].all(rows)
    found = store.embeddings(rows, unit=True)
    for one in store.manifest.layers:
        for head in range(store.manifest.heads):
            found = found - store.heads(one, head, rows).float() @ store.basis.rows[store.layer_at(one), head].float()
        found = found - store.mlps(one, rows).float()
    return found


def _mean(images: int, read: Callable[[np.ndarray], Tensor]) -> Float[Tensor, " embed"]:
    total: Tensor | float = 0.0
    for first in range(0, images, PIECE):
        total = total + read(np.arange(first, min(first + PIECE, images))).double().sum(0)
    assert isinstance(total, Tensor)
    return (total / images).float()


def _joint_means(
    source: Store, selection: Selection, extra: Mapping[tuple[int, ...], TokenParts]
) -> dict[tuple[str, int], Tensor]:
    if not len(source):
        raise BadInput(f"{source.path} holds no image to take means of. Type: clip-anatomy index SOURCE {source.path}")
    if (selection.tokens or selection.class_to_class) and not extra:
        raise BadInput("means of tokens are taken over the store itself. Leave --means away for these")
    found: dict[tuple[str, int], Tensor] = {}
    for name in _names(selection):
        if name[0] == "rest":  # the whole minus everything else, so that means of the heads need not be read again
            mean = source.moments().mean
            wrote = torch.einsum("lhd,lhde->e", mean, source.basis.rows)
            others = sum(
                (_mean(len(source), lambda at, n=n: source.mlps(n, at)) for n in source.manifest.layers), torch.zeros(1)
            )
            found[name] = _mean(len(source), lambda at: source.embeddings(at, unit=True)) - wrote.float() - others
        else:
            found[name] = _mean(len(source), lambda at, name=name: _other(source, name, at, extra, selection.tokens))
    return found


def _aligned(store: Store, source: Store, heads: Float64[Tensor, "layer head d"]) -> Float64[Tensor, "layer head d"]:
    """Means of another store, on this one's layers; zero for layers that it does not keep (which are not replaced)."""
    if source.manifest.layers == store.manifest.layers:
        return heads
    found = torch.zeros(len(store.manifest.layers), *heads.shape[1:], dtype=heads.dtype)
    for at, layer in enumerate(store.manifest.layers):
        if layer in source.manifest.layers:
            found[at] = heads[source.manifest.layers.index(layer)]
    return found


def _same_convention(store: Store, convention: str) -> None:
    if convention != store.manifest.convention:
        raise BadInput(
            f"the means are under the convention {convention!r}, {store.path} is under {store.manifest.convention!r}. Take both the same way"
        )


def _given(store: Store, selection: Selection, source: Moments | Means) -> Instead:
    manifest = store.manifest
    if source.model and source.model not in (manifest.digest, manifest.model):
        raise BadInput(
            f"the means are of another model ({source.model[:8]}), not of {manifest.model} (weights {manifest.digest[:8]}). Take them with it"
        )
    if (
        selection.tokens
        or selection.class_to_class
        or selection.input_embedding
        or (isinstance(source, Moments) and selection.mlps)
    ):
        raise BadInput(
            f"these means do not hold {(selection - Selection(selection.heads)).told}. Leave them away: the store's own are taken"
        )
    heads = torch.zeros(len(manifest.layers), manifest.heads, manifest.d, dtype=torch.float64)
    _same_convention(store, source.convention)
    kept = source.layers if isinstance(source, Moments) else manifest.layers
    if missing := sorted({layer for layer, _ in selection.heads} - set(kept)):
        raise BadInput(f"layers {_few(missing)} are not in these moments, which hold {_few(kept)}. Type others")
    for layer, head in selection.heads:
        at = store.layer_at(layer), head
        if isinstance(source, Means):
            heads[at] = store.basis.rows[at] @ source.heads[layer, head]
        else:
            mean = source.mean[source.layers.index(layer), head]
            joint = mean if source.basis is None else mean @ source.basis.rows[source.layers.index(layer), head]
            heads[at] = store.basis.rows[at] @ joint if len(joint) == manifest.embed else joint
    joint = (
        {("mlp", layer): source.mlps[layer].float() for layer in selection.mlps} if isinstance(source, Means) else {}
    )
    return Instead("mean", f"their mean over {source.count:,} other images", manifest.layers, heads, joint)


def _texts(store: Store, selection: Selection, span: TextSpanResult | None) -> Instead:
    if span is None:
        raise BadSpec("by='texts' needs what TextSpan found. Type span=textspan(store.moments(), texts)")
    if len(selection) > len(selection.heads):
        raise BadSpec(
            f"only heads have texts, not {(selection - Selection(selection.heads)).told}. Type --by mean for these"
        )
    if span.layers != store.manifest.layers or span.directions.shape[-1] != store.manifest.d:
        raise BadInput(f"this span is not of {store.path}: span its own moments, textspan(store.moments(), pool)")
    covered = set(span.heads())
    if missing := [f"{layer}.{head}" for layer, head in selection.heads if (layer, head) not in covered]:
        raise BadInput(
            f"heads {', '.join(missing[:5])} are not in the span. Type textspan(moments, texts) without heads="
        )
    told = f"their first {span.texts_per_head} texts"
    return Instead("texts", told, store.manifest.layers, span.mean, {}, span.directions)
