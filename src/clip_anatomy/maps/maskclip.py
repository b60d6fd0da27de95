"""MaskCLIP: the values of the last block, and the paper's two refinements of its predictions (Zhou et al. 2022, §3.2–3.3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_attention import DenseAttention, dense_path, keys, similarities


@dataclass(frozen=True)
class MaskclipOptions:
    """Which MaskCLIP: publications differ.

    Attributes:
        residual: add the values to the residual stream (as published) or not (as later papers run it).
        ffn: run the last MLP on the result; likewise.
        denoise: prompt denoising: a text whose probability is below this in every patch is taken for absent: cosine −1. The
            paper's value is 0.5; None for off.
        smooth_keys: key smoothing: the result is each text's probability, averaged over the patches with the cosine of their
            keys as weight. Keys are normalised over their features, as the paper says; its code normalises over the patches.
    """

    residual: bool = False
    ffn: bool = False
    denoise: float | None = None
    smooth_keys: bool = False

    def __post_init__(self) -> None:
        """Refuse a probability that is none."""
        check_probability(self.denoise)


def check_probability(denoise: float | None) -> None:
    """Raise BadSpec for a threshold of prompt denoising that is no probability."""
    if denoise is not None and not 0 < denoise < 1:
        raise BadSpec(f"denoise={denoise!r} is no probability between 0 and 1. Type: denoise=0.5")


def denoised(
    cosine: Float[Tensor, "image token text"], scale: float, threshold: float
) -> Float[Tensor, "image token text"]:
    """Set cosines to −1 for each text whose probability reaches the threshold in no patch of the image."""
    most = (cosine * scale).softmax(-1).amax(1, keepdim=True)
    return cosine.masked_fill(most < threshold, -1.0)


def smoothed(
    cosine: Float[Tensor, "image token text"], key: Float[Tensor, "image token width"], scale: float
) -> Float[Tensor, "image token text"]:
    """Average the texts' probabilities over patches: mean_j cos(k_i, k_j) p_j."""
    unit = torch.nn.functional.normalize(key.float(), dim=-1)
    return unit @ (unit.transpose(1, 2) @ (cosine * scale).softmax(-1)) / key.shape[1]


def maskclip(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: MaskclipOptions
) -> Float[Tensor, "image token text"]:
    """Compare every patch's value with every text by cosine, refined by the options."""
    variant = DenseAttention(("identity",), residual=options.residual, ffn=options.ffn)
    tokens, step = dense_path(clip.image_tower, pixels, variant)
    maps = similarities(tokens, text)
    if options.denoise is not None:
        maps = denoised(maps, clip.logit_scale, options.denoise)
    if options.smooth_keys:
        maps = smoothed(maps, keys(clip.image_tower, step)[:, clip.image_tower.own :], clip.logit_scale)
    return maps
