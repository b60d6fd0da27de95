"""Which class every image of a store is given with sets of parts replaced: linear algebra on what is stored, no image is read.

A head's contribution u Q to the logits of C classes W is u (Q Wᵀ), [image, d] · [d, class]; with c in its place the logits change by
(c − u)(Q Wᵀ), a matrix of rank d. Sets are taken in turn: each starts from the logits of the whole model or of the set before it,
whichever differs in less, so that cumulative studies cost one layer a step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.progress import Progress, silent
from clip_anatomy.store.store import Store
from clip_anatomy.studies.baseline import Baseline, parts_of_selection
from clip_anatomy.studies.stored_contributions import ExtraTokens, input_embedding, stored_contribution

__all__ = ["predictions"]

PIECE = 1024  # images read at a time
CELLS = 1 << 18  # logits worked on at a time: they stay in the processor's cache
READER_BYTES = 1 << 29  # of Q Wᵀ held at a time; more classes than fit are taken in several walks over the store
Pair = tuple[int, int]
Key = tuple[int, int, int]  # of a `Replacement`


def predictions(
    store: Store,
    texts: Float[Tensor, "text embed"],
    selections: Sequence[Selection],
    baseline: Baseline,
    *,
    rows: np.ndarray | None = None,
    tokens: ExtraTokens | None = None,
    progress: Progress | None = None,
) -> Int32[Tensor, "set image"]:
    """Answer for every image which class is nearest, once for each set of replaced parts.

    Args:
        store: the store.
        texts: one embedding per class.
        selections: the sets; an empty one is the whole model.
        baseline: what stands in place of the parts.
        rows: which images, ascending; all by default.
        tokens: contributions of tokens, which a store does not hold, by tokens.
        progress: called with what is being done, images done, images in all.

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
    done, tell = 0, progress or silent
    union = Selection()
    for one in sets:
        union |= one
    joint = tuple(baseline.of(part) for part in parts_of_selection(union - Selection(union.heads), manifest.embed))
    heads = [baseline.of(Replacement("head", *pair, by="zero")) for pair in pairs]
    for walk, some in enumerate(walks):
        readers = _Readers(store, some, heads)
        for at, piece in _pieces(store, heads, joint, rows, tokens or {}):
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
            tell("answering", done // len(walks), images)
    return picks


@dataclass(frozen=True)
class _Step:
    """How to come to the logits of a set: from those of the whole model or of the set before, with parts replaced or put back.

    Attributes:
        whole: start from the whole model.
        changes: heads, keys of the other parts, and +1 to replace them, −1 to put them back.
    """

    whole: bool
    changes: tuple[tuple[Sequence[Pair], Sequence[Key], float], ...]

    @staticmethod
    def of(selection: Selection, embed: int, sign: float) -> tuple[Sequence[Pair], Sequence[Key], float]:
        """Return one change."""
        rest = parts_of_selection(selection - Selection(selection.heads), embed)
        return selection.heads, [part.key for part in rest], sign


def _steps(sets: Sequence[Selection], d: int, embed: int) -> list[_Step]:
    def cost(one: Selection) -> int:
        return len(one.heads) * d + embed * (len(one) > len(one.heads))

    steps: list[_Step] = []
    before = Selection()
    for one in sets:
        further, back = one - before, before - one
        if steps and cost(further) + cost(back) < cost(one):
            steps.append(_Step(False, (_Step.of(further, embed, 1.0), _Step.of(back, embed, -1.0))))
        else:
            steps.append(_Step(True, (_Step.of(one, embed, 1.0),)))
        before = one
    return steps


def _disjoint(one: Selection, heads: int) -> Selection:
    """Return the same set without what is in it twice: tokens of a head that is replaced whole, the class token among tokens."""
    own = () if 0 in one.tokens else one.class_to_class
    chosen = {layer: sum(pair[0] == layer for pair in one.heads) for layer, _ in one.heads}
    own = tuple(layer for layer in own if chosen.get(layer, 0) < heads)
    partly = [layer for layer in chosen if layer in own or (one.tokens and chosen[layer])]
    if partly:
        raise BadSpec(
            f"{one.description}: heads of layer {partly[0]} and what they read from tokens are replaced twice. Type one of them, or take such a "
            "set on pictures: replace_parts(clip, images, selection)"
        )
    return Selection(one.heads, one.mlps, own, one.input_embedding, one.tokens)


class _Readers:
    """Classes as seen from each part: Q P Wᵀ of heads, with the projection P of what is replaced; Wᵀ of all that is in the joint space."""

    def __init__(self, store: Store, texts: Tensor, heads: Sequence[Replacement]) -> None:
        self.texts = texts
        self.place = {(one.layer, one.head): at for at, one in enumerate(heads)}
        rows = [store.layer_at(one.layer) for one in heads], [one.head for one in heads]
        frames = store.basis.rows[rows].float()
        self.heads = frames @ texts.T  # [pair, d, class]
        for at, one in enumerate(heads):
            if one.frame is not None:
                self.heads[at] = frames[at] @ one.replaced_part(texts).T

    def of(self, heads: Sequence[Pair]) -> tuple[slice | list[int], Float[Tensor, "d_of_all text"]]:
        """Return places of some heads, and their readers under each other; a view where the heads follow each other."""
        ats = [self.place[pair] for pair in heads]
        run: slice | list[int] = slice(ats[0], ats[-1] + 1) if ats[-1] - ats[0] == len(ats) - 1 else ats
        return run, self.heads[run].flatten(0, 1)


@dataclass(frozen=True)
class _Piece:
    """Some images: unit embeddings, and for every part what would be added to them."""

    unit: Float[Tensor, "image embed"]
    heads: Float[Tensor, "pair image d"]
    joint: Mapping[Key, Float[Tensor, "image embed"]]

    def tile(self, which: slice) -> "_Piece":
        return _Piece(self.unit[which], self.heads[:, which], {key: x[which] for key, x in self.joint.items()})


def _answers(
    tile: _Piece, readers: _Readers, steps: Sequence[_Step]
) -> Iterator[tuple[int, Float[Tensor, " image"], Tensor]]:
    """Row, largest logit and its class, for every set."""
    base = tile.unit @ readers.texts.T
    logits = torch.empty_like(base)
    for row, step in enumerate(steps):
        now = base if step.whole else logits
        for pairs, keys, sign in step.changes:
            if pairs:
                run, reader = readers.of(pairs)
                x = tile.heads[run]
                gap = x[0] if len(x) == 1 else x.transpose(0, 1).flatten(1)
                now = torch.addmm(now, gap, reader, alpha=sign, out=logits)
            if keys:
                gap = sum((tile.joint[key] for key in keys[1:]), tile.joint[keys[0]])
                now = torch.addmm(now, gap, readers.texts.T, alpha=sign, out=logits)
        value, place = now.max(1)
        yield row, value, place
        if step.whole and now is base:
            logits.copy_(base)


def _pieces(
    store: Store,
    heads: Sequence[Replacement],
    others: Sequence[Replacement],
    rows: np.ndarray | None,
    tokens: ExtraTokens,
) -> Iterator[tuple[int, _Piece]]:
    """Read the store piece by piece: place of the first image among `rows`, and the piece."""
    pairs = [(one.layer, one.head) for one in heads]
    means = [_coordinates(store, one) for one in heads]
    centres = torch.stack(means)[:, None] if means else torch.zeros(0, 1, store.manifest.d)
    at = 0
    for start, shares in store.scan(pairs, PIECE) if pairs else _empty(store):
        stop = start + shares.shape[1]
        here = np.arange(start, stop) if rows is None else rows[slice(*np.searchsorted(rows, (start, stop)))]
        if not len(here):
            continue
        u = (shares if len(here) == stop - start else shares[:, here - start]).float()
        unit = store.embeddings(here, unit=True)
        joint: dict[Key, Tensor] = {}
        for one in others:
            if one.kind == "input-embedding":  # all heads are among the pairs then
                x = input_embedding(store, here, torch.einsum("pid,pde->ie", u, store.basis.rows.flatten(0, 1).float()))
            else:
                x = stored_contribution(store, one, here, tokens)
            joint[one.key] = (0.0 if one.baseline is None else one.baseline.sum(0).float()) - x
        _refuse_nan(store, here, unit, u, *joint.values())
        yield at, _Piece(unit, centres - u, joint)
        at += len(here)


def _coordinates(store: Store, one: Replacement) -> Float[Tensor, " d"]:
    """Return the baseline of a head in its coordinates."""
    if one.baseline is None:
        return torch.zeros(store.manifest.d)
    return (store.basis.rows[store.layer_at(one.layer), one.head] @ one.baseline[0].double()).float()


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
