"""CLIP Surgery's feature surgery in closed form (Li et al. 2023, §3.3): what all texts share is taken out of the similarity."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def feature_surgery(
    tokens: Float[Tensor, "image token embed"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "image token text"]:
    """Similarity of every token with every text, minus what the texts have in common.

    The published form builds [token, text, embed]; summed over `embed` it is one matrix product (exactly equal):
    s[token, c] = w_c cos[token, c] − mean_j (w_j cos[token, j]), w = softmax_c(2 cos[class token, c]) / its mean, per image.

    Args:
        tokens: of any length, token 0 is the class token.
        text: of any length, two or more (for one text, see `single_text`).

    Returns:
        Similarities.

    Example:
        >>> feature_surgery(torch.randn(1, 5, 8), torch.randn(3, 8)).sum(-1).abs().max() < 1e-6
        tensor(True)
    """
    cosine = F.normalize(tokens.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    weight = (2 * cosine[:, :1]).softmax(-1)
    weighed = cosine * weight / weight.mean(-1, keepdim=True)
    return weighed - weighed.mean(-1, keepdim=True)


def single_text(
    tokens: Float[Tensor, "image token embed"], text: Float[Tensor, "text embed"], empty: Float[Tensor, "1 embed"]
) -> Float[Tensor, "image token text"]:
    """Similarity with each text alone, against the empty text: tokens · (text − empty), all of unit length."""
    return (
        F.normalize(tokens.float(), dim=-1) @ (F.normalize(text.float(), dim=-1) - F.normalize(empty.float(), dim=-1)).T
    )


def points(
    map_: Float[Tensor, "row col"], size: tuple[int, int], *, threshold: float = 0.8
) -> tuple[Float[Tensor, "point 2"], Float[Tensor, "point 2"]]:
    """Point prompts for SAM from one map (Li et al. 2023, §3.5).

    The map is halved (bilinear) and stretched to 0..1; positives are the cells of at least `threshold`, at most half of all;
    negatives are as many of the lowest.

    Args:
        map_: similarities per patch.
        size: (row, col) of the picture in pixels.
        threshold: from 0 to 1.

    Returns:
        Positive and negative points as (x, y) pixels.
    """
    half = F.interpolate(map_[None, None].float(), (map_.shape[0] // 2, map_.shape[1] // 2), mode="bilinear")[0, 0]
    low, high = half.min(), half.max()
    flat = ((half - low) / (high - low).clamp_min(1e-12)).flatten()
    order = flat.argsort(descending=True, stable=True)
    count = min(int((flat >= threshold).sum()), len(flat) // 2)
    cell = torch.tensor([size[1] / half.shape[1], size[0] / half.shape[0]])

    def centres(cells: Tensor) -> Tensor:
        return (torch.stack([cells % half.shape[1], cells // half.shape[1]], 1) + 0.5) * cell

    return centres(order[:count]), centres(order[len(order) - count :])
