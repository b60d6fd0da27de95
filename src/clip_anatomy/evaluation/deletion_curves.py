"""Deletion and insertion curves: the model's score while patches of one picture go, and come back, in some orders."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.evaluation.occlusion import occlude
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip

__all__ = ["curves"]


def curves(
    clip: Clip,
    pixels: Float[Tensor, "3 row col"],
    texts: Float[Tensor, "text embed"],
    text: int,
    orders: Int[Tensor, "order patch"],
    *,
    occlusion: str = "road",
    score: str = "cosine",
    steps: int = 10,
    seed: int = 0,
) -> tuple[Float[Tensor, " step"], Float[Tensor, "order step"], Float[Tensor, "order step"]]:
    """Deletion and insertion of one picture in several orders, all in one batch.

    Args:
        clip: an opened model.
        pixels: preprocessed.
        texts: embeddings of any length.
        text: which of them is watched.
        orders: the patches, most important first.
        occlusion: see `occlusion.OCCLUSIONS`.
        score: "cosine" or "probability".
        steps: between nothing and everything; fewer where there are fewer patches.
        seed: of ROAD's noise.

    Returns:
        Shares of the patches, deletion, insertion.
    """
    patches = orders.shape[1]
    counts = torch.linspace(0, patches, min(steps, patches) + 1).round().long()
    rank = torch.empty_like(orders).scatter_(1, orders, torch.arange(patches).expand_as(orders))
    gone = rank[:, None] < counts[:, None]  # [order, step, patch]
    removed = torch.stack([gone, ~gone])  # deletion: the first k; insertion: all but the first k
    rows, cols = patch_grid(pixels.shape, clip.patch)
    cells = removed.flatten(0, 2).view(-1, rows, cols).to(pixels.device)
    whole = cells.repeat_interleave(clip.patch[0], 1).repeat_interleave(clip.patch[1], 2)
    embedded = clip.encode_image(occlude(pixels.float(), whole, occlusion, seed=seed))
    cosine = F.normalize(embedded, dim=-1) @ F.normalize(texts.float(), dim=-1).T
    scored = cosine if score == "cosine" else (cosine * clip.logit_scale).softmax(-1)
    deletion, insertion = scored[:, text].cpu().view(2, *gone.shape[:2])
    return counts.float() / patches, deletion, insertion
