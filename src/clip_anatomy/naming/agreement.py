"""Whether what is said of a head agrees: its role, its first text, the pictures that it writes most for, and the truth."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clip_anatomy.naming.atlas import AtlasHead
from clip_anatomy.store.store import Store

__all__ = ["disagreements", "picture_scores"]

LEAST_SIGMA = 0.5  # by which the pictures of a text must stand above all others, as the whole model sees them
SAMPLE = 2000  # images that say what is usual
BAR = 0.5  # of the variance: an attribute that explains so much drives a head


def picture_scores(
    store: Store, rows: Mapping[str, Sequence[int]], embeddings: Mapping[str, Tensor]
) -> dict[str, float]:
    """Measure how far the pictures of each text stand above all others by the whole embedding's cosine with it.

    Args:
        store: the images.
        rows: text → places of its pictures in the store.
        embeddings: text → its unit embedding.

    Returns:
        Text → mean of its pictures' cosines, in standard deviations above the store's mean.
    """
    texts = [text for text, places in rows.items() if places]
    if not texts:
        return {}
    usual = np.unique(np.linspace(0, len(store) - 1, min(len(store), SAMPLE)).round().astype(int))
    unit = torch.stack([embeddings[text].float().cpu() for text in texts]).T
    cosines = store.embeddings(usual, unit=True).float() @ unit
    mean, deviation = cosines.mean(0), cosines.std(0).clamp_min(1e-12)
    scores: dict[str, float] = {}
    for k, text in enumerate(texts):
        own = store.embeddings(np.array(sorted(rows[text])), unit=True).float() @ unit[:, k]
        scores[text] = float((own.mean() - mean[k]) / deviation[k])
    return scores


def disagreements(head: AtlasHead, pictures: Mapping[str, float]) -> tuple[str, ...]:
    """Say where role, texts, pictures and truth of a head do not agree, a sentence each.

    Args:
        head: the head.
        pictures: from `picture_scores`.
    """
    doubts: list[str] = []
    role, texts = head.role, head.texts
    if role.by_picks and role.by_text_variance and role.by_picks != role.by_text_variance:
        doubts.append(
            f"its picked texts are about {role.by_picks}, the texts that it tells apart best about {role.by_text_variance}"
        )
    if role.named and head.by_concept not in ("", role.name):
        one, own = head.concepts[0], [each for each in head.concepts if each.concept == role.name]
        other = (
            f", those about {role.name} {own[0].share:.0%} ({own[0].others:.0%})"
            if own and own[0].others is not None
            else ""
        )
        doubts.append(
            f"words about {one.concept} alone explain {one.share:.0%} of it ({one.others or 0:.0%} of other heads){other}"
        )
    first = texts[0] if texts else None
    if first is not None and role.named and first.property and role.name not in first.property.split(" + "):
        doubts.append(f"its first text, “{first.text}”, is about {first.property} and not about {role.name}")
    doubts += [
        f"the pictures that it writes most for along “{text}” are no more like that text than others, as the whole model sees them"
        for text in dict.fromkeys(one.text for one in (first, head.leading) if one is not None)
        if pictures.get(text, LEAST_SIGMA) < LEAST_SIGMA
    ]
    if head.chance is not None and texts and head.explained <= head.chance:
        doubts.append(f"its texts explain no more than shuffled ones do ({head.chance:.0%})")
    if role.named and head.role_chance is not None and role.leading_share <= head.role_chance:
        doubts.append(f"its role is no clearer than that of shuffled texts ({head.role_chance:.0%} of the evidence)")
    name, share = head.truth[0] if head.truth else ("", 0.0)
    if share >= BAR and role.name != name:
        doubts.append(f"in truth {name} drives it ({share:.0%})")
    elif share >= BAR and role.leading_share < share / 2:
        doubts.append(
            f"in truth {name} drives it to {share:.0%}, and its texts show {role.leading_share:.0%} of that only"
        )
    return tuple(doubts)
