"""`heatmap`: every method behind one function, one registry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.anatomy.tokens import TokenSource, token_contributions
from clip_anatomy.errors import BadSpec
from clip_anatomy.maps.dense import RECIPES, dense_tokens
from clip_anatomy.maps.surgery import feature_surgery, single_text
from clip_anatomy.model.clip import Clip, Images

BATCH = 16


@dataclass(frozen=True)
class Maps:
    """One map per image and text.

    Attributes:
        values: the method's own numbers, not stretched: cosines, shares of a cosine, or surgery's differences.
        method: which method made them.
    """

    values: Float[Tensor, "image text row col"]
    method: str

    def stretched(self) -> Float[Tensor, "image text row col"]:
        """Each map from 0 to 1 (maps of different texts are then not on one scale)."""
        low, high = self.values.amin((2, 3), keepdim=True), self.values.amax((2, 3), keepdim=True)
        return (self.values - low) / (high - low).clamp_min(1e-12)

    def resized(self, size: tuple[int, int]) -> "Maps":
        """Bilinear to (row, col) pixels."""
        return Maps(F.interpolate(self.values, size, mode="bilinear", align_corners=False), self.method)


# A method takes pixels [image, 3, row, col] and text embeddings to similarities [image, token, text], class token first.
Method = Callable[[Clip, Tensor, Tensor], Tensor]


def _decomposition(clip: Clip, pixels: Tensor, text: Tensor) -> Tensor:
    shares, _ = token_contributions(TokenSource(clip.image_tower, pixels), text, "own")
    total = shares.sum((1, 2))
    return total if len(text) == 1 else total - total.mean(-1, keepdim=True)


def _surgery(clip: Clip, pixels: Tensor, text: Tensor) -> Tensor:
    tokens = dense_tokens(clip.image_tower, pixels, RECIPES["surgery"])
    return single_text(tokens, text, clip.encode_text([""])) if len(text) == 1 else feature_surgery(tokens, text)


def _dense(name: str) -> Method:
    def similarity(clip: Clip, pixels: Tensor, text: Tensor) -> Tensor:
        tokens = dense_tokens(clip.image_tower, pixels, RECIPES[name])
        return F.normalize(tokens, dim=-1) @ F.normalize(text.float(), dim=-1).T

    return similarity


METHODS: dict[str, Method] = {
    "decomposition": _decomposition,
    "surgery": _surgery,
    **{name: _dense(name) for name in RECIPES if name != "surgery"},
}


def heatmap(clip: Clip, images: Images | Tensor, texts: Sequence[str] | Tensor, method: str = "decomposition") -> Maps:
    """Show where in each image each text is answered.

    Methods: "decomposition" (exact share of the cosine written from each patch by the heads, minus the mean over the texts when
    there are several; Gandelsman et al. 2024, §4.3); "surgery" (CLIP Surgery, feature surgery over the texts, or against the
    empty text when there is one); "raw" (cosine of the last patch tokens); "maskclip", "maskclip_ffn", "sclip", "clearclip",
    "naclip", "kk", "gem" (see `maps.dense`).

    Args:
        clip: an opened model.
        images: paths, PIL images, arrays, or a preprocessed tensor [image, 3, row, col] of any size in patches.
        texts: strings, or embeddings [text, embed].
        method: a name of METHODS.

    Returns:
        Maps at patch resolution.

    Raises:
        BadSpec: unknown method.
        BadImage: an image cannot be used.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.model.demo import examples
        >>> maps = heatmap(ca.load("demo"), examples()[:1], ["a bird", "the sky"], method="surgery")
        >>> maps.values.shape
        torch.Size([1, 2, 8, 8])
    """
    if method not in METHODS:
        raise BadSpec(f"method {method!r} is not known. Type one of: {', '.join(METHODS)}")
    pixels = clip.pixels(images)
    text = texts if isinstance(texts, Tensor) else clip.encode_text(texts)
    text = text.to(clip.device)
    found = torch.cat([METHODS[method](clip, part, text) for part in pixels.split(BATCH)])
    row, col = clip.patch
    grid = (pixels.shape[2] // row, pixels.shape[3] // col)
    return Maps(found[:, 1:].transpose(1, 2).unflatten(2, grid).float(), method)
