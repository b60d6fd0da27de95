"""`search`: find the images of a store that share a property with a picture or a text.

pictures, texts ─▶ Query (heads, vectors, direction) ─▶ exact scan ─▶ best ─▶ rows, copies folded ─▶ Ranking
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from clip_anatomy.engine.engine import Engine
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public
from clip_anatomy.retrieval.approximate import approximate_index
from clip_anatomy.retrieval.head_choice import HeadSpec
from clip_anatomy.retrieval.hits import Hit, hits_of
from clip_anatomy.retrieval.query import prepare_query
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.retrieval.scan import best, scores
from clip_anatomy.retrieval.shared_texts import explain_in_words
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of

__all__ = ["search"]

DEMO = (
    "the bundled demo model knows only a small drawn world, and sees little in photographs. Index them with a model that is in use: "
    "clip-anatomy index PHOTOS STORE --model open_clip:ViT-B-16/laion2b_s34b_b88k"
)


@public
def search(
    store: Store | str | Path,
    query: Any = None,
    heads: HeadSpec | None = None,
    k: int = 20,
    *,
    negative: Any = None,
    mode: str = "heads",
    focus: str | Sequence[str] | None = None,
    measure: str | None = None,
    where: str | None = None,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    atlas: Atlas | str | Path | None = None,
    approximate: bool = False,
    allow_urls: bool = False,
    clip: Clip | None = None,
    device: str = "auto",
    engine: Engine | str = "local",
    progress: Progress | None = None,
) -> Ranking:
    """Find images that are alike in what some heads see.

    Source: Gandelsman, Efros, Steinhardt (ICLR 2024), §5.1 (retrieval by the representations of single heads).

    Args:
        store: a store, or its folder.
        query: a picture, a path, a stored id, a text, or a list of these ("like all of these"). A string is a file if there is
            one, else an id if the store has it, else a text; `image:`, `id:`, `text:` in front say which.
        heads: "auto", the default (heads in which the pictures agree more than chance; for one picture, in which it is unusual; for a text,
            which vary most along it), "property=colour" (all heads that texts about colour explain to 15 % or more, compared along what
            these texts differ in), "role=colour" (heads whose role it is), "words=texture of fabric", "9.3,10.1", (layer, head) pairs, "all", or a
            bare word: a property, else words.
        k: how many images.
        negative: pictures, ids or texts that the results should be unlike; their mean counts half.
        mode: "heads" compares the chosen heads; "whole" the whole embedding; "without" the embedding with the chosen heads set
            to their mean: takes a property out of the search.
        focus: a property ("colour"), or texts that differ in it ("wood|metal", or a list): only directions in which these texts
            differ are compared.
        measure: "cosine" or "dot"; by default cosine for pictures, dot for texts alone (then a score is a part of the cosine
            between image and text: direct logit attribution).
        where: an SQL condition on the rows, as for `Store.rows`; it can read rows and nothing else.
        parameters: values of its `?` or `:name`.
        atlas: names of the heads; by default those kept in the store, made there on first use.
        approximate: ask an approximate index of these heads, kept in the store and built there on first use; for stores of more
            than ten million images.
        allow_urls: fetch http(s) addresses.
        clip: the store's model, if it is open; otherwise it is loaded when it is needed (not for stored ids and numbered heads).
        device: of the model and the scan: "auto" takes a GPU if there is one.
        engine: "local", "ray", or an opened one (`open_engine`), whose workers scan the store's blocks; of a sharded store each brings its own.
        progress: called with what is being done, how much is done and how much there is, where that takes time.

    Returns:
        Ranking: best first; of equal scores the earlier image; equal files once. What was asked for is not among its own results.
        Where the model is open, results say in words what they share with the pictures that were asked for.

    Raises:
        StoreError: no store, or one of another model.
        BadInput: an empty store, nothing asked, a filter that is not SQL, numbers that make no sense.
        BadSpec: heads that are not stored, roles that no head has, unknown modes.
        BadImage: a picture that cannot be read.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:40:test", folder + "/store")
        ...     result = search(folder + "/store", "world-0-test-3", heads="1.0,2.0", k=5)
        >>> len(result), "world-0-test-3" in result.ids
        (5, False)
    """
    opened = _checked(store, clip, k)
    if opened.manifest.one_part and mode == "heads" and heads is None:
        mode = "whole"
    model = cache(lambda: clip if clip is not None else model_of(opened, device=device))
    prepared = prepare_query(
        opened, query, model, heads="auto" if heads is None else heads, negative=negative, mode=mode, focus=focus, measure=measure, atlas=atlas,
        allow_urls=allow_urls, progress=progress,
    )  # fmt: skip
    cosine = prepared.measure == "cosine"
    allowed = None if where is None else opened.places(where, parameters)
    total = len(opened) if allowed is None else len(allowed)
    notes = [*prepared.notes]
    began = time.perf_counter()
    if not approximate:
        all_scores = scores(opened, prepared.space, prepared.direction, cosine=cosine, device=device, engine=engine)
        nearest = partial(best, all_scores, allowed=allowed)
    elif allowed is not None or prepared.choice == "auto":
        raise BadInput(
            "an approximate index serves fixed heads and cannot filter rows. Type heads='9.3,10.1', without where="
        )
    else:
        index = approximate_index(opened, prepared.space, cosine=cosine, progress=progress)
        notes.append(index.record.summary)
        began = time.perf_counter()
        nearest = partial(index.nearest, prepared.direction)
    hits = hits_of(opened, prepared, nearest, total, k)
    seconds = time.perf_counter() - began
    notes += _notes_on(hits, opened, k, where if not total else None)
    ranking = Ranking(
        query=prepared,
        store=opened,
        hits=hits,
        matched=total,
        seconds=seconds,
        where=where or "",
        parameters=tuple(parameters.values() if isinstance(parameters, Mapping) else parameters),
        exact=not approximate,
        notes=tuple(notes),
    )
    if clip is None and not model.cache_info().currsize:
        return ranking  # nothing needed the model: words alone are no reason to load it
    return explain_in_words(replace(ranking, clip=model()), model(), atlas, progress)


def _notes_on(hits: Sequence[Hit], store: Store, k: int, empty: str | None) -> list[str]:
    """Say what a reader must know of the results; `empty` is a filter that matched nothing."""
    notes: list[str] = []
    if empty is not None:
        notes.append(f"the filter {empty!r} matches none of {len(store):,} images")
    elif len(hits) < k:
        notes.append(f"{len(hits)} of {k} images were found: there are no more (copies and the query itself left out)")
    if store.manifest.model == "demo" and any(not hit.row.source.startswith("world:") for hit in hits):
        notes.append(DEMO)
    return notes


def _checked(store: Store | str | Path, clip: Clip | None, k: int) -> Store:
    if k < 1:
        raise BadInput(f"k {k}: 1 or more was expected. Type k=20")
    opened = store if isinstance(store, Store) else Store.open(store)
    if clip is not None:
        opened.manifest.refuse_other(clip.name, clip.digest, opened.path)
    if not len(opened):
        raise BadInput(f"{opened.path} holds no images. Type: clip-anatomy index SOURCE {opened.path}")
    return opened
