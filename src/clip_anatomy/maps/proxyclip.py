"""ProxyCLIP: values of the last block, mixed by another model's affinity of patches (Lan et al. 2024, §3)."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_attention import DenseAttention, dense_path, similarities


@dataclass(frozen=True)
class ProxyOptions:
    """Hold the affinity of patches and how it is sharpened.

    Attributes:
        affinity: [patch, patch] or [image, patch, patch]: how alike patches are, by any model (cosines of DINO's patches, of
            segments, of positions …), patches row by row of CLIP's grid. Needed.
        beta: what is less alike than beta times the mean of the matrix does not count.
        gamma: sharpness of the softmax.
        residual: start from the residual stream (the paper does not).
        ffn: run the last MLP on the result (the paper does not).
    """

    affinity: Tensor | np.ndarray | None = field(default=None, compare=False)
    beta: float = 1.2
    gamma: float = 3.0
    residual: bool = False
    ffn: bool = False

    def of_images(self, images: list[int]) -> "ProxyOptions":
        """Return the options with the matrices of some images only, by their numbers."""
        if self.affinity is None:
            return self
        known = torch.as_tensor(self.affinity)
        if known.dim() != 3:
            return replace(self, affinity=known)
        if max(images) >= len(known):
            raise BadSpec(f"affinity has {len(known)} matrices; image {max(images)} has none. Type: one per image")
        return replace(self, affinity=known[images])


def guide(
    affinity: Float[Tensor, "image query token"], beta: float, gamma: float
) -> Float[Tensor, "image query token"]:
    """Take the softmax of γ (S − β · mean S) over the tokens; negatives are masked, and a row of nothing else keeps its own patch.

    Example:
        >>> guide(torch.eye(3)[None], beta=1.2, gamma=3.0)[0]
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    scores = (affinity - beta * affinity.mean((1, 2), keepdim=True)) * gamma
    alone = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device) & (scores < 0).all(2, keepdim=True)
    return scores.masked_fill((scores < 0) & ~alone, float("-inf")).softmax(-1)


def proxyclip(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: ProxyOptions
) -> Float[Tensor, "image token text"]:
    """Compare every patch's guided token with every text by cosine."""
    rows, cols = patch_grid(pixels.shape, clip.patch)
    patches = rows * cols
    affinity = options.affinity if options.affinity is None else torch.as_tensor(options.affinity)
    if affinity is None or affinity.dim() not in (2, 3) or affinity.shape[-2:] != (patches, patches):
        shape = "nothing" if affinity is None else list(affinity.shape)
        raise BadSpec(
            f"affinity is {shape}; [{patches}, {patches}] or [image, {patches}, {patches}] was expected, patches of "
            f"{rows} × {cols} row by row. Type: affinity=unit @ unit.T of another model's patches"
        )
    if not affinity.isfinite().all():
        raise BadSpec("affinity holds NaN or infinite values. Type: torch.nan_to_num(affinity)")
    each = affinity.to(pixels.device).float().expand(len(pixels), patches, patches)
    variant = DenseAttention(("given",), residual=options.residual, ffn=options.ffn)
    tokens, _ = dense_path(clip.image_tower, pixels, variant, guide(each, options.beta, options.gamma))
    return similarities(tokens, text)
