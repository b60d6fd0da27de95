"""`search`: find the images of a store that share a property with a picture or a text.

query ─▶ Asked (coordinates) ─▶ heads ─▶ Space ─▶ exact scan ─▶ best ─▶ rows, copies folded ─▶ Ranking
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from clip_anatomy.anatomy.atlas import Atlas
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.library.rows import Row
from clip_anatomy.library.store import Store
from clip_anatomy.model.clip import Clip
from clip_anatomy.retrieval.asked import Asked, Example, ask
from clip_anatomy.retrieval.choose import HeadSpec, choose, property_in
from clip_anatomy.retrieval.named import atlas_of, directions_of
from clip_anatomy.retrieval.ranking import Hit, Ranking, Used
from clip_anatomy.retrieval.scan import best, scores
from clip_anatomy.retrieval.space import Space, space_of

__all__ = ["Prepared", "prepare", "rows_of", "search"]

MEASURES = ("cosine", "dot")
MANY = 2000  # results that are sorted anew at once
AT_ONCE = 400  # places in one query of rows
SPARE = 32  # images fetched beyond those that were asked for, in case some are copies


@dataclass(frozen=True)
class Prepared:
    """A question that is ready to be put to the numbers.

    Attributes:
        asked: pictures and texts.
        heads: chosen heads with reasons.
        space: vectors to compare.
        direction: what to look for in them.
        cosine: whether lengths are divided out.
        notes: what a reader must know.
        focus: the property or texts along which they are compared; "" for all directions.
    """

    asked: Asked
    heads: tuple[Used, ...]
    space: Space
    direction: Float64[Tensor, " out"]
    cosine: bool
    notes: tuple[str, ...]
    focus: str = ""


def search(
    store: Store | str | Path,
    query: Any = None,
    heads: HeadSpec = "auto",
    k: int = 20,
    *,
    less: Any = None,
    text: str | Sequence[str] = (),
    mode: str = "heads",
    focus: str | Sequence[str] | None = None,
    measure: str | None = None,
    centred: bool | None = None,
    less_weight: float = 0.5,
    text_weight: float = 1.0,
    where: str | None = None,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    offset: int = 0,
    fold: bool = True,
    clip: Clip | None = None,
    atlas: Atlas | str | Path | None = None,
    approximate: str | Path | None = None,
    allow_urls: bool = False,
    threads: int | None = None,
    device: str = "auto",
    report: Callable[[str, int, int], None] | None = None,
) -> Ranking:
    """Find images that are alike in what some heads see.

    Source: Gandelsman, Efros, Steinhardt (ICLR 2024), §5.1 (retrieval by the representations of single heads).

    Args:
        store: a store, or its folder.
        query: a picture, a path, a stored id, a text, or a list of these ("like all of these"). A string is a file if there is
            one, else an id if the store has it, else a text; `image:`, `id:`, `text:` in front say which.
        heads: "auto" (heads in which the pictures agree more than chance; for one picture, in which it is unusual; for a text,
            which vary most along it), "property=colour" (all heads that texts about colour explain to 15 % or more, compared along what
            these texts differ in), "role=colour" (heads whose role it is), "words=texture of fabric", "9.3,10.1", (layer, head) pairs, "all", or a
            bare word: a property, else words.
        k: how many images.
        less: pictures, ids or texts that the results should be unlike.
        text: texts that the results should match as well.
        mode: "heads" compares the chosen heads; "whole" the whole embedding; "without" the embedding with the chosen heads set
            to their mean: takes a property out of the search.
        focus: a property ("colour"), or texts that differ in it: only directions in which these texts differ are compared.
        measure: "cosine" or "dot"; by default cosine for pictures, dot for texts alone (then a score is a part of the cosine
            between image and text).
        centred: take the stored means away before comparing; by default in mode "heads" only.
        less_weight: how much pictures to be unlike count.
        text_weight: how much texts count beside pictures.
        where: an SQL condition on the rows, as for `Store.rows`; it can read rows and nothing else.
        parameters: values of its `?` or `:name`.
        offset: leave out this many of the best (paging).
        fold: show equal files once.
        clip: the store's model, if it is open; otherwise it is loaded when it is needed (not for stored ids and numbered heads).
        atlas: names of the heads; by default those kept in the store, made there on first use.
        approximate: folder of an index that `build_index` made; for stores of more than ten million images.
        allow_urls: fetch http(s) addresses.
        threads: of the scan; all cores by default.
        device: of the scan: "auto" takes a GPU if there is one.
        report: called with what is being done, how much is done and how much there is, where that takes time.

    Returns:
        Ranking: best first; of equal scores the earlier image. A stored image that was asked for is not among its own results.

    Raises:
        StoreError: no store, or one of another model.
        BadInput: an empty store, nothing asked, a filter that is not SQL, numbers that make no sense.
        BadSpec: heads that are not stored, roles that no head has, unknown modes.
        BadImage: a picture that cannot be read.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.library.index import index
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = index(clip, "world:40:test", folder + "/store")
        ...     found = search(folder + "/store", "world-0-test-3", heads="1.0,2.0", k=5)
        >>> len(found), "world-0-test-3" in found.ids
        (5, False)
    """
    opened = _opened(store, clip, k, offset)
    ready = prepare(
        opened,
        query,
        heads,
        less=less,
        text=text,
        mode=mode,
        focus=focus,
        measure=measure,
        centred=centred,
        less_weight=less_weight,
        text_weight=text_weight,
        clip=clip,
        atlas=atlas,
        allow_urls=allow_urls,
        report=report,
    )
    allowed = None if where is None else np.array([row.index for row in opened.rows(where, parameters)], dtype=np.int64)
    began = time.perf_counter()
    if approximate is None:
        found = scores(opened, ready.space, ready.direction, cosine=ready.cosine, threads=threads, device=device)
        nearest: Callable[[int], list[int]] = partial(_best_of, found, allowed)
    else:
        from clip_anatomy.retrieval.approximate import open_index

        if allowed is not None:
            raise BadInput("an approximate index cannot filter rows. Leave away where=, or approximate=")
        nearest = open_index(approximate, opened, ready.space).asking(ready.direction, cosine=ready.cosine)
    total = len(opened) if allowed is None else len(allowed)
    hits = _hits(opened, ready, nearest, total, k=k, offset=offset, fold=fold)
    notes = [*ready.notes]
    if allowed is not None and not total:
        notes.append(f"the filter {where!r} matches none of {len(opened):,} images")
    elif len(hits) < k:
        notes.append(f"{len(hits)} of {k} images were found: there are no more (copies and the query itself left out)")
    return Ranking(
        query=ready.asked.said,
        store=str(opened.path),
        model=opened.about.model,
        mode=mode,
        measure="cosine" if ready.cosine else "dot",
        centred=ready.space.centred,
        heads=ready.heads,
        hits=hits,
        images=len(opened),
        matched=total,
        offset=offset,
        seconds=time.perf_counter() - began,
        where=where or "",
        focus=ready.focus,
        exact=approximate is None,
        notes=tuple(notes),
        space=ready.space,
        direction=ready.direction,
        asked=ready.asked,
    )


def _best_of(found: Tensor, allowed: np.ndarray | None, count: int) -> list[int]:
    return best(found, count, allowed)


def _opened(store: Store | str | Path, clip: Clip | None, k: int, offset: int) -> Store:
    if k < 1 or offset < 0:
        raise BadInput(f"k {k}, offset {offset}: k is 1 or more, offset 0 or more. Type k=20, offset=0")
    opened = store if isinstance(store, Store) else Store.open(store)
    if clip is not None:
        opened.about.refuse_other(clip.name, clip.digest, opened.path)
    if not len(opened):
        raise BadInput(f"{opened.path} holds no images. Type: clip-anatomy index SOURCE {opened.path}")
    return opened


def prepare(
    store: Store,
    query: Any,
    heads: HeadSpec = "auto",
    *,
    less: Any = None,
    text: str | Sequence[str] = (),
    mode: str = "heads",
    focus: str | Sequence[str] | None = None,
    measure: str | None = None,
    centred: bool | None = None,
    less_weight: float = 0.5,
    text_weight: float = 1.0,
    clip: Clip | None = None,
    atlas: Atlas | str | Path | None = None,
    allow_urls: bool = False,
    report: Callable[[str, int, int], None] | None = None,
) -> Prepared:
    """Do everything before the scan; see `search`."""
    if measure is not None and measure not in MEASURES:
        raise BadSpec(f"measure {measure!r} is not known. Type one of: {', '.join(MEASURES)}")

    @cache
    def model() -> Clip:
        if clip is not None:
            return clip
        from clip_anatomy.model.load import load

        found = load(store.about.model)
        store.about.refuse_other(found.name, found.digest, store.path)
        return found

    @cache
    def named() -> Atlas:
        return atlas_of(store, model, atlas, report)

    asked = ask(store, query, less, [text] if isinstance(text, str) else text, model, allow_urls=allow_urls)
    used: tuple[Used, ...] = ()
    notes: tuple[str, ...] = ()
    if mode != "whole":
        used, notes = choose(
            store,
            heads,
            atlas=named,
            more=asked.heads(asked.more, store),
            less=asked.heads(asked.less, store),
            text=None if asked.texts is None else asked.texts[: max(len(asked.words), 1)],
            embed=lambda words: model().encode_text([words]).cpu(),
        )
    along = None if focus is None else directions_of(model(), focus)
    if focus is None and mode == "heads" and isinstance(heads, str) and heads.strip() not in ("auto", "all"):
        focus, along = _property(heads, named, model)
    pairs = [(one.layer, one.head) for one in used]
    space = space_of(store, mode, pairs, centred=mode == "heads" if centred is None else centred, focus=along)
    cosine = bool(asked.more or asked.less) if measure is None else measure == "cosine"
    direction = _direction(asked, space, cosine=cosine, less_weight=less_weight, text_weight=text_weight)
    said = "" if focus is None else focus if isinstance(focus, str) else " | ".join(focus)
    return Prepared(asked, used, space, direction, cosine, notes, said)


def _property(
    heads: str, atlas: Callable[[], Atlas], model: Callable[[], Clip]
) -> tuple[str | None, Float64[Tensor, "out embed"] | None]:
    """The property that heads were chosen by, and the directions in which its texts differ: heads of a property see more than it."""
    if ("=" in heads and not heads.strip().startswith("property=")) or heads.strip()[:1].isdigit():
        return None, None
    name = property_in(heads, atlas())
    try:
        return (None, None) if name is None else (name, directions_of(model(), name))
    except BadSpec:  # named by an atlas over other texts: the heads alone
        return None, None


def _direction(
    asked: Asked, space: Space, *, cosine: bool, less_weight: float, text_weight: float
) -> Float64[Tensor, " out"]:
    """mean of more − weight · mean of less + weight · texts, each of unit length where cosines are asked for."""

    def mean(vectors: Tensor) -> Tensor:
        return (torch.nn.functional.normalize(vectors, dim=-1) if cosine else vectors).mean(0)

    def placed(examples: Sequence[Example]) -> Tensor:
        return space.place(
            torch.stack([one.heads for one in examples]), torch.stack([one.embedding for one in examples])
        )

    total = torch.zeros(space.size, dtype=torch.float64)
    if asked.more:
        total = total + mean(placed(asked.more))
    if asked.less:
        total = total - less_weight * mean(placed(asked.less))
    if asked.texts is not None:
        texts = space.place_text(asked.texts)
        count = len(asked.words)
        if count:
            total = total + text_weight * mean(texts[:count])
        if asked.unwanted:
            total = total - less_weight * mean(texts[count:])
    length = float(total.norm())
    if length < 1e-12:
        raise BadInput("what was asked cancels out: the same picture to be like and unlike? Give different ones")
    return total / length if cosine else total


def _hits(
    store: Store,
    ready: Prepared,
    nearest: Callable[[int], list[int]],
    total: int,
    *,
    k: int,
    offset: int,
    fold: bool,
) -> tuple[Hit, ...]:
    """Rows of the best images, copies folded, scores anew in float64."""
    own = {row.index for row in ready.asked.rows()}
    seen = {row.digest for row in ready.asked.rows() if row.digest} if fold else set[str]()
    wanted = offset + k
    ask_for = wanted + len(own) + SPARE
    while True:
        places = [place for place in nearest(ask_for) if place not in own]
        rows = rows_of(store, places)
        kept: list[int] = []
        copies: dict[str, tuple[int, list[str]]] = {}
        for place in places:
            digest = rows[place].digest if fold else None
            if digest is not None and digest in seen:
                continue  # the same file as the query
            if digest is not None and digest in copies:
                copies[digest][1].append(rows[place].id)
                continue
            if digest is not None:
                copies[digest] = place, []
            kept.append(place)
        if len(kept) >= wanted or ask_for >= total:
            break
        ask_for *= 2
    folded = {place: tuple(ids) for place, ids in copies.values()}
    chosen = kept[max(offset - SPARE, 0) :] if len(kept) > MANY else kept
    skipped = len(kept) - len(chosen)
    # The scan's float32 may swap neighbours: the order is that of float64, over some more than are shown.
    values, shares = _exactly(store, ready, chosen)
    order = sorted(range(len(chosen)), key=lambda at: (-values[at], chosen[at]))[offset - skipped : wanted - skipped]
    return tuple(
        Hit(offset + rank, values[at], rows[chosen[at]], tuple(shares[at]), folded.get(chosen[at], ()))
        for rank, at in enumerate(order, 1)
    )


def _exactly(store: Store, ready: Prepared, places: Sequence[int]) -> tuple[list[float], list[list[float]]]:
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
