"""Why a picture was found: which of its patches wrote what made the score, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from clip_anatomy.data.open_source import picture_of
from clip_anatomy.errors import BadInput
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.retrieval.ranking import Hit, Ranking
from clip_anatomy.split.tokens import TokenSource, token_contributions
from clip_anatomy.store.store import Store

__all__ = ["Why", "why", "whys"]

BATCH = 8


@dataclass(frozen=True)
class Why:
    """Which patches of a result made it match.

    Attributes:
        patches: what each patch wrote along what was looked for, through the heads that were compared.
        rest: what is no patch: the class token, and in modes "whole" and "without" MLPs and biases.
        average: what an average image of the store gets, taken away where means are (0 otherwise).
        length: what the sum is divided by: the vector's length for cosines, else 1.
        picture: the original picture, upright.
    """

    patches: Float[Tensor, "row col"]
    rest: float
    average: float
    length: float
    picture: Image.Image

    @property
    def total(self) -> float:
        """The score, from the picture anew: (Σ patches + rest − average) / length."""
        return (float(self.patches.sum()) + self.rest - self.average) / self.length

    def shown(self) -> Float[Tensor, "row col"]:
        """The map to look at: the average image's share taken from every patch alike, so that red adds to the score."""
        return (self.patches - self.average / self.patches.numel()) / self.length


def why(clip: Clip, store: Store, ranking: Ranking, hit: Hit) -> Why:
    """Say which patches of one result made it match. Costs one forward; the picture is read again.

    A head's contribution is the exact sum over the tokens it read from, and the score is linear in it: each patch's share is the
    dot product of what the heads took from it with the direction that was looked for.

    Args:
        clip: the store's model.
        store: the store.
        ranking: what a search found.
        hit: one of its hits.

    Raises:
        BadInput: the ranking was read from a file and no longer knows its vectors.
        BadImage: the picture is no longer where it was.
    """
    if ranking.space is None:
        raise BadInput("this ranking was not made here: search again to ask why")
    picture = picture_of(hit.row.source, hit.row.path, hit.row.id)
    return whys(clip, store, ranking, [picture], ranking.space.rows(store, [hit.row.index]))[0]


def whys(
    clip: Clip,
    store: Store,
    ranking: Ranking,
    pictures: Sequence[Image.Image],
    vectors: Float64[Tensor, "image out"],
) -> list[Why]:
    """The same for pictures at hand, hits or not, eight to a forward.

    Args:
        clip: the store's model.
        store: the store.
        ranking: what a search found.
        pictures: the pictures, upright.
        vectors: their vectors in `ranking.space`, whose lengths a cosine is divided by.

    Raises:
        BadInput: the ranking was read from a file and no longer knows its vectors.
    """
    space, direction = ranking.space, ranking.direction
    if space is None or direction is None:
        raise BadInput("this ranking was not made here: search again to ask why")
    joint = space.joint(direction, store)
    average = space.average(direction)
    found: list[Why] = []
    for first in range(0, len(pictures), BATCH):
        some = pictures[first : first + BATCH]
        pixels = clip.pixels([*some])
        patches, rest = _along(clip, store, ranking, joint, pixels)
        lengths = vectors[first : first + BATCH].norm(dim=-1).tolist()
        found += [
            Why(patches[at], rest[at], average, max(lengths[at], 1e-12) if ranking.measure == "cosine" else 1.0, one)
            for at, one in enumerate(some)
        ]
    return found


def _along(
    clip: Clip, store: Store, ranking: Ranking, joint: Float64[Tensor, "part embed"], pixels: Tensor
) -> tuple[Float[Tensor, "image row col"], list[float]]:
    """What patches, and what is none, wrote along the direction."""
    assert ranking.space is not None
    mode, pairs = ranking.space.mode, ranking.space.pairs
    convention = "official" if store.manifest.convention == "official" else "centered"
    shares, trace = token_contributions(TokenSource(clip.vision, pixels), joint.float(), convention)
    written = shares.double().cpu() * joint.norm(dim=-1).clamp_min(1e-30)  # [image, layer, head, token, part]
    if mode == "heads":
        tokens = torch.stack([written[:, layer, head, :, at] for at, (layer, head) in enumerate(pairs)]).sum(0)
        rest = tokens[:, 0]
    else:
        kept = torch.ones(written.shape[1:3], dtype=torch.float64)
        for layer, head in pairs:
            kept[layer, head] = 0.0
        by_head = written[..., 0] * kept[..., None]  # [image, layer, head, token]
        gone = (written[..., 0] * (1 - kept)[..., None]).sum((1, 2, 3))
        tokens = by_head.sum((1, 2))
        unit = torch.nn.functional.normalize(trace.embedding.double(), dim=-1).cpu()
        rest = unit @ joint[0] - gone - tokens[:, 1:].sum(-1)
    grid = patch_grid(pixels.shape, clip.patch)
    return tokens[:, 1:].unflatten(1, grid).float(), rest.tolist()
