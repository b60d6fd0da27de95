"""What the studio answers about a whole store: names of heads, similar images, accuracies, what misleads; and its long work."""

from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from math import ceil
from typing import Any

import numpy as np
from PIL import Image

from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.naming.atlas import AtlasHead
from clip_anatomy.naming.build_atlas import atlas as make_atlas
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.thumbnails import thumbnails
from clip_anatomy.retrieval.hits import rows_at
from clip_anatomy.retrieval.search import search
from clip_anatomy.retrieval.store_atlas import keep_atlas
from clip_anatomy.store.index import index
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store
from clip_anatomy.studies.ablation_study import study
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair import repair
from clip_anatomy.studies.zero_shot_task import ZeroShotTask
from clip_anatomy.studio.session import HeldPicture, Session

__all__ = ["accuracy", "atlas_of_heads", "head_of", "jobs_of", "like", "picture_from", "stored_query", "thumbnail"]

SIDE = 160  # pixels of a thumbnail
MOST_HITS = 100


def atlas_of_heads(session: Session, words: str = "") -> dict[str, Any]:
    """Name every head, where the store keeps an atlas; only those whose texts hold some words, if there are any."""
    atlas = session.atlas
    if atlas is None:
        return {"heads": {}, "roles": {}, "summary": ""}
    heads = atlas.with_words(words) if words.strip() else atlas.heads
    return {"heads": {one.name: _short(one) for one in heads}, "roles": atlas.roles, "summary": atlas.summary()}


def _short(head: AtlasHead) -> dict[str, Any]:
    return {
        "role": head.role.name,
        "confidence": head.role.confidence,
        "explained": head.explained,
        "chance": head.chance,
        "variance": head.variance,
        "texts": [text.text for text in head.ordered[:3]],
    }


def head_of(session: Session, part: str) -> dict[str, Any]:
    """Tell all that is known of one head: its texts with uncertainty, and the images at either end of each.

    Raises:
        BadInput: there is no atlas.
        BadSpec: no such head.
    """
    if session.atlas is None:
        raise BadInput("the heads have no names yet. Press: Name the heads")
    ((layer, head),) = session.atlas.select(part)[:1]
    entry = session.atlas.head(layer, head)
    return {
        "part": entry.name,
        **_short(entry),
        "texts": [asdict(text) for text in entry.ordered],
        "doubts": entry.doubts,
    }


def like(session: Session, query: str | HeldPicture, heads: str, mode: str, k: int) -> dict[str, Any]:
    """Search the store for images like a text, a stored image (`id:…`) or a picture that was sent.

    Raises:
        BadInput: no store.
        BadSpec: heads that there are none of.
    """
    store = _store(session)
    query_image = query if isinstance(query, str) else Image.open(BytesIO(query.png)).convert("RGB")
    result = session.run(
        lambda: search(
            store, query_image, heads or None, min(k, MOST_HITS), mode=mode, clip=session.clip, atlas=session.atlas
        )
    )
    heads_named = [{**asdict(one), "name": one.name, "word": one.word} for one in result.heads]
    reasons = {"heads": heads_named, "title": result.title, "comparison": result.comparison, "counted": result.counted}
    hits = [hit.to_dict(result.heads) | {"reason": result.reason(hit)} for hit in result.hits]
    return result.to_dict() | reasons | {"store": store.path.name, "hits": hits}


def stored_query(session: Session, at: int) -> str:
    """Return how a search asks for an image of the store."""
    return f"id:{_row(session, at).id}"


def thumbnail(session: Session, at: int) -> bytes:
    """Return a small PNG of one image of the store.

    Raises:
        BadInput: no such image, or it is no longer where it was.
    """
    ((_, image, missing),) = thumbnails([_row(session, at)], SIDE)
    if image is None:
        raise BadInput(f"image {at} cannot be shown: {missing}")
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture_from(session: Session, at: int) -> HeldPicture:
    """Take an image of the store among the pictures that can be explained."""
    row = _row(session, at)
    return session.add_image(picture_of(row.source, row.path, row.id), row.id, row.digest or f"stored-{at}")


def _row(session: Session, at: int) -> ImageRow:
    store = _store(session)
    if not 0 <= at < len(store):
        raise BadInput(f"image {at}: 0 to {len(store) - 1} were expected")
    return rows_at(store, [at])[at]


