"""From the best scores to what is shown: rows of the best images, equal files folded, scores anew in float64."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from clip_anatomy.retrieval.prepared_query import Ready
from clip_anatomy.retrieval.ranking import Hit
from clip_anatomy.store.rows import Row
from clip_anatomy.store.store import Store

__all__ = ["hits_of", "rows_of"]

MANY = 2000  # results that are sorted anew at once
AT_ONCE = 400  # places in one query of rows
SPARE = 32  # images fetched beyond those that were asked for, in case some are copies


def hits_of(
    store: Store, ready: Ready, nearest: Callable[[int], list[int]], total: int, *, k: int, offset: int, fold: bool
) -> tuple[Hit, ...]:
    """The hits of one page.

    Args:
        store: the store.
        ready: what is looked for.
        nearest: k → places of the k best images, best first; fewer where there are no more.
        total: how many images there are to be found.
        k: hits of a page.
        offset: hits before it.
        fold: show equal files once, and none that is the same file as a picture that was asked for.
    """
    own = {row.index for row in ready.asked.rows()}
    seen = ready.asked.digests() if fold else frozenset[str]()
    wanted = offset + k
    ask_for = wanted + len(own) + SPARE
    while True:
        best = nearest(ask_for)
        places = [place for place in best if place not in own]
        rows = rows_of(store, places)
        kept, copies = _folded(rows, places, seen, fold=fold)
        if len(kept) >= wanted or len(best) < ask_for or ask_for >= total:
            break
        ask_for *= 2
    chosen = kept[max(offset - SPARE, 0) :] if len(kept) > MANY else kept
    skipped = len(kept) - len(chosen)
    # The scan's float32 may swap neighbours: the order is that of float64, over some more than are shown.
    values, shares = _exactly(store, ready, chosen)
    order = sorted(range(len(chosen)), key=lambda at: (-values[at], chosen[at]))[offset - skipped : wanted - skipped]
    return tuple(
        Hit(offset + rank, values[at], rows[chosen[at]], tuple(shares[at]), tuple(copies.get(chosen[at], ())))
        for rank, at in enumerate(order, 1)
    )


def _folded(
    rows: dict[int, Row], places: Sequence[int], seen: frozenset[str], *, fold: bool
) -> tuple[list[int], dict[int, list[str]]]:
    """Places of the first of equal files, and ids of the others beside it; those that were `seen` are left out."""
    kept: list[int] = []
    copies: dict[int, list[str]] = {}
    first: dict[str, int] = {}
    for place in places:
        digest = rows[place].digest if fold else None
        if digest is not None and digest in seen:
            continue
        if digest is not None and digest in first:
            copies.setdefault(first[digest], []).append(rows[place].id)
            continue
        if digest is not None:
            first[digest] = place
        kept.append(place)
    return kept, copies


def _exactly(store: Store, ready: Ready, places: Sequence[int]) -> tuple[list[float], list[list[float]]]:
    if not places:
        return [], []
    vectors = ready.space.rows(store, places)
    shares = ready.space.shares(vectors, ready.direction)
    if ready.cosine:
        shares = shares / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return shares.sum(-1).tolist(), shares.tolist()


def rows_of(store: Store, places: Sequence[int]) -> dict[int, Row]:
    """What is known of some images, looked up one by one: quick in a store of any size.

    Args:
        store: the store.
        places: places on its image axis.
    """
    wanted: Int64[np.ndarray, " some"] = np.unique(np.asarray(places, dtype=np.int64))
    found: dict[int, Row] = {}
    terms: list[str] = []
    values: list[int] = []
    for block in store.blocks:
        here = wanted[(wanted >= block.start) & (wanted < block.start + len(block))] - block.start
        for first in range(0, len(here), AT_ONCE):
            some = here[first : first + AT_ONCE]
            inside = some if block.alive is None else block.alive[some]
            terms.append(f"block = ? AND place IN ({', '.join('?' * len(inside))})")
            values += [block.key, *inside.tolist()]
        if terms and (len(values) > AT_ONCE or block is store.blocks[-1]):
            found |= {row.index: row for row in store.rows(" OR ".join(terms), values)}
            terms, values = [], []
    return found
