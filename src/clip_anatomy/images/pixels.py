"""Pictures of any kind → the tensor a model takes.

    path · PIL · array · tensor ─▶ decode.read_image ─▶ Preprocess: resize ─▶ crop or pad ─▶ RGB ─▶ 0..1 ─▶ normalise

Where the pixels of the result lie in the original is `Preprocess.geometry`.
"""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadImage
from clip_anatomy.images.decode import ImageLike, label_of, read_image
from clip_anatomy.images.geometry import Box, Geometry
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess

__all__ = [
    "OPENAI_MEAN",
    "OPENAI_STD",
    "Box",
    "Geometry",
    "ImageLike",
    "Preprocess",
    "is_preprocessed",
    "listed",
    "prepare",
    "read_image",
]

_LARGEST_NORMALISED = 8.0  # white is below 3 with the means and deviations of every published CLIP


def prepare(
    sources: ImageLike | Iterable[ImageLike] | object,
    preprocess: Preprocess,
    *,
    allow_urls: bool = False,
    upright: bool = True,
) -> Float[Tensor, "image 3 row col"]:
    """Read and preprocess pictures.

    Args:
        sources: one picture or several (a list, a generator, an array [image, row, col, 3], a uint8 tensor
            [image, 3, row, col]); see `read_image` for the kinds. A float tensor [image, 3, row, col] counts as
            preprocessed and is handed back as it is, whatever its size, once its values are known to be finite.
        preprocess: how the model wants them.
        allow_urls: fetch http(s) addresses.
        upright: turn photographs by their EXIF orientation first; open_clip does not.

    Returns:
        Normalised pixels in float32 (a preprocessed tensor: in its own dtype).

    Raises:
        BadImage: the first picture that cannot be used, by its place in the list. `data.picture_batches` goes on instead.

    Example:
        >>> preprocess = Preprocess(size=(32, 32), mean=OPENAI_MEAN, std=OPENAI_STD)
        >>> prepare([Image.new("RGB", (40, 30)), np.zeros((64, 64, 3), dtype=np.uint8)], preprocess).shape
        torch.Size([2, 3, 32, 32])
    """
    if isinstance(sources, Tensor) and is_preprocessed(sources):
        _refuse_not_finite(sources)
        _refuse_pictures(sources)
        return sources
    alone, pictures = listed(sources)
    inputs: list[Tensor] = []
    for index, picture in enumerate(pictures):
        try:
            inputs.append(preprocess(read_image(picture, allow_urls=allow_urls, upright=upright, keep_mode=True)))
        except BadImage as error:
            raise error if alone else BadImage(f"image {index}: {error}") from error
    if not inputs:
        raise BadImage("no picture was given. Type the path of at least one")
    if len(shapes := {tuple(one.shape[1:]) for one in inputs}) > 1:
        sizes = " and ".join(f"{rows} × {cols}" for rows, cols in sorted(shapes)[:2])
        raise BadImage(
            f"this model looks at each picture in a shape of its own, and these become {sizes} pixels. Type one picture at a time, or "
            "explain, heatmap, index, which put those of one shape together"
        )
    return torch.stack(inputs)


def listed(sources: object) -> tuple[bool, Iterable[Any]]:
    """Tell whether it is one picture, and return an iterable of pictures either way."""
    if isinstance(sources, Tensor | np.ndarray):
        return (False, iter(sources)) if sources.ndim == 4 else (True, [sources])
    if isinstance(sources, str | PathLike | Image.Image | bytes) or hasattr(sources, "read"):
        return True, [sources]
    if isinstance(sources, Iterable) and not isinstance(sources, Mapping):
        return False, sources
    raise BadImage(f"{label_of(sources)} is neither a picture nor a list of them. Type a path, or a list of paths")


def is_preprocessed(tensor: Tensor) -> bool:
    """Tell whether a tensor is a batch [image, 3, row, col] that was normalised already; BadImage where it is nearly one."""
    if tensor.ndim != 4 or not tensor.is_floating_point():
        return False
    if tensor.shape[1] != 3:
        fix = "tensor.permute(0, 3, 1, 2)" if tensor.shape[3] == 3 else "tensor[:, :3]"
        raise BadImage(f"{label_of(tensor)}: preprocessed images are [image, 3, row, col]. Type: {fix}")
    if not tensor.numel():
        raise BadImage(f"{label_of(tensor)} has no pixels. Type one with at least one image, row and column")
    return True


def _refuse_pictures(tensor: Float[Tensor, "image 3 row col"]) -> None:
    """Raise BadImage where floats that should be normalised are pictures in 0..1 or 0..255: normalised, some are below 0."""
    low, high = (float(one) for one in tensor.aminmax())
    flat = torch.equal(tensor.amin((2, 3)), tensor.amax((2, 3)))  # one colour all over is a probe, not a picture
    if low >= 0 and not flat and (high <= 1.01 or high > _LARGEST_NORMALISED):
        scale, fix = ("0..1", "list(tensor)") if high <= 1.01 else ("0..255", "tensor.to(torch.uint8)")
        raise BadImage(
            f"{label_of(tensor)} runs from {low:g} to {high:g}, as pictures in {scale} do; a float batch is taken as normalised. "
            f"Type: {fix} for pictures, clip.vision.encode(tensor) if it is normalised all the same"
        )


def _refuse_not_finite(tensor: Float[Tensor, "image 3 row col"]) -> None:
    for index in (~torch.isfinite(tensor).flatten(1).all(1)).nonzero().flatten().tolist():
        bad = int((~torch.isfinite(tensor[index])).sum())
        raise BadImage(
            f"image {index}: {bad:,} of its values are NaN or infinite. Type: torch.nan_to_num(tensor), or drop it"
        )
