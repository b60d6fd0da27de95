"""From the best scores to what is shown: rows of the best images, equal files folded, scores anew in float64."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from clip_anatomy.retrieval.automatic_heads import ChosenHead
from clip_anatomy.retrieval.query import Query
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store

__all__ = ["Hit", "hits_of", "rows_at"]

AT_ONCE = 400  # places in one query of rows
SPARE = 32  # images fetched beyond those that were asked for, in case some are copies


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    Attributes:
        rank: 1 for the best.
        score: inner product or cosine.
        row: what is known of it.
        shares: what each head of the query adds to the score; they add up to it. One number where heads are not compared.
        copies: ids of equal files that were folded into it.
        shared_texts: texts that describe both it and the query, the closest first; see `shared_texts`.
    """

    rank: int
    score: float
    row: ImageRow
    shares: tuple[float, ...]
    copies: tuple[str, ...] = ()
    shared_texts: tuple[str, ...] = ()

    def to_dict(self, heads: Sequence[ChosenHead]) -> dict[str, Any]:
        """Return it as plain values, its shares by the names of the heads."""
        row = asdict(self.row)
        fields = ("id", "path", "label", "group", "captions", "meta", "index", "source")
        has_names = len(heads) == len(self.shares)
        return {
            "rank": self.rank,
            "score": self.score,
            **{name: list(row[name]) if name == "captions" else row[name] for name in fields},
            "heads": dict(zip((one.name for one in heads), self.shares, strict=True)) if has_names else {},
            "shared_texts": list(self.shared_texts),
            "copies": list(self.copies),
        }


def hits_of(store: Store, query: Query, nearest: Callable[[int], list[int]], total: int, k: int) -> tuple[Hit, ...]:
    """Return the k best images: equal files once, none of the images that were asked for, nor their copies.

    Args:
        store: the store.
        query: what is looked for.
        nearest: k → places of the k best images, best first; fewer where there are no more.
        total: how many images there are to be found.
        k: how many hits.
    """
    pictures = (*query.like, *query.unlike)
    own = {one.row.index for one in pictures if one.row is not None}
    digests = frozenset(one.digest for one in pictures if one.digest)
    ask_for = k + len(own) + SPARE
    while True:
        best = nearest(ask_for)
        places = sorted(place for place in best if place not in own)
        rows = rows_at(store, places)
        first, copies = _folded(rows, places, digests)
        if len(first) >= k or len(best) < ask_for or ask_for >= total:
            break
        ask_for *= 2
    # The scan's float32 may swap neighbours: the order is that of float64, over some more than are shown.
    vectors = query.space.rows(store, first)
    shares = query.space.shares(vectors, query.direction)
    if query.measure == "cosine":
        shares = shares / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    values = shares.sum(-1).tolist()
    order = sorted(range(len(first)), key=lambda at: (-values[at], first[at]))[:k]
    return tuple(
        Hit(rank, values[at], rows[first[at]], tuple(shares[at].tolist()), tuple(copies.get(first[at], ())))
        for rank, at in enumerate(order, 1)
    )


def _folded(
    rows: dict[int, ImageRow], places: Sequence[int], digests: frozenset[str]
) -> tuple[list[int], dict[int, list[str]]]:
    """Return places of the first of equal files, and ids of the others beside it; files with these digests are left out."""
    first: list[int] = []
    copies: dict[int, list[str]] = {}
    known: dict[str, int] = {}
    for place in places:
        digest = rows[place].digest
        if digest is None:
            first.append(place)
        elif digest in known:
            copies.setdefault(known[digest], []).append(rows[place].id)
        elif digest not in digests:
            known[digest] = place
            first.append(place)
    return first, copies


def rows_at(store: Store, places: Sequence[int]) -> dict[int, ImageRow]:
    """Look up what is known of some images, one by one: quick in a store of any size.

    Args:
        store: the store.
        places: places on its image axis.
    """
    wanted: Int64[np.ndarray, " some"] = np.unique(np.asarray(places, dtype=np.int64))
    rows: dict[int, ImageRow] = {}
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
            rows |= {row.index: row for row in store.rows(" OR ".join(terms), values)}
            terms, values = [], []
    return rows