def _store(session: Session) -> Store:
    if session.store is None:
        raise BadInput("this needs a store. Start: clip-anatomy serve STORE")
    return session.store


def accuracy(
    session: Session,
    select: str,
    by: str,
    *,
    effect: str = "direct",
    images: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure accuracy on the store, average and of every group, whole and with some parts replaced.

    Args:
        session: with a store.
        select: the parts.
        by: "mean" or "zero".
        effect: "direct", from the store alone, or "rerun": the pictures are read again.
        images: how many, spread evenly over every group; all by default.
        progress: told as it goes.

    Raises:
        BadInput: no store, or one without labels.
    """
    if session.store is None or session.task is None:
        raise BadInput("accuracies need a store with labels. Start: clip-anatomy serve STORE")
    chosen = Selection.parse(select or "none", session.clip.vision.layers, session.clip.vision.heads, session.atlas)
    task = session.task if images is None else _some(session.task, images)
    over = session.written_means if effect == "rerun" and by == "mean" else None
    result = study(
        session.store, select=[chosen], clip=session.clip, task=task, by=by, effect=effect, over=over, progress=progress
    )
    shown = {"whole": result.whole, "edited": result.effects[0]}
    return {
        "effect": effect,
        "seconds": result.seconds,
        "of": len(session.task.rows),
        "images": result.images,
        "label": result.column,
        "groups": [{"name": name, "images": count} for name, count in result.groups],
        "chance": 1 / len(result.classes),
        **{
            name: {"average": one.accuracy, "groups": list(one.groups), "worst": result.worst(one)}
            for name, one in shown.items()
        },
    }


def _some(task: ZeroShotTask, images: int) -> ZeroShotTask:
    """Ask of fewer images: the same part of every group (at least one image), spread evenly over its images."""
    part = min(1.0, images / len(task.rows))
    groups = np.zeros(len(task.rows)) if task.groups is None else task.groups.numpy()
    each = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    spread = [some[np.linspace(0, len(some) - 1, ceil(part * len(some))).astype(int)] for some in each]
    at = np.sort(np.concatenate(spread))
    kept = None if task.groups is None else task.groups[at]
    return replace(task, rows=task.rows[at], labels=task.labels[at], groups=kept)


def jobs_of(session: Session) -> dict[str, Any]:
    """Return the long work that a studio with a store can do: verb → function."""
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "atlas": _name_heads,
        "ablate": lambda session, progress, **given: accuracy(session, **given, progress=progress),
        "index": _index_again,
        "repair": _suspects,
    }

    def run(work: Callable[..., dict[str, Any]], progress: Progress, given: dict[str, Any]) -> dict[str, Any]:
        with session.between(progress) as step:
            return work(session, step, **given)

    return {verb: lambda progress, work=work, **given: run(work, progress, given) for verb, work in verbs.items()}


def _name_heads(session: Session, progress: Progress) -> dict[str, Any]:
    store = _store(session)
    made = make_atlas(store, session.clip, picks=3, resamples=20, progress=progress)
    keep_atlas(store, made)
    session.reopen()
    return {"summary": made.summary()}


def _index_again(session: Session, progress: Progress) -> dict[str, Any]:
    store = _store(session)
    runs = [index(session.clip, source, store.path, progress=progress) for source in store.sources]
    session.reopen()
    return {"summary": "\n".join(run.summary() for run in runs), "images": len(_store(session))}


def _suspects(session: Session, progress: Progress) -> dict[str, Any]:
    """Find the heads that speak of what misleads (validation half of the store), and the set to suggest."""
    if session.task is None:
        raise BadInput("suspects need a store with labels and groups. Start: clip-anatomy serve STORE")
    result = repair(_store(session), model=session.clip, also=[], progress=progress)
    cue: CueSearch = result.cue  # pyright: ignore[reportAttributeAccessIssue]
    rows = [
        {
            "part": one.part.name,
            "role": one.role,
            "texts": list(one.texts[:3]),
            "worst_alone": min(one.ablated_alone.filled),
        }
        for one in cue.suspected(10)
    ]
    return {"suggestion": cue.best.ablation.selection.spec, "suspects": rows, "before": min(cue.before.filled)}
