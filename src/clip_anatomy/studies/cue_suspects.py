"""Every head and MLP as a suspect: how much it carries a cue and not the class, by its name, by variance and by group accuracy.

Rankings see the validation images only, and so do the names of the heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.atlas import Atlas, AtlasHead
from clip_anatomy.naming.atlas_heads import HeadMeasurements, atlas_heads
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.grammar import BOTH, tag
from clip_anatomy.naming.roles import roles
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.naming.top_images import TopImages
from clip_anatomy.progress import Progress, silent
from clip_anatomy.retrieval.head_choice import word_share
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.studies.cue_scores import Score, text_variance
from clip_anatomy.studies.repair_ablations import HeadOrMlp, contributions, texts_in
from clip_anatomy.studies.repair_task import RepairTask

__all__ = [
    "RANKINGS",
    "RankedBy",
    "Suspect",
    "atlas_of_rows",
    "moments_of_rows",
    "properties_of",
    "ranked",
    "suspects_of",
]

TEXTS = 10  # of each head
RankedBy = Literal["group accuracy", "variance", "name"]
RANKINGS: tuple[RankedBy, ...] = ("group accuracy", "variance", "name")


@dataclass(frozen=True)
class Suspect:
    """One part, as each ranking sees it. Figures are of the validation split.

    Attributes:
        part: the head or MLP.
        role: what the head is about, "" for an MLP.
        confidence: of the role, 0–1.
        texts: its first texts.
        name: −1 … 1: how much its name speaks of the cue and not of the classes; None for an MLP, or without a cue in words.
        cue_variance: along the cue's texts, in squared parts of a cosine; None without a cue in words.
        class_variance: along the class texts.
        ablated_alone: accuracies when it alone is ablated.
    """

    part: HeadOrMlp
    role: str
    confidence: float
    texts: tuple[str, ...]
    name: float | None
    cue_variance: float | None
    class_variance: float
    ablated_alone: Score

    @property
    def variance(self) -> float | None:
        """Variance along the cue's texts minus that along the class texts."""
        return None if self.cue_variance is None else self.cue_variance - self.class_variance


def suspects_of(
    store: Store,
    task: RepairTask,
    rows: np.ndarray,
    scored: Sequence[tuple[HeadOrMlp, Score]],
    *,
    atlas: Atlas,
    clip: Clip,
    progress: Progress | None = None,
) -> tuple[Suspect, ...]:
    """Look at every part by its name and by its variance.

    Args:
        store: the store.
        task: what is asked.
        rows: the validation images.
        scored: the parts, with the accuracies when each alone is ablated.
        atlas: names of the heads.
        clip: the store's model.
        progress: told as it goes.
    """
    tell = progress or silent
    head_of = {(one.layer, one.head): one for one in atlas.heads}
    of_cue, of_class = properties_of(clip, task.cue), properties_of(clip, task.main.classes)
    suspects: list[Suspect] = []
    for at, (part, alone) in enumerate(scored):
        x, frame = contributions(store, part, rows)
        along_cue = text_variance(x, texts_in(frame, task.cue_texts)) if len(task.cue) > 1 else None
        along_classes = text_variance(x, texts_in(frame, task.main.texts))
        if head := head_of.get((part.layer, part.head)):
            name = _named_after(head, of_cue, of_class, task) if task.cue else None
            texts = tuple(text.text for text in head.texts[:3])
            role = (head.role.name, head.role.confidence)
            suspects.append(Suspect(part, *role, texts, name, along_cue, along_classes, alone))
        else:
            suspects.append(Suspect(part, "", 0.0, (), None, along_cue, along_classes, alone))
        tell("looking for the cue", at + 1, len(scored))
    return tuple(suspects)


def ranked(suspects: Sequence[Suspect], by: RankedBy, before: Score) -> list[HeadOrMlp]:
    """Rank the parts that speak of the cue, the most suspected first.

    Args:
        suspects: all parts.
        by: the ranking.
        before: accuracies with nothing ablated.
    """
    values = {
        one.part: {
            "name": one.name,
            "variance": one.variance,
            "group accuracy": one.ablated_alone.objective - before.objective,
        }[by]
        for one in suspects
    }
    speaking = [part for part, value in values.items() if value is not None and value > 0]
    return sorted(speaking, key=lambda part: (-(values[part] or 0.0), part))


# ---- names of the heads


def moments_of_rows(store: Store, rows: np.ndarray) -> Moments:
    """Sum up the moments of all stored heads over some images; other images are dropped before any sum."""
    wanted = torch.zeros(len(store), dtype=torch.bool)
    wanted[torch.from_numpy(rows)] = True
    manifest = store.manifest
    pieces = (
        Moments.of(
            heads[wanted[start : start + len(heads)]].double(),
            basis=store.basis, layers=manifest.layers, convention=manifest.convention, model=manifest.digest,
        )
        for start, heads in store.batches()
        if bool(wanted[start : start + len(heads)].any())
    )  # fmt: skip
    return Moments.merged(pieces)


def atlas_of_rows(store: Store, clip: Clip, rows: np.ndarray, progress: Progress | None = None) -> Atlas:
    """Make a quick atlas of a store from some of its images: roles and first texts, no evidence.

    Args:
        store: the store.
        clip: its model.
        rows: the images that may be looked at.
        progress: told as it goes.
    """
    tell = progress or silent
    pool, _ = pool_of(None, clip)
    moments = moments_of_rows(store, rows)
    texts = embed_texts(clip, pool.texts, progress=tell)
    texts = torch.nn.functional.normalize(texts, dim=-1)
    span = textspan(moments, texts, TEXTS, progress=tell)
    head_roles = roles(span, moments, texts, pool.properties)
    places, values = torch.zeros(*span.rank.shape, 0, 0, dtype=torch.int64), torch.zeros(*span.rank.shape, 0, 0)
    none = TopImages(places, values, places, values)
    measured = HeadMeasurements(span, moments, pool, head_roles, None, none, {}, None)
    manifest = store.manifest
    return Atlas(
        manifest.model, manifest.digest, str(store.path), len(rows), manifest.layers, manifest.heads, pool.source, len(pool),
        span.top_k, span.threshold, atlas_heads(measured, images=0),
    )  # fmt: skip


def properties_of(clip: Clip, texts: Sequence[str]) -> tuple[str, ...]:
    """Say what some texts are about, by the vocabulary of the model's pool; each property once.

    Example:
        >>> import clip_anatomy as ca
        >>> properties_of(ca.load("demo"), ["sky", "in the water"])
        ('background',)
    """
    if not texts:
        return ()
    _, grammar = pool_of(None, clip)
    tagged = tag(texts, [""] * len(texts), grammar)
    return tuple(dict.fromkeys(name for one in tagged for name in one.split(BOTH) if name))


def _named_after(head: AtlasHead, of_cue: tuple[str, ...], of_class: tuple[str, ...], task: RepairTask) -> float:
    """Tell how much a head's name speaks of the cue and not of the classes: −1 … 1 by roles, else by the words of its texts."""
    shares = dict(head.role.shares)
    if of_cue and shares:
        other = set(of_class) - set(of_cue)
        return sum(shares.get(name, 0.0) for name in of_cue) - sum(shares.get(name, 0.0) for name in other)
    held = max((word_share(head, text) for text in task.cue), default=0.0)
    return held - max((word_share(head, text) for text in task.main.classes), default=0.0)
