"""Why a picture was found: which of its patches wrote what made the score, exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.anatomy.tokens import TokenSource, token_contributions
from clip_anatomy.errors import BadInput
from clip_anatomy.library.sources.opening import picture_of
from clip_anatomy.library.store import Store
from clip_anatomy.model.clip import Clip
from clip_anatomy.retrieval.ranking import Hit, Ranking

__all__ = ["Why", "why"]


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
    space, direction = ranking.space, ranking.direction
    if space is None or direction is None:
        raise BadInput("this ranking was not made here: search again to ask why")
    picture = picture_of(hit.row.source, hit.row.path, hit.row.id)
    pixels = clip.pixels(picture)
    joint = space.joint(direction, store)
    source = TokenSource(clip.vision, pixels)
    lengths = joint.norm(dim=-1).clamp_min(1e-30)
    shares, trace = token_contributions(source, joint.float(), "even" if store.about.convention == "even" else "own")
    written = shares[0].double().cpu() * lengths  # [layer, head, token, part]
    if space.mode == "heads":
        tokens = torch.stack([written[layer, head, :, at] for at, (layer, head) in enumerate(space.pairs)]).sum(0)
        rest = float(tokens[0])
    else:
        kept = torch.ones(written.shape[:2], dtype=torch.float64)
        for layer, head in space.pairs:
            kept[layer, head] = 0.0
        tokens = (written[..., 0] * kept[..., None]).sum((0, 1))
        unit = torch.nn.functional.normalize(trace.embedding.double(), dim=-1).cpu()
        gone = float((written[..., 0] * (1 - kept)[..., None]).sum())
        rest = float(unit[0] @ joint[0]) - gone - float(tokens[1:].sum())
    vector = space.rows(store, [hit.row.index])[0]
    row, col = clip.patch
    grid = (pixels.shape[2] // row, pixels.shape[3] // col)
    patches = tokens[1:].unflatten(0, grid)
    return Why(
        patches.float(),
        rest,
        space.average(direction),
        float(vector.norm()) if ranking.measure == "cosine" else 1.0,
        picture,
    )
