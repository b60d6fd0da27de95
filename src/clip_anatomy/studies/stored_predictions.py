"""Which class every image of a store is given with sets of parts replaced: linear algebra on what is stored, no image is read.

A head's contribution u Q to the logits of C classes W is u (Q Wᵀ), [image, d] · [d, class]; with c in its place the logits change by
(c − u)(Q Wᵀ), a matrix of rank d. Sets are taken in turn: each starts from the logits of the whole model or of the set before it,
whichever differs in less, so that cumulative studies cost one layer a step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.store.store import Store
from clip_anatomy.studies.baseline import Instead
from clip_anatomy.studies.token_parts import TokenParts

__all__ = ["predictions"]

PIECE = 1024  # images read at a time
CELLS = 1 << 18  # logits worked on at a time: they stay in the processor's cache
READER_BYTES = 1 << 29  # of Q Wᵀ held at a time; more classes than fit are taken in several walks over the store
Pair = tuple[int, int]


def predictions(
    store: Store,
    texts: Float[Tensor, "text embed"],
    selections: Sequence[Selection],
    instead: Instead,
    *,
    rows: np.ndarray | None = None,
    extra: Mapping[tuple[int, ...], TokenParts] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Int32[Tensor, "set image"]:
    """Answer for every image which class is nearest, once for each set of replaced parts.

    Args:
        store: the store.
        texts: one embedding per class.
        selections: the sets; an empty one is the whole model.
        instead: what stands in place of the parts.
        rows: which images, ascending; all by default.
        extra: contributions of tokens, which a store does not hold, by tokens.
        report: called with (images done, images in all).

    Returns:
        The class with the largest logit, the first of equal ones.

    Raises:
        BadInput: numbers that are not finite; names the images.
        BadSpec: sets of parts that overlap in a way that a store cannot tell apart.
    """
    manifest = store.manifest
    sets = [_disjoint(one, manifest.heads) for one in selections]
    steps = _steps(sets, manifest.d, manifest.embed)
    pairs = sorted({pair for one in sets for pair in one.heads})
    if any(one.input_embedding for one in sets):
        pairs = [(layer, head) for layer in manifest.layers for head in range(manifest.heads)]
    images = len(store) if rows is None else len(rows)
    picks = torch.zeros(len(sets), images, dtype=torch.int32)
    most = max(1, READER_BYTES // (4 * manifest.d * max(len(pairs), 1)))
    walks = [texts[at : at + most].float() for at in range(0, len(texts), most)]
    best = torch.full((len(sets), images), -torch.inf) if len(walks) > 1 else None
    done = 0
    for walk, some in enumerate(walks):
        readers = _Readers(store, some, pairs, instead)
        for at, piece in _pieces(store, pairs, rows, instead, extra or {}):
            for first in range(0, len(piece.unit), max(32, CELLS // len(some))):
                tile = piece.tile(slice(first, first + max(32, CELLS // len(some))))
                here = slice(at + first, at + first + len(tile.unit))
                for row, value, place in _answers(tile, readers, steps):
                    if best is None:
                        picks[row, here] = place.int()
                        continue
                    higher = value > best[row, here]
                    picks[row, here] = torch.where(higher, place.int() + walk * most, picks[row, here])
                    best[row, here] = torch.where(higher, value, best[row, here])
            done += len(piece.unit)
            report(done // len(walks), images)
    return picks


@dataclass(frozen=True)
class _Step:
    """How to come to the logits of a set: from those of the whole model or of the set before, with parts replaced or put back."""

    whole: bool
    replace: Selection
    put_back: Selection


def _steps(sets: Sequence[Selection], d: int, embed: int) -> list[_Step]:
    def cost(one: Selection) -> int:
        return len(one.heads) * d + embed * (len(one) > len(one.heads))

    found: list[_Step] = []
    before = Selection()
    for one in sets:
        further, back = one - before, before - one
        near = bool(found) and cost(further) + cost(back) < cost(one)
        found.append(_Step(False, further, back) if near else _Step(True, one, Selection()))
        before = one
    return found


def _disjoint(one: Selection, heads: int) -> Selection:
    """The same set without what is in it twice: tokens of a head that is replaced whole, the class token among tokens."""
    own = () if 0 in one.tokens else one.class_to_class
    chosen = {layer: sum(pair[0] == layer for pair in one.heads) for layer, _ in one.heads}
    own = tuple(layer for layer in own if chosen.get(layer, 0) < heads)
    partly = [layer for layer in chosen if layer in own or (one.tokens and chosen[layer])]
    if partly:
        raise BadSpec(
            f"{one.told}: heads of layer {partly[0]} and what they read from tokens are replaced twice. Type one of them, or take such a "
            "set on pictures: ablate(clip, images, selection)"
        )
    return Selection(one.heads, one.mlps, own, one.input_embedding, one.tokens)


class _Readers:
    """Classes as seen from each part: Q Wᵀ of heads, Wᵀ of all that is kept in the joint space."""

    def __init__(self, store: Store, texts: Tensor, pairs: Sequence[Pair], instead: Instead) -> None:
        self.texts = texts
        self.place = {pair: at for at, pair in enumerate(pairs)}
        rows = [store.layer_at(layer) for layer, _ in pairs], [head for _, head in pairs]
        frames = store.basis.rows[rows].float()
        self.heads = frames @ texts.T  # [pair, d, class]
        if instead.directions is not None:  # only what the texts leave over is taken away: (1 − PᵀP) Q Wᵀ
            kept = instead.directions[rows].float()
            self.heads = self.heads - kept.transpose(1, 2) @ (kept @ self.heads)

    def of(self, heads: Sequence[Pair]) -> tuple[slice | list[int], Float[Tensor, "d_of_all text"]]:
        """Places of some heads, and their readers under each other; a view where the heads follow each other."""
        ats = [self.place[pair] for pair in heads]
        run: slice | list[int] = slice(ats[0], ats[-1] + 1) if ats[-1] - ats[0] == len(ats) - 1 else ats
        return run, self.heads[run].flatten(0, 1)


@dataclass(frozen=True)
class _Piece:
    """Some images: unit embeddings, and for every part what would be added to them."""

    unit: Float[Tensor, "image embed"]
    heads: Float[Tensor, "pair image d"]
    joint: Mapping[tuple[str, int], Float[Tensor, "image embed"]]

    def tile(self, which: slice) -> "_Piece":
        return _Piece(self.unit[which], self.heads[:, which], {name: x[which] for name, x in self.joint.items()})

    def gap(self, one: Selection) -> Float[Tensor, "image embed"] | None:
        """What replacing the parts that are no heads adds, in the joint space."""
        names = _names(one)
        return sum((self.joint[name] for name in names[1:]), self.joint[names[0]]) if names else None


def _names(one: Selection) -> list[tuple[str, int]]:
    found = [("mlp", layer) for layer in one.mlps] + [("class-to-class", layer) for layer in one.class_to_class]
    return found + ([("rest", -1)] if one.input_embedding else []) + ([("tokens", -1)] if one.tokens else [])


def _answers(
    tile: _Piece, readers: _Readers, steps: Sequence[_Step]
) -> Iterator[tuple[int, Float[Tensor, " image"], Tensor]]:
    """Row, largest logit and its class, for every set."""
    base = tile.unit @ readers.texts.T
    logits = torch.empty_like(base)
    for row, step in enumerate(steps):
        now = base if step.whole else logits
        for one, sign in ((step.replace, 1.0), (step.put_back, -1.0)):
            if one.heads:
                run, reader = readers.of(one.heads)
                x = tile.heads[run]
                gap = x[0] if len(x) == 1 else x.transpose(0, 1).flatten(1)
                now = torch.addmm(now, gap, reader, alpha=sign, out=logits)
            if (gap := tile.gap(one)) is not None:
                now = torch.addmm(now, gap, readers.texts.T, alpha=sign, out=logits)
        value, place = now.max(1)
        yield row, value, place
        if step.whole and now is base:
            logits.copy_(base)


def _pieces(
    store: Store,
    pairs: Sequence[Pair],
    rows: np.ndarray | None,
    instead: Instead,
    extra: Mapping[tuple[int, ...], TokenParts],
) -> Iterator[tuple[int, _Piece]]:
    """Read the store piece by piece: place of the first image among `rows`, and the piece."""
    centres = (
        torch.stack([instead.head(*pair) for pair in pairs]).float()[:, None]
        if pairs
        else torch.zeros(0, 1, store.manifest.d)
    )
    at = 0
    for start, found in store.scan(pairs, PIECE) if pairs else _empty(store):
        stop = start + found.shape[1]
        here = np.arange(start, stop) if rows is None else rows[slice(*np.searchsorted(rows, (start, stop)))]
        if not len(here):
            continue
        u = (found if len(here) == stop - start else found[:, here - start]).float()
        unit = store.embeddings(here, unit=True)
        joint: dict[tuple[str, int], Tensor] = {}
        for name, x in instead.joint.items():
            kind, layer = name
            if kind == "mlp":
                joint[name] = x - store.mlps(layer, here).float()
            elif kind == "rest":
                frames = store.basis.rows.flatten(0, 1).float()
                wrote = torch.einsum("pid,pde->ie", u, frames)
                mlps = sum((store.mlps(one, here).float() for one in store.manifest.layers), torch.zeros_like(wrote))
                joint[name] = x - (unit - wrote - mlps)
            else:
                told = extra[(0,) if kind == "class-to-class" else instead.tokens]
                joint[name] = x - (told.layer(layer, here) if kind == "class-to-class" else told.all(here))
        _refuse_nan(store, here, unit, u, *joint.values())
        yield at, _Piece(unit, centres - u, joint)
        at += len(here)


def _empty(store: Store) -> Iterator[tuple[int, Tensor]]:
    """Like `Store.scan` of no heads."""
    for first in range(0, len(store), PIECE):
        yield first, torch.zeros(0, min(PIECE, len(store) - first), store.manifest.d, dtype=torch.float16)


def _refuse_nan(store: Store, here: np.ndarray, unit: Tensor, heads: Tensor, *joint: Tensor) -> None:
    if all(bool(torch.isfinite(x.sum())) for x in (unit, heads, *joint)):
        return
    bad = ~torch.isfinite(unit).all(1) | ~torch.isfinite(heads).all(2).all(0)
    for x in joint:
        bad |= ~torch.isfinite(x).all(1)
    ids = store.column("id")
    names = [str(ids[at]) for at in here[bad.numpy()].tolist()]
    raise BadInput(
        f"the scores of {len(names)} images are NaN or infinite (first: {', '.join(names[:3])}). Find the damage with: clip-anatomy verify "
        f"{store.path}"
    )
