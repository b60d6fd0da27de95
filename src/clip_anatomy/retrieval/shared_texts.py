"""Why in words: texts that a result has in common with what was asked for.

For an image x and a text t, ⟨x − x̄, t − t̄⟩ over what was compared, in standard deviations of what the images of the store do. A text
that stands out for both the pictures that were asked for and a result says what they have in common.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.retrieval.prepared_query import placed
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.store.store import Store

__all__ = ["alike", "named", "texts_for"]

LEAST = 1.0  # standard deviations by which a text must stand out for both
NEARLY = 0.85  # texts with this share of the best one's say the same
SAMPLE = 512  # images of the store that say what is usual
OF_A_HEAD = 10
TOLD = 2


def alike(clip: Clip, store: Store, ranking: Ranking, texts: Sequence[str], cache: bool = True) -> Ranking:
    """Say in words what results have in common with the pictures that were asked for.

    Args:
        clip: the store's model.
        store: the store.
        ranking: what a search found for pictures; for texts alone there is nothing to add, and it stays as it is.
        texts: what may be said; see `texts_for`.
        cache: keep text embeddings on the disk.

    Returns:
        The ranking with `sought` and each hit's `alike` filled in; empty where no text stands out for both.
    """
    space, asked = ranking.space, ranking.asked
    if space is None or asked is None or not asked.more or not ranking.hits or len({*texts}) < 2 or len(store) < 3:
        return ranking
    known = list(dict.fromkeys(texts))
    unit = torch.nn.functional.normalize(torch.as_tensor(embed_texts(clip, known, cache=cache)).double().cpu(), dim=-1)
    along = space.place_text(unit - unit.mean(0)).T  # [out, text]
    some = torch.linspace(0, len(store) - 1, min(len(store), SAMPLE)).round().long().unique().tolist()
    usual = space.rows(store, some) @ along
    mean, spread = usual.mean(0), usual.std(0).clamp_min(1e-12)

    def standing(vectors: Float64[Tensor, "image out"]) -> Float64[Tensor, "image text"]:
        return (vectors @ along - mean) / spread

    wanted = standing(placed(space, asked.more)).amin(0)  # for all of the pictures, if there are several
    found = standing(space.rows(store, [hit.row.index for hit in ranking.hits]))
    sought = _first(wanted, known)
    hits = [
        replace(hit, alike=_first(torch.minimum(wanted, one), known, sought))
        for hit, one in zip(ranking.hits, found, strict=True)
    ]
    return replace(ranking, sought=sought, hits=tuple(hits))


def _first(standing: Float64[Tensor, " text"], texts: Sequence[str], rather: Sequence[str] = ()) -> tuple[str, ...]:
    """Texts that stand out most. Of those that say it nearly as well: one that was said already, else the shortest."""
    found: list[str] = []
    left = {at: value for at, value in enumerate(standing.tolist()) if value >= LEAST}
    while left and len(found) < TOLD:
        near = [at for at, value in left.items() if value >= NEARLY * max(left.values())]
        best = min(near, key=lambda at: (texts[at] not in rather, len(texts[at]), at))
        found.append(texts[best])
        left = {at: value for at, value in left.items() if at not in near}
    return tuple(found)


def texts_for(clip: Clip, ranking: Ranking, atlas: Atlas | None) -> tuple[str, ...]:
    """Texts that fit a search: those of its property, else those that the atlas names its heads with, else the model's pool.

    Args:
        clip: the store's model.
        ranking: what was found.
        atlas: names of the heads; None where there is none: then nothing is said beyond a property.
    """
    pool, _ = pool_of(None, clip)
    about = tuple(text for text, name in zip(pool.texts, pool.properties, strict=True) if name == ranking.focus)
    if about:
        return about
    if ranking.focus:
        return tuple(ranking.focus.split(" | "))
    if atlas is None:
        return ()
    if ranking.mode != "heads":
        return tuple(pool.texts)
    chosen = {(one.layer, one.head) for one in ranking.heads}
    named = (text.text for head in atlas.heads if (head.layer, head.head) in chosen for text in head.texts[:OF_A_HEAD])
    return tuple(dict.fromkeys(named))


def named(ranking: Ranking, atlas: Atlas) -> Ranking:
    """The ranking with what an atlas says of each of its heads."""
    known = {(one.layer, one.head): one for one in atlas.heads}

    def meaning(layer: int, head: int) -> str:
        one = known.get((layer, head))
        return "" if one is None else f"{one.role.name}: {one.texts[0].text}" if one.texts else one.role.name

    return replace(ranking, heads=tuple(replace(one, meaning=meaning(one.layer, one.head)) for one in ranking.heads))
