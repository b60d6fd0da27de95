"""Which layer saw it: the exact map split by layer, and summed up to each layer."""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture_batches import picture_batches
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.split.tokens import TokenSource, token_contributions

__all__ = ["cumulative", "layer_maps"]


def layer_maps(
    clip: Clip,
    images: Images | Tensor,
    texts: Sequence[str] | Tensor | Texts,
    *,
    size: Size = None,
    minus_mean: bool | None = None,
) -> list[Maps]:
    """Split the map of `heatmap(..., method="decomposition")` by layer: what the heads of each read from every patch.

    Source: Gandelsman et al., "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR 2024), §3 and §4.3.

    Args:
        clip: an opened model.
        images: as for `heatmap`.
        texts: as for `heatmap`.
        size: as for `heatmap`.
        minus_mean: take away the mean over the texts; None: where there are several.

    Returns:
        One `Maps` per layer, the first layer first; they sum to the whole map.

    Raises:
        BadImage: an image cannot be used.
        BadText: no text, one that is blank or stands twice.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> each = layer_maps(clip, examples()[:1], ["a bird"])
        >>> whole = ca.heatmap(clip, examples()[:1], ["a bird"])
        >>> bool((sum(maps.values for maps in each) - whole.values).abs().max() < 1e-6)
        True
    """
    asked = Texts.of(clip, texts)
    if clip.vision.layers == 1:  # the whole map
        whole = heatmap(clip, images, asked, size=size, minus_mean=minus_mean)
        return [replace(whole, method="decomposition, layer 0")]
    text = F.normalize(asked.embeddings, dim=-1)
    several = len(asked) > 1 if minus_mean is None else minus_mean
    found: list[tuple[tuple[int, ...], list[Maps]]] = []
    for batch in picture_batches(
        clip, images, size, batch=1
    ):  # a map per layer, head and text is held while one picture runs
        shares, _ = token_contributions(TokenSource(clip.image_tower, batch.pixels), text, "centered")
        by_layer: Float[Tensor, "image layer token text"] = shares.sum(2)[:, :, 1:]
        if several:
            by_layer = by_layer - by_layer.mean(-1, keepdim=True)
        values = by_layer.permute(0, 1, 3, 2).unflatten(3, patch_grid(batch.pixels.shape, clip.patch)).float()
        each = [
            Maps(values[:, layer], f"decomposition, layer {layer}", asked.names, batch.geometries)
            for layer in range(values.shape[1])
        ]
        found.append((batch.places, each))
    found.sort(key=lambda one: one[0])
    return [Maps.joined(list(of_layer)) for of_layer in zip(*(each for _, each in found), strict=True)]


def cumulative(each: Sequence[Maps]) -> list[Maps]:
    """Sums up to and with each layer: the last is the whole map.

    Args:
        each: from `layer_maps`.
    """
    total = each[0].values.new_zeros(each[0].values.shape)
    found: list[Maps] = []
    for layer, maps in enumerate(each):
        total = total + maps.values
        found.append(Maps(total, f"decomposition, layers 0 to {layer}", maps.texts, maps.geometries))
    return found
