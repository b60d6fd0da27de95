"""The pictures that a result page shows, and where in them the match lies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.data.open_source import picture_of
from clip_anatomy.errors import ClipAnatomyError
from clip_anatomy.files import path_of
from clip_anatomy.images.pixels import read_image
from clip_anatomy.loading.clip import Clip
from clip_anatomy.report.thumbnails import small
from clip_anatomy.retrieval.patch_attribution import BATCH, Why, whys
from clip_anatomy.retrieval.prepared_query import placed
from clip_anatomy.retrieval.query import Example
from clip_anatomy.retrieval.ranking import Hit, Ranking
from clip_anatomy.store.rows import Row
from clip_anatomy.store.store import Store

__all__ = ["SIDE", "Shown", "gather", "gather_query"]

SIDE = 224


@dataclass(frozen=True)
class Shown:
    """A picture and what can be shown of it.

    Attributes:
        hit: the hit; None for a picture that was asked for.
        name: what to call it.
        image: a small picture; None where it is gone.
        missing: why it is.
        patches: what each patch adds to the score; None where it was not asked for.
        link: where the original file lies, as a file: address; "" where it is no file.
        unlike: it was asked for as one to be unlike.
    """

    hit: Hit | None
    name: str
    image: Image.Image | None
    missing: str = ""
    patches: Float[Tensor, "row col"] | None = field(default=None, repr=False)
    link: str = ""
    unlike: bool = False


def gather(
    ranking: Ranking, store: Store, clip: Clip | None, maps: int, progress: Callable[[], None] = lambda: None
) -> list[Shown]:
    """Fetch the pictures of all hits, and say for the first `maps` of them which patches made them match.

    Args:
        ranking: what was found.
        store: the store.
        clip: its model; None for no maps.
        maps: for how many hits.
        progress: called after each picture.

    Returns:
        One entry a hit; a picture that is gone says why.
    """
    found: list[Shown] = []
    for first in range(0, len(ranking.hits), BATCH):
        hits = ranking.hits[first : first + BATCH]
        opened = [_opened(hit.row) for hit in hits]
        here = [at for at, one in enumerate(opened) if isinstance(one, Image.Image) and first + at < maps]
        told: dict[int, Why] = {}
        if here and clip is not None and ranking.space is not None:
            vectors = ranking.space.rows(store, [hits[at].row.index for at in here])
            pictures = [one for at in here if isinstance(one := opened[at], Image.Image)]
            told = dict(zip(here, whys(clip, store, ranking, pictures, vectors), strict=True))
        for at, (hit, one) in enumerate(zip(hits, opened, strict=True)):
            found.append(_shown(hit, one, told.get(at), clip))
            progress()
    return found


def gather_query(ranking: Ranking, store: Store, clip: Clip | None) -> list[Shown]:
    """Small pictures of what was asked for, with what was looked for in those that the results should be like.

    Args:
        ranking: what was found.
        store: the store.
        clip: its model; None for no maps.
    """
    if ranking.asked is None:
        return []
    return [
        *(_example(one, ranking, store, clip) for one in ranking.asked.more),
        *(_example(one, ranking, store, None, unlike=True) for one in ranking.asked.less),
    ]


def _opened(row: Row) -> Image.Image | str:
    try:
        return picture_of(row.source, row.path, row.id)
    except (ClipAnatomyError, OSError, LookupError, ValueError) as error:
        return str(error)


def _shown(hit: Hit, opened: Image.Image | str, told: Why | None, clip: Clip | None) -> Shown:
    name = hit.row.id
    if isinstance(opened, str):
        return Shown(hit, name, None, opened)
    if told is None or clip is None:
        return Shown(hit, name, small(opened, SIDE), link=_link(hit.row))
    return Shown(hit, name, seen(opened, clip), "", told.shown(), _link(hit.row))


def _example(one: Example, ranking: Ranking, store: Store, clip: Clip | None, *, unlike: bool = False) -> Shown:
    given = one.picture
    if isinstance(given, torch.Tensor):
        return Shown(None, one.name, None, "it was given as a tensor", unlike=unlike)
    try:
        picture = _picture(one)
        link = _link(one.row) if one.row is not None else _address(given)
        if clip is None or ranking.space is None:
            return Shown(None, one.name, small(picture, SIDE), link=link, unlike=unlike)
        told = whys(clip, store, ranking, [picture], placed(ranking.space, [one]))[0]
        return Shown(None, one.name, seen(picture, clip), "", told.shown(), link)
    except (ClipAnatomyError, OSError, LookupError, ValueError) as error:
        return Shown(None, one.name, None, str(error), unlike=unlike)


def _picture(one: Example) -> Image.Image:
    if one.row is not None:
        return picture_of(one.row.source, one.row.path, one.row.id)
    return read_image(path_of(one.picture) if isinstance(one.picture, str) else one.picture)


def _link(row: Row) -> str:
    """Address of a row's own file, if it is one that can be opened."""
    return "" if row.path is None else _address(Path(row.source) / row.path)


def _address(given: object) -> str:
    try:
        path = path_of(given) if isinstance(given, str | Path) else None
        return path.resolve().as_uri() if path is not None and path.is_file() else ""
    except (OSError, ValueError):
        return ""


def seen(picture: Image.Image, clip: Clip) -> Image.Image:
    """The part of a picture that the model saw, so that its patches lie on it; black beyond the picture's edge."""
    where = clip.preprocess.geometry(*picture.size)
    top, left = where.to_picture(0, 0)
    bottom, right = where.to_picture(*where.size)
    part = picture.convert("RGB").crop(
        (round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1))
    )
    rows, cols = where.size
    scale = SIDE / max(rows, cols)
    return part.resize((max(1, round(cols * scale)), max(1, round(rows * scale))), Image.Resampling.LANCZOS)
