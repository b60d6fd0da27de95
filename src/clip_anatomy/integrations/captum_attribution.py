"""Our maps as an attribution method of Captum: `.attribute(inputs, target)`, its noise tunnel and its metrics."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, MissingExtra
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.public_functions import public
from clip_anatomy.towers.forward import encode
from clip_anatomy.towers.transformer import Transformer

__all__ = ["to_captum"]

Target = int | Sequence[int] | Tensor | None


@public
def to_captum(clip: Clip, texts: Sequence[str] | Tensor | Texts, method: str = "decomposition", **options: Any) -> Any:
    """Return a method of `heatmap` as a `captum.attr.Attribution`.

    Its `attribute(inputs, target)` takes preprocessed pixels [image, 3, row, col] and the number of a text (one, or one for each image), and gives as
    many numbers as there are pixels: each patch's value spread evenly over its pixels and colours, so that they sum to the map. Its `forward_func`
    gives cosines [image, text], of transformers with gradients, which Captum's own methods take as well: `captum.attr.IntegratedGradients(found.forward_func)`.

    Args:
        clip: the model.
        texts: what is attributed: the targets, in this order.
        method: of `heatmap`.
        **options: of the method; `against="nothing"` by default, so that decomposition's values are shares of the cosine itself.

    Returns:
        captum.attr.Attribution.

    Raises:
        MissingExtra: Captum is not installed.
        BadInput: from `attribute`: no target where there are several texts, or one that is not there.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> found = ca.to_captum(clip, ["a bird", "a fish"])
        >>> found.attribute(clip.pixels(examples()[:2]), target=1).shape
        torch.Size([2, 3, 64, 64])
    """
    try:
        from captum.attr import Attribution
        from captum.log import log_usage  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise MissingExtra("captum", "captum") from error
    typed = Texts.of(clip, texts)
    unit = F.normalize(typed.embeddings, dim=-1)
    settings: dict[str, Any] = {"against": "nothing"} | options

    tower = clip.vision
    run = partial(encode, tower) if isinstance(tower, Transformer) else tower.encode

    def cosines(pixels: Tensor) -> Float[Tensor, "image text"]:
        return F.normalize(run(pixels).float(), dim=-1) @ unit.T

    class MapAttribution(Attribution):
        """A method of `heatmap`."""

        @log_usage()
        def attribute(self, inputs: Tensor | tuple[Tensor, ...], target: Target = None) -> Any:
            """Spread each patch's value over its pixels."""
            pixels = inputs[0] if isinstance(inputs, tuple) else inputs
            chosen = chosen_texts(target, len(pixels), typed.names)
            maps = heatmap(clip, pixels.detach(), typed, method, **settings).values
            one = maps[range(len(maps)), chosen][:, None]
            room = pixels[0].numel() / one[0].numel()
            spread = F.interpolate(one, pixels.shape[-2:], mode="nearest").expand_as(pixels) / room
            return (spread,) if isinstance(inputs, tuple) else spread

    forward: Callable[..., Any] = cosines
    return MapAttribution(forward)


def chosen_texts(target: Target, images: int, names: Sequence[str]) -> list[int]:
    """Return the number of the text of each image.

    Example:
        >>> chosen_texts(1, 3, ["a bird", "a fish"]), chosen_texts([0, 1], 2, ["a bird", "a fish"])
        ([1, 1, 1], [0, 1])
    """
    if target is None and len(names) == 1:
        target = 0
    known = target.flatten().tolist() if isinstance(target, Tensor) else target
    chosen = [known] * images if isinstance(known, int) else list(known or ())
    if len(chosen) == 1:
        chosen *= images
    if len(chosen) != images or not all(0 <= at < len(names) for at in chosen):
        raise BadInput(
            f"target={target!r} of {images} images and {len(names)} texts. Type: target=0 to {len(names) - 1}, or one for each image"
        )
    return chosen
