"""Embeddings of a store's pictures with parts replaced inside the forward: the pictures are read again, once for all sets of parts."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.edits.rerun import rerun_encode
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import BATCH, Clip
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.means import Means
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store
from clip_anatomy.studies.reread_pictures import pictures_again, refuse_changed

__all__ = ["read_again", "rerun_embeddings", "rerun_means", "written_means"]

WHY = "a re-run is not in a store, so the pictures are read again"
MEASURED = 2000  # images whose mean is what all of them have, to a fiftieth of what they vary


def rerun_embeddings(
    store: Store,
    clip: Clip,
    sets: Sequence[Sequence[Replacement]],
    rows: np.ndarray,
    progress: Progress | None = None,
) -> Float[Tensor, "set image embed"]:
    """Embed some pictures of a store once for each set of replacements; unit rows.

    Args:
        store: the store.
        clip: its model.
        sets: parts that are held; an empty set gives the model's own embeddings.
        rows: which images, ascending.
        progress: called with what is being done, images done, images in all.

    Raises:
        StoreError: a picture is gone, or another one now.
    """
    embeddings = torch.empty(len(sets), len(rows), store.manifest.embed)
    tell, at = progress or silent, 0
    for some, pixels in read_again(store, clip, rows):
        whole = clip.image_tower.encode(pixels).float()
        refuse_changed(store, some, whole.cpu(), WHY)
        here = slice(at, at + len(some))
        for row, held in enumerate(sets):
            again = rerun_encode(clip.image_tower, held, pixels, whole) if held else whole
            embeddings[row, here] = normalize(again, dim=-1).cpu()
        at += len(some)
        tell("running the model again", at, len(rows))
    return embeddings


def written_means(store: Store, clip: Clip, rows: np.ndarray, progress: Progress | None = None) -> Means:
    """Measure what all parts write, over some pictures of a store (evenly spread `MEASURED` of them at most).

    Raises:
        StoreError: a picture is gone.
    """
    some = rows if len(rows) <= MEASURED else rows[np.linspace(0, len(rows) - 1, MEASURED).astype(int)]
    tell, done = progress or silent, 0

    def stream() -> Iterator[Tensor]:
        nonlocal done
        for batch, pixels in read_again(store, clip, some):
            done += len(batch)
            tell("measuring means", done, len(some))
            yield pixels

    return Means.of(clip, stream())


def rerun_means(store: Store, clip: Clip, over: object, progress: Progress | None = None) -> Means:
    """Return the means that a re-run holds parts at: those given, or those of a store's pictures (by default this one's).

    Raises:
        BadInput: moments, which do not know what parts write.
        StoreError: a picture is gone.
    """
    if isinstance(over, Means):
        return over
    if over is not None and not isinstance(over, Store):
        raise BadInput(
            "moments are of head coordinates, a re-run holds what parts write. Type means=STORE, or Means.of(clip, images)"
        )
    source = store if over is None else over
    return written_means(source, clip, np.arange(len(source)), progress)


def read_again(store: Store, clip: Clip, rows: np.ndarray) -> Iterator[tuple[list[ImageRow], Tensor]]:
    """Read some pictures of a store again, in batches.

    Raises:
        StoreError: a picture is gone.
    """
    known = {row.index: row for row in store.rows()}
    for first in range(0, len(rows), BATCH):
        some = [known[int(at)] for at in rows[first : first + BATCH]]
        yield some, pictures_again(store, clip, some, WHY)
