"""What pytorch-grad-cam asks of a model: a module that gives scores, a layer to hook, and how tokens become a picture."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.attention import layer_of
from clip_anatomy.maps.gradients import embed_unit, run_last_blocks, stream_into
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.public_functions import public
from clip_anatomy.towers.operations import before_attention
from clip_anatomy.towers.transformer import as_transformer

__all__ = ["GradCamLayers", "to_grad_cam"]


class GradCamLayers(NamedTuple):
    """The first three arguments of every class of pytorch-grad-cam: `GradCAM(**found._asdict())`.

    Attributes:
        model: pixels [image, 3, row, col] → cosines [image, text].
        target_layers: the place whose activations are weighed.
        reshape_transform: tokens [image, token, width] → [image, width, row, col], the class token left out.
    """

    model: nn.Module
    target_layers: list[nn.Module]
    reshape_transform: Callable[[Tensor], Tensor]


class TokenScores(nn.Module):
    """A CLIP's cosines with some texts, with one place in its tower that can be hooked: the host's own module is not touched."""

    def __init__(self, clip: Clip, texts: Float[Tensor, "text embed"], layer: int) -> None:
        """Borrow the tower."""
        super().__init__()
        self.tower, self.layer, self.grid = as_transformer(clip.vision), layer, clip.image_tower.grid
        self.texts = nn.Parameter(F.normalize(texts, dim=-1), requires_grad=False)  # tells the device
        self.tokens = nn.Identity()

    def forward(self, pixels: Float[Tensor, "image 3 row col"]) -> Float[Tensor, "image text"]:
        """Run the tower; gradients begin at the hooked tokens."""
        self.grid = patch_grid(pixels.shape[-2:], self.tower.patch)
        with torch.no_grad():
            tower, x, readout = stream_into(self.tower, pixels, self.layer)
            normed = before_attention(tower.blocks[self.layer], x)
        normed = self.tokens(normed.detach().requires_grad_())
        last, _ = run_last_blocks(tower, self.layer, x, readout, normed=normed)
        return embed_unit(tower, last, readout) @ self.texts.T

    def as_picture(self, tokens: Tensor) -> Float[Tensor, "image width row col"]:
        """Lay the patches' tokens out as they lie in the picture."""
        return tokens[:, self.tower.own :].unflatten(1, self.grid).permute(0, 3, 1, 2)


@public
def to_grad_cam(clip: Clip, texts: Sequence[str] | Tensor | Texts, layer: int = -1) -> GradCamLayers:
    """Return what the classes of pytorch-grad-cam take, so that any of them runs on a model that was never hooked or changed.

    Targets are numbers of texts: `ClassifierOutputTarget(0)`. Its GradCAM then is our `gradcam`, scaled to 0..1. Methods that need gradients of
    the pixels (`compute_input_gradient`) or replace layers (AblationCAM) have nothing to hold on to here.

    Args:
        clip: the model, a transformer.
        texts: what is scored.
        layer: the block whose ln1 output is weighed, counted from the end if negative.

    Returns:
        GradCamLayers.

    Raises:
        BadSpec: there is no such layer.
        UnsupportedModel: a CLIP-ResNet, or a tower that its own library runs.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> model, layers, as_picture = ca.to_grad_cam(clip, ["a bird", "a fish"])
        >>> model(clip.pixels(examples()[:1])).shape
        torch.Size([1, 2])
    """
    model = TokenScores(clip, Texts.of(clip, texts).embeddings, layer_of(as_transformer(clip.vision), layer, "layer"))
    return GradCamLayers(model.eval(), [model.tokens], model.as_picture)
