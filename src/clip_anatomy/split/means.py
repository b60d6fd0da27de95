"""`Means`: the mean contribution of every part, also of those that `Moments` does not keep (MLPs, input embedding, class-to-class)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import BATCH, Clip, Images
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.split.layernorm import Convention
from clip_anatomy.split.parts import decompose
from clip_anatomy.split.tokens import token_contributions

__all__ = ["Means"]


@public
@dataclass(frozen=True, repr=False)
class Means(Compact):
    """Mean contribution of each part over many images, divided by ‖embedding‖.

    Attributes:
        count: images.
        heads: of each head.
        mlps: of each MLP.
        input_embedding: of the residual stream before the first block.
        class_to_class: of what each head's class token read from itself; None when it was not asked for.
        model: digest of the model.
        convention: how LayerNorm's mean and the biases were shared.
        mixed: of Σ a v of each head at the class token, not divided and in the head's own d: what is held in a re-run. None where the
            model has no such row.
        mlp_writes: of what each MLP writes there, likewise.
    """

    count: int
    heads: Float64[Tensor, "layer head embed"]
    mlps: Float64[Tensor, "mlp embed"]
    input_embedding: Float64[Tensor, " embed"]
    class_to_class: Float64[Tensor, "layer head embed"] | None
    model: str
    convention: str = "centered"
    mixed: Float64[Tensor, "layer head d"] | None = None
    mlp_writes: Float64[Tensor, "layer width"] | None = None

    @staticmethod
    def of(
        clip: Clip,
        images: "Images | Tensor | Iterable[Tensor]",
        *,
        class_to_class: bool = False,
        convention: Convention = "centered",
    ) -> "Means":
        """Measure them: one pass over the images, in constant memory.

        Args:
            clip: an opened model.
            images: paths, PIL images, arrays, a preprocessed tensor [image, 3, row, col], or a stream of such tensors.
            class_to_class: also those of class-to-class attention, which takes one more forward.
            convention: how LayerNorm's mean and the biases are shared.

        Raises:
            BadImage: an image cannot be used.
            BadInput: no image, or contributions that are not finite.

        Example:
            >>> import clip_anatomy as ca
            >>> from clip_anatomy.loading.demo import examples
            >>> clip = ca.load("demo")
            >>> Means.of(clip, examples()[:2]).count
            2
        """
        count, sums = 0, list[Tensor]()
        raw = clip.vision.architecture == "transformer" and clip.vision.has_class_token
        for batch in _batches(clip, images):
            parts = decompose(clip, batch, convention)
            length = parts.embedding.norm(dim=-1).double()
            contributions = [parts.heads, parts.mlps, parts.input_embedding]
            scaled = [x.double() / length.view(-1, *[1] * (x.dim() - 1)) for x in contributions]
            if class_to_class:
                axes = torch.eye(clip.vision.embed, device=parts.embedding.device)
                own, _ = token_contributions(parts.source, axes, convention, only_readout=True)
                scaled.append(own[:, :, :, 0].double())
            if raw:
                scaled += [parts.trace.mixed.double(), parts.trace.mlp.double()]
            added = [x.sum(0).cpu() for x in scaled]
            sums = added if not sums else [a + b for a, b in zip(sums, added, strict=True)]
            count += len(batch)
        if not count:
            raise BadInput("no image to take means of: give at least one.")
        means = [x / count for x in sums]
        if not all(bool(torch.isfinite(x).all()) for x in means):
            raise BadInput("the model's output on these images is not finite. Load it with dtype='float32'")
        mixed, wrote = means[-2:] if raw else (None, None)
        own_mean = means[3] if class_to_class else None
        return Means(count, means[0], means[1], means[2], own_mean, clip.digest, convention, mixed, wrote)


def _batches(clip: Clip, images: "Images | Tensor | Iterable[Tensor]") -> Iterable[Tensor]:
    if isinstance(images, Tensor | np.ndarray | str) or not isinstance(images, Iterable):
        yield from clip.pixels(images).split(BATCH)
        return
    waiting: list[Any] = []
    for image in images:
        if isinstance(image, Tensor) and image.dim() == 4:
            yield from clip.pixels(image).split(BATCH)
            continue
        waiting.append(image)
        if len(waiting) == BATCH:
            yield clip.pixels(waiting)
            waiting = []
    if waiting:
        yield clip.pixels(waiting)
