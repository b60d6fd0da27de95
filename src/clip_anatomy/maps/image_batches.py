"""How a picture is looked at: through the model's own crop, or whole at a size of its own; and where its pixels went."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import index
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.decode import read_image
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.images.pixels import is_preprocessed, listed
from clip_anatomy.images.preprocess import Preprocess
from clip_anatomy.loading.clip import Clip, Images

LARGEST_CELLS = 2**16  # patches of one picture: beyond it a picture is a slip of the finger, not a map

MOST_CELLS = 4096  # patches of a picture whose size nobody named: attention takes their square

Size = int | tuple[int, int] | Literal["whole"] | None
"""None: the model's own resize and crop. "whole": nothing cropped, the model's own short side, fewer pixels for very long pictures.
A number: the short side in pixels, nothing cropped. (row, col): squashed to these."""


@dataclass(frozen=True)
class Look:
    """What the model sees of pictures of one shape.

    Attributes:
        images: their places among what was handed in.
        pixels: on the model's device, in its dtype.
        geometries: where the pixels lie in the originals; None for tensors that came preprocessed.
    """

    images: tuple[int, ...]
    pixels: Float[Tensor, "image 3 row col"]
    geometries: tuple[Geometry, ...] | None


def looks(clip: Clip, images: Images | Tensor, size: Size, batch: int, *, own: bool = False) -> Iterator[Look]:
    """Read pictures and hand them out in batches of one shape, in order as far as shapes allow; nothing is read ahead of need.

    Args:
        clip: gives the preprocessing and the patch.
        images: as for `Clip.pixels`.
        size: see `Size`; sides are rounded to whole patches.
        batch: most pictures at once.
        own: without a size, keep a picture's own pixels instead of the model's resize and crop.

    Yields:
        One `Look` per batch.

    Raises:
        BadImage: an image cannot be used; its place is named when there are several.
        BadSpec: a size for tensors that are preprocessed already, or one that is none.
    """
    if isinstance(images, Tensor) and is_preprocessed(images):
        if size is not None:
            raise BadSpec("size= is for pictures; a preprocessed tensor has its size. Type: heatmap without size=")
        whole = clip.pixels(images)
        for first in range(0, len(whole), batch):
            part = whole[first : first + batch]
            yield Look(tuple(range(first, first + len(part))), part, None)
        return
    waiting: dict[tuple[int, int], list[tuple[int, Tensor, Geometry]]] = {}
    alone, pictures = listed(images)
    count = 0
    for count, source in enumerate(pictures, start=1):
        try:
            picture = read_image(source, keep_mode=True)
            pixels_of = picture.height, picture.width
            preprocess = sized(clip, pixels_of, pixels_of if own and size is None else size)
            pixels = preprocess(picture)
        except BadImage as error:
            raise error if alone else BadImage(f"image {count - 1}: {error}") from error
        group = waiting.setdefault(preprocess.size, [])
        group.append((count - 1, pixels, preprocess.geometry(*picture.size)))
        if len(group) == batch:
            yield _together(clip, waiting.pop(preprocess.size))
    if not count:
        raise BadImage("no picture was given. Type the path of at least one")
    for group in waiting.values():
        yield _together(clip, group)


def sized(clip: Clip, picture: tuple[int, int], size: Size) -> Preprocess:
    """The preprocessing for one picture of (row, col) pixels: the model's own, or to whole patches without a crop.

    Raises:
        BadSpec: a size that is none, or too large.
    """
    if size is None:
        return clip.preprocess
    wanted = _pixels(clip, picture, size)
    sides = [max(1, round(side / patch)) * patch for side, patch in zip(wanted, clip.patch, strict=True)]
    if sides[0] * sides[1] > LARGEST_CELLS * clip.patch[0] * clip.patch[1]:
        raise BadSpec(
            f"size {size!r} makes {sides[0]} × {sides[1]} pixels of this picture. Type a smaller one: size={clip.preprocess.size[0]}"
        )
    return replace(clip.preprocess, size=(sides[0], sides[1]), resize="squash")


def _pixels(clip: Clip, picture: tuple[int, int], size: int | tuple[int, int] | str) -> tuple[float, float]:
    """(row, col) before they are rounded to whole patches."""
    if size == "whole":
        scale = min(clip.preprocess.size) / min(picture)
        most = MOST_CELLS * clip.patch[0] * clip.patch[1]
        scale *= min(1.0, (most / (picture[0] * picture[1] * scale * scale)) ** 0.5)
        return picture[0] * scale, picture[1] * scale
    try:
        given = [index(side) for side in (size if isinstance(size, tuple | list) else (size,))]  # pyright: ignore[reportArgumentType]
    except TypeError:
        given = []
    if len(given) not in (1, 2) or min(given) < 1:
        raise BadSpec(
            f"size {size!r}: pixels were expected. Type: size=336 (the short side), size=(336, 448) or size='whole'"
        )
    if len(given) == 2:
        return float(given[0]), float(given[1])
    scale = given[0] / min(picture)
    return picture[0] * scale, picture[1] * scale


def _together(clip: Clip, group: list[tuple[int, Tensor, Geometry]]) -> Look:
    numbers, pixels, geometries = zip(*group, strict=True)
    stacked = torch.stack(list(pixels))
    return Look(numbers, clip.pixels(stacked), geometries)
