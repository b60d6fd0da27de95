"""The pictures of a store read again, for what no store holds; refused where they are others now."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.errors import ClipAnatomyError, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store

__all__ = ["pictures_again", "refuse_changed"]

SAME = 0.99  # cosine of a picture's embedding with the stored one: another decoder, or a few pixels, cost less
NAMED = 3


def pictures_again(store: Store, clip: Clip, rows: list[ImageRow], why: str) -> Float[Tensor, "image 3 row col"]:
    """Read some pictures of a store again.

    Raises:
        StoreError: one is not there any more; `why` says what it is needed for.
    """
    try:
        return torch.cat([clip.pixels(picture_of(row.source, row.path, row.id)) for row in rows])
    except (ClipAnatomyError, OSError, LookupError) as error:
        raise StoreError(f"{why}, but: {error}. Put the pictures back, or leave these parts away") from error


def refuse_changed(store: Store, rows: list[ImageRow], embedding: Float[Tensor, "image embed"], why: str) -> None:
    """Raise StoreError for pictures whose embeddings are not the stored ones any more."""
    stored = store.embeddings(np.array([row.index for row in rows]), unit=True)
    near = (normalize(embedding, dim=-1) * stored).sum(1)
    if bool((near < SAME).any()):
        changed = [row.id for row, cosine in zip(rows, near.tolist(), strict=True) if not cosine >= SAME]
        raise StoreError(
            f"{why}, but {', '.join(changed[:NAMED])} is another picture now than when it was indexed. Type: clip-anatomy index SOURCE "
            f"{store.path}"
        )
