"""Names of a store's heads from some of its images only: what a choice on a validation split may know of them."""

from collections.abc import Sequence

import numpy as np
import torch

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.atlas import Atlas, AtlasHead, AtlasText
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.grammar import BOTH, tag
from clip_anatomy.naming.roles import roles
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.progress import Progress
from clip_anatomy.retrieval.head_choice import word_share
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store

__all__ = ["moments_of", "name_heads_of", "named_after", "properties_of"]

TEXTS = 10


def moments_of(store: Store, rows: np.ndarray) -> Moments:
    """Moments of all kept heads over some images; other images are dropped before any sum."""
    wanted = np.zeros(len(store), dtype=bool)
    wanted[rows] = True
    manifest = store.manifest
    pieces = (
        Moments.of(
            heads[torch.from_numpy(wanted[start : start + len(heads)])].double(),
            basis=store.basis, layers=manifest.layers, convention=manifest.convention, model=manifest.digest,
        )
        for start, heads in store.batches()
        if wanted[start : start + len(heads)].any()
    )  # fmt: skip
    return Moments.merged(pieces)


def name_heads_of(
    store: Store,
    clip: Clip,
    rows: np.ndarray,
    pool: str | None = None,
    report: Progress = lambda what, done, total: None,
) -> Atlas:
    """A quick atlas of a store from some of its images: roles and first texts, no evidence.

    Args:
        store: the store.
        clip: its model.
        rows: the images that may be looked at.
        pool: as in `atlas`.
        report: called as work goes on.
    """
    texts, _ = pool_of(pool, clip)
    moments = moments_of(store, rows)
    embeddings = embed_texts(clip, texts.texts, progress=lambda done, total: report("embedding texts", done, total))
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    span = textspan(moments, embeddings, TEXTS, progress=report)
    named = roles(span, moments, embeddings, texts.properties)
    variance = moments.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    heads: list[AtlasHead] = []
    for layer, head in span.heads():
        row = span.layers.index(layer)
        last = min(span.top_k, span.texts_per_head) - 1
        picks = [
            AtlasText(pick.text, texts.properties[int(span.indices[row, head, at])], pick.explained_alone,
                      pick.cumulative - (float(span.cumulative[row, head, at - 1]) if at else 0.0), pick.cumulative,
                      pick.runner_up, pick.margin)
            for at, pick in enumerate(span.picks(layer, head, texts.texts))
        ]  # fmt: skip
        heads.append(
            AtlasHead(
                layer, head, named[layer, head], float(variance[row, head]), int(span.rank[row, head]),
                float(span.cumulative[row, head, last]), float(span.pca_explained[row, head, last]), tuple(picks),
            )
        )  # fmt: skip
    manifest = store.manifest
    return Atlas(
        manifest.model, manifest.digest, str(store.path), len(rows), manifest.layers, manifest.heads, texts.source, len(texts),
        span.top_k, span.threshold, tuple(heads),
    )  # fmt: skip


def properties_of(clip: Clip, texts: Sequence[str]) -> tuple[str, ...]:
    """What some texts are about, by the vocabulary of the model's pool; each property once.

    Example:
        >>> import clip_anatomy as ca
        >>> properties_of(ca.load("demo"), ["sky", "in the water"])
        ('background',)
    """
    if not texts:
        return ()
    _, grammar = pool_of(None, clip)
    told = tag(texts, [""] * len(texts), grammar)
    return tuple(dict.fromkeys(name for one in told for name in one.split(BOTH) if name))


def named_after(
    head: AtlasHead, cue: tuple[str, ...], classes: tuple[str, ...], words: Sequence[str], spared: Sequence[str]
) -> float:
    """How much a head's name speaks of the cue and not of the classes: −1 … 1 by roles, else by the words of its texts.

    Args:
        head: a head of an atlas.
        cue: properties of the cue, () where they are not known.
        classes: properties of the classes.
        words: texts of the cue.
        spared: names of the classes.
    """
    shares = dict(head.role.shares)
    if cue and shares:
        other = set(classes) - set(cue)
        return sum(shares.get(name, 0.0) for name in cue) - sum(shares.get(name, 0.0) for name in other)
    held = max((word_share(head, text) for text in words), default=0.0)
    return held - max((word_share(head, text) for text in spared), default=0.0)
