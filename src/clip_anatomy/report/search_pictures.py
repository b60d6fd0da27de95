"""The pictures that a result page shows, and where in them the match lies."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.errors import ClipAnatomyError
from clip_anatomy.files import path_of, resolved
from clip_anatomy.images.pixels import read_image
from clip_anatomy.loading.clip import Clip
from clip_anatomy.report.shown_picture import model_view
from clip_anatomy.report.thumbnails import small
from clip_anatomy.retrieval.hits import Hit
from clip_anatomy.retrieval.patch_attribution import BATCH, PatchAttribution, patch_attributions
from clip_anatomy.retrieval.query_pictures import QueryPicture
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.store.rows import ImageRow

__all__ = ["SIDE", "ResultPicture", "query_pictures", "result_pictures"]

SIDE = 224
UNREADABLE = (ClipAnatomyError, OSError, LookupError, ValueError)


@dataclass(frozen=True)
class ResultPicture:
    """A picture and what can be shown of it.

    Attributes:
        hit: the hit; None for a picture of the query.
        name: what to call it.
        image: a small picture; None where it is gone.
        missing: why it is.
        patches: what each patch adds to the score; None where that is not shown.
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


def result_pictures(ranking: Ranking, clip: Clip | None) -> list[ResultPicture]:
    """Fetch the pictures of all hits, and say which patches made them match.

    Args:
        ranking: what was found.
        clip: the store's model; None for no patches.

    Returns:
        One entry a hit; a picture that is gone says why.
    """
    results: list[ResultPicture] = []
    for first in range(0, len(ranking.hits), BATCH):
        hits = ranking.hits[first : first + BATCH]
        originals = [_original(hit.row) for hit in hits]
        here = [at for at, one in enumerate(originals) if isinstance(one, Image.Image)]
        attributions: dict[int, PatchAttribution] = {}
        if here and clip is not None:
            vectors = ranking.query.space.rows(ranking.store, [hits[at].row.index for at in here])
            pictures = [one for one in originals if isinstance(one, Image.Image)]
            attributions = dict(zip(here, patch_attributions(ranking, clip, pictures, vectors), strict=True))
        for at, (hit, one) in enumerate(zip(hits, originals, strict=True)):
            if isinstance(one, str):
                results.append(ResultPicture(hit, hit.row.id, None, one))
            else:
                image, patches = _drawn(one, attributions.get(at), clip)
                results.append(ResultPicture(hit, hit.row.id, image, "", patches, _row_link(hit.row)))
    return results


def query_pictures(ranking: Ranking, clip: Clip | None) -> list[ResultPicture]:
    """Fetch the pictures of the query, and say what was looked for in those that the results should be like.

    Args:
        ranking: what was found.
        clip: the store's model; None for no patches.
    """
    query = ranking.query
    return [
        *(_query_picture(one, ranking, clip) for one in query.like),
        *(_query_picture(one, ranking, None, unlike=True) for one in query.unlike),
    ]


def _query_picture(one: QueryPicture, ranking: Ranking, clip: Clip | None, *, unlike: bool = False) -> ResultPicture:
    given, row = one.picture, one.row
    if isinstance(given, torch.Tensor):
        return ResultPicture(None, one.name, None, "it was given as a tensor", unlike=unlike)
    try:
        if row is not None:
            original, link = picture_of(row.source, row.path, row.id), _row_link(row)
        else:
            original, link = read_image(path_of(given) if isinstance(given, str) else given), _link(given)
        vectors = ranking.query.vectors([one])
        attribution = None if clip is None else patch_attributions(ranking, clip, [original], vectors)[0]
    except UNREADABLE as error:
        return ResultPicture(None, one.name, None, str(error), unlike=unlike)
    image, patches = _drawn(original, attribution, clip)
    return ResultPicture(None, one.name, image, "", patches, link, unlike)


def _drawn(
    original: Image.Image, attribution: PatchAttribution | None, clip: Clip | None
) -> tuple[Image.Image, Float[Tensor, "row col"] | None]:
    if attribution is None or clip is None:
        return small(original, SIDE), None
    return model_view(original, clip.preprocess.geometry(*original.size), SIDE), attribution.centered()


def _original(row: ImageRow) -> Image.Image | str:
    """Return the picture, or why there is none."""
    try:
        return picture_of(row.source, row.path, row.id)
    except UNREADABLE as error:
        return str(error)


def _row_link(row: ImageRow) -> str:
    """Address of a row's own file, if it is one that can be opened."""
    return "" if row.path is None else _link(Path(row.source) / row.path)


def _link(given: object) -> str:
    try:
        path = path_of(given) if isinstance(given, str | Path) else None
        return resolved(path).as_uri() if path is not None and path.is_file() else ""
    except (OSError, ValueError):
        return ""
