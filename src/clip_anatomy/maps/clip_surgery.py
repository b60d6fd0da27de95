"""CLIP Surgery's feature surgery in closed form (Li et al. 2023, §3.3): what all texts share is taken out of the similarity."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.contrast import NEUTRAL, Against, Contrast, contrast_of
from clip_anatomy.maps.dense_attention import VARIANTS, dense_tokens
from clip_anatomy.maps.point_prompts import points

__all__ = ["contrasted", "feature_surgery", "points"]


def feature_surgery(
    tokens: Float[Tensor, "image token embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "image token text"]:
    """Compare every token with every text, minus what the texts have in common.

    The published form builds [token, text, embed]; summed over `embed` it is one matrix product (exactly equal):
    s[token, c] = w_c cos[token, c] − mean_j (w_j cos[token, j]), w = softmax_c(2 cos[class token, c]) / its mean, per image.

    Args:
        tokens: of any length, token 0 is the class token.
        text: of any length, two or more.

    Returns:
        Similarities.

    Example:
        >>> import torch
        >>> feature_surgery(torch.randn(1, 5, 8), torch.randn(3, 8)).sum(-1).abs().max() < 1e-6
        tensor(True)
    """
    cosine = F.normalize(tokens.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    weight = (2 * cosine[:, :1]).softmax(-1)
    weighed = cosine * weight / weight.mean(-1, keepdim=True)
    return weighed - weighed.mean(-1, keepdim=True)


def contrasted(
    tokens: Float[Tensor, "image token embed"], text: Float[Tensor, "text embed"], contrast: Contrast
) -> Float[Tensor, "image token text"]:
    """Compare tokens, class token first, with texts: by feature surgery with each other, else tokens · (text − contrast), all of unit length."""
    if contrast.each_other:
        return feature_surgery(tokens, text)
    return F.normalize(tokens.float(), dim=-1) @ contrast.subtracted_from(F.normalize(text.float(), dim=-1)).T


@dataclass(frozen=True)
class SurgeryOptions:
    """What CLIP Surgery lets people choose.

    Attributes:
        depth: how many of the last blocks the second path runs through (the paper's code: six, whatever the model's depth).
        against: what is subtracted from every text; see `contrast`. "each other" is the published feature surgery.
    """

    ALONE: ClassVar[str] = ""  # the published rule for one text: against the empty one
    depth: int = 6
    against: Against | Contrast = field(default=NEUTRAL, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.depth < 1:
            raise BadSpec(f"depth={self.depth} is too small. Type: depth=6")


def surgery(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: SurgeryOptions
) -> Float[Tensor, "image token text"]:
    """Run architecture surgery, then compare with the texts; with each other by feature surgery."""
    tokens = dense_tokens(clip.image_tower, pixels, replace(VARIANTS["surgery"], depth=options.depth))
    return contrasted(tokens, text, contrast_of(clip, options.against))[:, 1:]
