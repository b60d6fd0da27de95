"""The pictures that a result page shows, and where in them the match lies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import ClipAnatomyError
from clip_anatomy.library.store import Store
from clip_anatomy.library.thumbs import small, thumbnails
from clip_anatomy.model.clip import Clip
from clip_anatomy.model.pixels import read_image
from clip_anatomy.retrieval.asked import Asked, Example
from clip_anatomy.retrieval.ranking import Hit, Ranking
from clip_anatomy.retrieval.why import why

__all__ = ["SIDE", "Shown", "gather", "gather_query"]

SIDE = 176


@dataclass(frozen=True)
class Shown:
    """A hit and what can be shown of it.

    Attributes:
        hit: the hit; None for a picture that was asked for.
        name: what to call it.
        image: a small picture; None where it is gone.
        missing: why it is.
        patches: what each patch adds to the score; None where it was not asked for.
    """

    hit: Hit | None
    name: str
    image: Image.Image | None
    missing: str = ""
    patches: Float[Tensor, "row col"] | None = field(default=None, repr=False)


def gather(
    ranking: Ranking,
    store: Store,
    clip: Clip | None,
    maps: int,
    progress: Callable[[], None] = lambda: None,
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
    for place, hit in enumerate(ranking.hits):
        if clip is not None and place < maps:
            try:
                told = why(clip, store, ranking, hit)
                found.append(Shown(hit, hit.row.id, seen(told.picture, clip), "", told.shown()))
            except (ClipAnatomyError, OSError) as error:
                found.append(Shown(hit, hit.row.id, None, str(error)))
        else:
            for _, image, missing in thumbnails([hit.row], SIDE):
                found.append(Shown(hit, hit.row.id, image, missing))
        progress()
    return found


def gather_query(asked: Asked) -> list[Shown]:
    """Small pictures of what was asked for."""
    return [_example(one) for one in (*asked.more, *asked.less)]


def _example(one: Example) -> Shown:
    if one.row is not None:
        for _, image, missing in thumbnails([one.row], SIDE):
            return Shown(None, one.name, image, missing)
    given = one.picture
    if isinstance(given, torch.Tensor):
        return Shown(None, one.name, None, "it was given as a tensor")
    try:
        return Shown(None, one.name, small(read_image(Path(given) if isinstance(given, str) else given), SIDE))
    except (ClipAnatomyError, OSError) as error:
        return Shown(None, one.name, None, str(error))


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
