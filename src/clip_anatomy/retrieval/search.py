"""`search`: find the images of a store that share a property with a picture or a text.

query ─▶ Asked (coordinates) ─▶ heads ─▶ Space ─▶ exact scan ─▶ best ─▶ rows, copies folded ─▶ Ranking
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.retrieval.head_choice import HeadSpec
from clip_anatomy.retrieval.hits import hits_of
from clip_anatomy.retrieval.prepared_query import Question, Ready
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.retrieval.scan import best, scores
from clip_anatomy.store.store import Store

__all__ = ["search"]


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
        threads: of the scan; all cores by default; 1 is faster on a busy machine.
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
        >>> from clip_anatomy.store.index import index
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = index(clip, "world:40:test", folder + "/store")
        ...     found = search(folder + "/store", "world-0-test-3", heads="1.0,2.0", k=5)
        >>> len(found), "world-0-test-3" in found.ids
        (5, False)
    """
    opened = _opened(store, clip, k, offset)
    question = Question(query, heads, less, text, mode, focus, measure, centred, less_weight, text_weight)
    ready = question.ready(opened, clip, atlas, allow_urls=allow_urls, report=report)
    allowed = None if where is None else opened.places(where, parameters)
    began = time.perf_counter()
    if approximate is None:
        found = scores(opened, ready.space, ready.direction, cosine=ready.cosine, threads=threads, device=device)
        nearest: Callable[[int], list[int]] = partial(best, found, allowed=allowed)
    else:
        nearest = _approximate(approximate, opened, ready, allowed)
    total = len(opened) if allowed is None else len(allowed)
    hits = hits_of(opened, ready, nearest, total, k=k, offset=offset, fold=fold)
    notes = [*ready.notes]
    if allowed is not None and not total:
        notes.append(f"the filter {where!r} matches none of {len(opened):,} images")
    elif len(hits) < k:
        notes.append(f"{len(hits)} of {k} images were found: there are no more (copies and the query itself left out)")
    return Ranking(
        query=ready.asked.said,
        store=str(opened.path),
        model=opened.manifest.model,
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
        parameters=tuple(parameters.values() if isinstance(parameters, Mapping) else parameters),
        focus=ready.focus,
        choice=heads if isinstance(heads, str) and mode != "whole" else "",
        exact=approximate is None,
        notes=tuple(notes),
        space=ready.space,
        direction=ready.direction,
        asked=ready.asked,
    )


def _opened(store: Store | str | Path, clip: Clip | None, k: int, offset: int) -> Store:
    if k < 1 or offset < 0:
        raise BadInput(f"k {k}, offset {offset}: k is 1 or more, offset 0 or more. Type k=20, offset=0")
    opened = store if isinstance(store, Store) else Store.open(store)
    if clip is not None:
        opened.manifest.refuse_other(clip.name, clip.digest, opened.path)
    if not len(opened):
        raise BadInput(f"{opened.path} holds no images. Type: clip-anatomy index SOURCE {opened.path}")
    return opened


def _approximate(
    folder: str | Path, store: Store, ready: Ready, allowed: Int64[np.ndarray, " some"] | None
) -> Callable[[int], list[int]]:
    from clip_anatomy.retrieval.approximate import open_index

    if allowed is not None:
        raise BadInput("an approximate index cannot filter rows. Leave away where=, or approximate=")
    return open_index(folder, store, ready.space).asking(ready.direction, cosine=ready.cosine)
