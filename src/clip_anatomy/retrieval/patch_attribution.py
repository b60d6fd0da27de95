"""Why a picture was found: which of its patches wrote what made the score, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.retrieval.hits import Hit
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.split.tokens import TokenSource, token_contributions

__all__ = ["PatchAttribution", "patch_attribution", "patch_attributions"]

BATCH = 8


@dataclass(frozen=True)
class PatchAttribution:
    """Which patches of a picture made it match.

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

    def centered(self) -> Float[Tensor, "row col"]:
        """Return the map to look at: the average image's share taken from every patch alike, so that red adds to the score."""
        return (self.patches - self.average / self.patches.numel()) / self.length


def patch_attribution(ranking: Ranking, hit: Hit) -> PatchAttribution:
    """Say which patches of one result made it match. Costs one forward; the picture is read again.

    A head's contribution is the exact sum over the tokens it read from, and the score is linear in it: each patch's share is the
    dot product of what the heads took from it with the direction that was looked for.

    Args:
        ranking: what a search found.
        hit: one of its hits.

    Raises:
        BadImage: the picture is no longer where it was.
    """
    picture = picture_of(hit.row.source, hit.row.path, hit.row.id)
    vectors = ranking.query.space.rows(ranking.store, [hit.row.index])
    return patch_attributions(ranking, ranking.model(), [picture], vectors)[0]


def patch_attributions(
    ranking: Ranking, clip: Clip, pictures: Sequence[Image.Image], vectors: Float64[Tensor, "image out"]
) -> list[PatchAttribution]:
    """Say the same of pictures at hand, hits or not, eight to a forward.

    Args:
        ranking: what a search found.
        clip: the store's model.
        pictures: the pictures, upright.
        vectors: their vectors in the query's space, whose lengths a cosine is divided by.
    """
    query = ranking.query
    joint = query.space.joint(query.direction, ranking.store)
    average = query.space.average(query.direction)
    attributions: list[PatchAttribution] = []
    batch = BATCH if clip.preprocess.patches is None else 1  # NaFlex: each picture has a shape of its own
    for first in range(0, len(pictures), batch):
        some = pictures[first : first + batch]
        patches, rest = _along(ranking, clip, joint, clip.pixels([*some]))
        lengths = vectors[first : first + batch].norm(dim=-1).clamp_min(1e-12).tolist()
        attributions += [
            PatchAttribution(patches[at], rest[at], average, lengths[at] if query.measure == "cosine" else 1.0, one)
            for at, one in enumerate(some)
        ]
    return attributions


def _along(
    ranking: Ranking, clip: Clip, joint: Float64[Tensor, "part embed"], pixels: Tensor
) -> tuple[Float[Tensor, "image row col"], list[float]]:
    """Tell what patches, and what is none, wrote along the direction."""
    mode, pairs, own = ranking.query.mode, ranking.query.space.pairs, clip.vision.own
    convention = "official" if ranking.store.manifest.convention == "official" else "centered"
    shares, trace = token_contributions(TokenSource(clip.vision, pixels), joint.float(), convention)
    written = shares.double().cpu() * joint.norm(dim=-1).clamp_min(1e-30)  # [image, layer, head, token, part]
    if mode == "heads":
        tokens = torch.stack([written[:, layer, head, :, at] for at, (layer, head) in enumerate(pairs)]).sum(0)
        rest = tokens[:, :own].sum(1)
    else:
        compared = torch.ones(written.shape[1:3], dtype=torch.float64)
        for layer, head in pairs:
            compared[layer, head] = 0.0
        by_head = written[..., 0] * compared[..., None]  # [image, layer, head, token]
        left_out = (written[..., 0] * (1 - compared)[..., None]).sum((1, 2, 3))
        tokens = by_head.sum((1, 2))
        unit = torch.nn.functional.normalize(trace.embedding.double(), dim=-1).cpu()
        rest = unit @ joint[0] - left_out - tokens[:, own:].sum(-1)
    grid = patch_grid(pixels.shape, clip.patch)
    return tokens[:, own:].unflatten(1, grid).float(), rest.tolist()
