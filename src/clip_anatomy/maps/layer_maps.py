"""Which layer saw it: the exact map split by layer, and summed up to each layer."""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture_batches import Pictures, picture_batches
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.contrast import NEUTRAL, Against, Contrast
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.public_functions import public
from clip_anatomy.split.tokens import TokenSource, token_contributions

__all__ = ["cumulative", "layer_maps"]


@public
def layer_maps(
    clip: Clip,
    images: Pictures,
    texts: Sequence[str] | Tensor | Texts,
    *,
    size: Size = None,
    against: Against | Contrast = NEUTRAL,
) -> list[Maps]:
    """Split the map of `heatmap(..., method="decomposition")` by layer: what the heads of each read from every patch.

    Source: Gandelsman et al., "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR 2024), §3 and §4.3.

    Args:
        clip: an opened model.
        images: as for `heatmap`.
        texts: as for `heatmap`.
        size: as for `heatmap`.
        against: as for `heatmap`.

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
    embedded = Texts.of(clip, texts)
    if clip.vision.layers == 1:  # the whole map
        whole = heatmap(clip, images, embedded, size=size, against=against)
        return [replace(whole, method="decomposition, layer 0")]
    contrast = embedded.contrast(clip, against)
    text = contrast.subtracted_from(F.normalize(embedded.embeddings, dim=-1))
    length = text.norm(dim=-1)  # texts are made unit where shares are computed: each map is given it back
    by_layer: dict[int, list[Maps]] = {}
    places: list[int] = []
    for batch in picture_batches(clip, images, size):
        for at, pixels in enumerate(batch.pixels.split(1)):  # one by one: a map per layer, head and text is held
            shares, _ = token_contributions(TokenSource(clip.image_tower, pixels), text, "centered")
            layers: Float[Tensor, "layer token text"] = shares[0].sum(1)[:, clip.image_tower.own :] * length.to(shares)
            values = layers.transpose(1, 2).unflatten(2, patch_grid(pixels.shape, clip.patch)).float()
            known = None if batch.geometries is None else batch.geometries[at : at + 1]
            pictures = None if batch.pictures is None else batch.pictures[at : at + 1]
            for layer, one in enumerate(values.split(1)):
                name = f"decomposition, layer {layer}"
                maps = Maps(one, name, embedded.names, known, pictures, subtracted=contrast.description)
                by_layer.setdefault(layer, []).append(maps)
        places += batch.places
    return [Maps.joined(maps).in_order(places) for maps in by_layer.values()]


def cumulative(each: Sequence[Maps]) -> list[Maps]:
    """Sum the maps up to and with each layer: the last is the whole map.

    Args:
        each: from `layer_maps`.
    """
    total = each[0].values.new_zeros(each[0].values.shape)
    sums: list[Maps] = []
    for layer, maps in enumerate(each):
        total = total + maps.values
        sums.append(replace(maps, values=total, method=f"decomposition, layers 0 to {layer}"))
    return sums
