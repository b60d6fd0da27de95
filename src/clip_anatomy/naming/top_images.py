"""TopImages beside the words: the images for which a head writes most, and least, along each of its picked directions.

The store is read a head and a piece at a time; memory does not grow with the number of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.progress import Progress, silent
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store

__all__ = ["TopImages", "rows_at", "top_images"]

PIECE = 16_384  # images at a time
SPARE = 2  # times as many candidates as asked for, so that copies of one picture can be folded


@dataclass(frozen=True)
class TopImages:
    """Candidates, best first; −1 where there are no more images.

    Attributes:
        most: images (places in the store) with the largest values.
        most_value: (x − mean) · q, in parts of a cosine.
        least: images with the smallest values.
        least_value: their values.
    """

    most: Int64[Tensor, "layer head pick image"]
    most_value: Float[Tensor, "layer head pick image"]
    least: Int64[Tensor, "layer head pick image"]
    least_value: Float[Tensor, "layer head pick image"]

    def rows(self) -> list[int]:
        """Return every image in it, once."""
        indices = torch.unique(torch.cat([self.most.flatten(), self.least.flatten()]))
        return [row for row in indices.tolist() if row >= 0]


def top_images(
    store: Store,
    span: TextSpanResult,
    picks: int = 8,
    each: int = 6,
    *,
    piece: int = PIECE,
    progress: Progress | None = None,
) -> TopImages:
    """Find the images at both ends of the first picked directions of every head.

    Args:
        store: the store behind the span.
        span: what `textspan` found on its moments.
        picks: how many of each head's texts.
        each: how many images of either kind for each.
        piece: images read at a time.
        progress: called after each head.

    Returns:
        Top images, with some candidates more than `each`.

    Raises:
        BadInput: an empty store, or a span of another one.
    """
    tell = progress or silent
    if not len(store):
        raise BadInput(
            f"{store.path} holds no images, so no images can be looked up. Type: clip-anatomy index SOURCE {store.path}"
        )
    if span.directions.shape[-1] != store.manifest.d or span.layers != store.manifest.layers:
        raise BadInput(f"this span is not of {store.path}: span its own moments, textspan(store.moments(), pool)")
    picks = min(picks, span.texts_per_head)
    keep = min(SPARE * each, len(store))
    shape = (*span.rank.shape, picks, keep)
    top = TopImages(torch.full(shape, -1), torch.zeros(shape), torch.full(shape, -1), torch.zeros(shape))
    heads = list(span.heads())
    for done, (layer, head) in enumerate(heads, 1):
        at = span.layers.index(layer), head
        directions, mean = span.directions[at][:picks].float(), span.mean[at].float()
        high, low = _TopK(picks, keep), _TopK(picks, keep)
        for start, coordinates in store.scan([(layer, head)], piece):
            values = directions @ (coordinates[0].float() - mean).T  # [pick, image]
            high.add(values, start)
            low.add(-values, start)
        top.most[at], top.most_value[at] = high.rows, high.values
        top.least[at], top.least_value[at] = low.rows, -low.values
        tell("looking for images", done, len(heads))
    return top


class _TopK:
    """The largest values so far and where they were; of equal ones the first image stays, so that every run agrees."""

    def __init__(self, picks: int, keep: int) -> None:
        self.values = torch.full((picks, keep), -torch.inf)
        self.rows = torch.full((picks, keep), -1)

    def add(self, values: Float[Tensor, "pick image"], start: int) -> None:
        """Take a piece in."""
        rows = torch.arange(start, start + values.shape[1]).expand(len(values), -1)
        both, places = torch.cat([self.values, values], 1), torch.cat([self.rows, rows], 1)
        order = torch.sort(both, dim=1, descending=True, stable=True).indices[:, : self.values.shape[1]]
        self.values, self.rows = both.gather(1, order), places.gather(1, order)


def rows_at(store: Store, places: Sequence[int]) -> dict[int, ImageRow]:
    """Tell what is known of some images, without holding all rows of a large store at once.

    Args:
        store: a store.
        places: places on its image axis.

    Returns:
        Place → row.
    """
    ids = store.column("id")
    wanted = sorted({str(ids[place]) for place in places})
    rows: dict[int, ImageRow] = {}
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        rows |= {row.index: row for row in store.rows(f"id IN ({', '.join('?' * len(some))})", some)}
    return {place: rows[place] for place in places if place in rows}
