"""Why in words: texts that describe both what was asked for and a result.

For an image x and a text t, ⟨x − x̄, t − t̄⟩ over what was compared, in standard deviations of what the images of the store do. A text
that stands out for both the pictures of the query and a result says what they have in common.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.progress import Progress
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.retrieval.store_atlas import atlas_of, kept_atlas

__all__ = ["candidate_texts", "explain_in_words", "with_meanings", "with_shared_texts"]

LEAST_SIGMA = 1.0  # by which a text must stand out for both
NEARLY = 0.85  # texts with this share of the best one's say the same
SAMPLE = 512  # images of the store that say what is usual
TEXTS_PER_HEAD = 10
MAX_TEXTS = 2


def explain_in_words(
    ranking: Ranking, clip: Clip, atlas: Atlas | str | Path | None = None, progress: Progress | None = None
) -> Ranking:
    """Say what the heads of a ranking are about, and what its results share with the query, as far as the heads have names.

    A search by numbers does not wait for an atlas; one whose heads were chosen automatically would say nothing without it.

    Args:
        ranking: what was found.
        clip: the store's model.
        atlas: names of the heads; by default those kept in the store.
        progress: called as an atlas is made.
    """
    store = ranking.store
    reads = clip.text_tower.architecture != "absent"  # an image model alone has no words
    needed = atlas is not None or (reads and ranking.query.choice == "auto")
    named_heads = atlas_of(store, lambda: clip, atlas, progress) if needed else kept_atlas(store)
    ranking = ranking if named_heads is None else with_meanings(ranking, named_heads)
    return with_shared_texts(ranking, clip, candidate_texts(ranking, clip, named_heads)) if reads else ranking


def with_shared_texts(ranking: Ranking, clip: Clip, texts: Sequence[str], cache: bool = True) -> Ranking:
    """Add the texts that results share with the pictures of the query.

    Args:
        ranking: what a search found for pictures; for texts alone there is nothing to add, and it stays as it is.
        clip: the store's model.
        texts: what may be said; see `candidate_texts`.
        cache: keep text embeddings on the disk.

    Returns:
        The ranking with `shared_texts` of its own and of each hit; empty where no text stands out for both.
    """
    query, store = ranking.query, ranking.store
    space = query.space
    if not query.like or not ranking.hits or len({*texts}) < 2 or len(store) < 3:
        return ranking
    known = list(dict.fromkeys(texts))
    unit = torch.nn.functional.normalize(torch.as_tensor(embed_texts(clip, known, cache=cache)).double().cpu(), dim=-1)
    along = space.place_text(unit - unit.mean(0)).T  # [out, text]
    some = torch.linspace(0, len(store) - 1, min(len(store), SAMPLE)).round().long().unique().tolist()
    usual = space.rows(store, some) @ along
    mean, deviation = usual.mean(0), usual.std(0).clamp_min(1e-12)

    def sigmas(vectors: Float64[Tensor, "image out"]) -> Float64[Tensor, "image text"]:
        return (vectors @ along - mean) / deviation

    wanted = sigmas(query.vectors(query.like)).amin(0)  # for all of the pictures, if there are several
    deviations = sigmas(space.rows(store, [hit.row.index for hit in ranking.hits]))
    shared = _first(wanted, known)
    hits = [
        replace(hit, shared_texts=_first(torch.minimum(wanted, one), known, shared))
        for hit, one in zip(ranking.hits, deviations, strict=True)
    ]
    return replace(ranking, shared_texts=shared, hits=tuple(hits))


def _first(sigmas: Float64[Tensor, " text"], texts: Sequence[str], preferred: Sequence[str] = ()) -> tuple[str, ...]:
    """Return texts that stand out most. Of those that say it nearly as well: one that is preferred, else the shortest."""
    picked: list[str] = []
    left = {at: value for at, value in enumerate(sigmas.tolist()) if value >= LEAST_SIGMA}
    while left and len(picked) < MAX_TEXTS:
        near = [at for at, value in left.items() if value >= NEARLY * max(left.values())]
        best = min(near, key=lambda at: (texts[at] not in preferred, len(texts[at]), at))
        picked.append(texts[best])
        left = {at: value for at, value in left.items() if at not in near}
    return tuple(picked)


def candidate_texts(ranking: Ranking, clip: Clip, atlas: Atlas | None) -> tuple[str, ...]:
    """Return the texts that fit a search: of its property, else those that the atlas names its heads with, else the model's pool.

    Args:
        ranking: what was found.
        clip: the store's model.
        atlas: names of the heads; None where there is none: then nothing is said beyond a property.
    """
    pool, _ = pool_of(None, clip)
    focus = ranking.query.focus
    about = tuple(text for text, name in zip(pool.texts, pool.properties, strict=True) if name == focus)
    if about:
        return about
    if focus:
        return tuple(focus.split(" | "))
    if atlas is None:
        return ()
    if ranking.query.mode != "heads":
        return tuple(pool.texts)
    chosen = {(one.layer, one.head) for one in ranking.heads}
    texts = (
        text.text for head in atlas.heads if (head.layer, head.head) in chosen for text in head.texts[:TEXTS_PER_HEAD]
    )
    return tuple(dict.fromkeys(texts))


def with_meanings(ranking: Ranking, atlas: Atlas) -> Ranking:
    """Add what an atlas says of each of the heads."""
    known = {(one.layer, one.head): one for one in atlas.heads}

    def meaning(layer: int, head: int) -> str:
        one = known.get((layer, head))
        return "" if one is None else f"{one.role.name}: {one.leading.text}" if one.leading else one.role.name

    heads = tuple(replace(one, meaning=meaning(one.layer, one.head)) for one in ranking.heads)
    return replace(ranking, query=replace(ranking.query, heads=heads))
