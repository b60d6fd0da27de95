"""The one picture loop: read pictures, name those that cannot be used, hand out the others in batches of one shape."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.data.picture import SUFFIXES
from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.decode import ImageLike, read_image
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.images.input_size import Size, sized
from clip_anatomy.images.pixels import is_preprocessed, listed
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.progress import Progress, silent

__all__ = ["Failed", "NamedPicture", "PictureBatch", "Pictures", "named_pictures", "picture_batches"]

Failed = tuple[str, str]
"""Name and error of a picture that could not be used."""


@dataclass(frozen=True)
class NamedPicture:
    """A picture, and what it is called.

    Attributes:
        image: a path, an address, or an image in memory.
        name: what it is called in results.
        caption: what is known about it.
    """

    image: ImageLike = field(repr=False)
    name: str
    caption: str = ""

    def read(self, *, keep_mode: bool = False, allow_urls: bool = False) -> Image.Image:
        """Decode it, upright and in RGB, or with `keep_mode` in its own colours.

        Raises:
            BadImage: it cannot be read (any more).
        """
        return read_image(self.image, keep_mode=keep_mode, allow_urls=allow_urls)


@dataclass(frozen=True)
class PictureBatch:
    """What the model sees of some pictures of one shape.

    Attributes:
        places: where they stand among what was handed in.
        pixels: on the model's device, in its dtype.
        geometries: where the pixels lie in the originals; None for tensors that came preprocessed.
        pictures: the originals; None likewise.
    """

    places: tuple[int, ...]
    pixels: Float[Tensor, "image 3 row col"]
    geometries: tuple[Geometry, ...] | None = None
    pictures: tuple[NamedPicture, ...] | None = None


Pictures = Images | Tensor | Iterable[NamedPicture] | PictureBatch
"""Whatever can be looked at: paths, PIL images, arrays, named pictures, a preprocessed tensor [image, 3, row, col], a batch."""


def picture_batches(
    clip: Clip,
    images: Pictures,
    size: Size = None,
    batch: int = 16,
    *,
    own: bool = False,
    allow_urls: bool = False,
    failed: list[Failed] | None = None,
    progress: Progress | None = None,
) -> Iterator[PictureBatch]:
    """Read pictures and hand them out in batches of one shape, in order as far as shapes allow; nothing is read ahead of need.

    Args:
        clip: gives the preprocessing and the patch.
        images: see `Pictures`; a batch is handed on as it is.
        size: see `Size`; sides are rounded to whole patches.
        batch: most pictures at once.
        own: without a size, keep a picture's own pixels instead of the model's resize and crop.
        allow_urls: fetch http(s) addresses.
        failed: where pictures that cannot be used are noted, so that the others are done; None to raise at the first of them.
        progress: told how many pictures were handed out.

    Yields:
        One `PictureBatch` after the other.

    Raises:
        BadImage: an image cannot be used (its place is named when there are several), or none of them can.
        BadSpec: a size for tensors that are preprocessed already, or one that is none.
    """
    if isinstance(images, PictureBatch):
        yield images
        return
    tell, total, done = progress or silent, len(images) if hasattr(images, "__len__") else None, 0  # pyright: ignore[reportArgumentType]
    if isinstance(images, Tensor) and is_preprocessed(images):
        if size is not None:
            raise BadSpec("size= is for pictures; a preprocessed tensor has its size. Type: heatmap without size=")
        for first, part in enumerate(clip.pixels(images).split(batch)):
            tell("looking at pictures", first * batch, total)
            yield PictureBatch(tuple(range(first * batch, first * batch + len(part))), part)
        return
    waiting: dict[tuple[int, int], list[tuple[int, Tensor, Geometry, NamedPicture]]] = {}
    alone, sources = (True, [images]) if isinstance(images, NamedPicture) else listed(images)
    count = 0
    tell("looking at pictures", 0, total)
    for count, source in enumerate(sources, start=1):
        named = source if isinstance(source, NamedPicture) else NamedPicture(source, _name_of(source, count - 1))
        try:
            image = named.read(keep_mode=True, allow_urls=allow_urls)
            sides = image.height, image.width
            preprocess = sized(clip.preprocess, clip.patch, sides, sides if own and size is None else size)
            pixels = preprocess(image)
        except BadImage as error:
            if failed is None:
                raise error if alone else BadImage(f"image {count - 1}: {error}") from error
            failed.append((named.name, str(error)))
            continue
        if _is_address(named.image):  # what was fetched once is not fetched again to be drawn
            named = NamedPicture(image, named.name, named.caption)
        group = waiting.setdefault(preprocess.size, [])
        group.append((count - 1, pixels, preprocess.geometry(*image.size), named))
        if len(group) == batch:
            yield _together(clip, waiting.pop(preprocess.size))
            done += batch
            tell("looking at pictures", done + len(failed or ()), total)
    if not count:
        raise BadImage("no picture was given. Type the path of at least one")
    if failed and len(failed) == count:
        raise _none_of(failed)
    for group in waiting.values():
        yield _together(clip, group)
        done += len(group)
        tell("looking at pictures", done + len(failed or ()), total)


def named_pictures(paths: Iterable[str | Path]) -> list[NamedPicture]:
    """Name pictures by their paths; a folder becomes the pictures in it, in the order of their names.

    Raises:
        BadImage: a folder without a picture.
    """
    found: list[NamedPicture] = []
    for path in paths:
        if _is_address(path) or not Path(path).is_dir():
            found.append(NamedPicture(path, _as_text(path)))
            continue
        inside = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not inside:
            raise BadImage(f"{_as_text(path)} is a folder without pictures. Type a folder with JPEG, PNG or WebP files")
        found += [NamedPicture(p, _as_text(p)) for p in inside]
    return found


def _together(clip: Clip, group: list[tuple[int, Tensor, Geometry, NamedPicture]]) -> PictureBatch:
    places, pixels, geometries, pictures = zip(*group, strict=True)
    return PictureBatch(places, clip.pixels(torch.stack(list(pixels))), geometries, pictures)


def _none_of(failed: list[Failed]) -> BadImage:
    if len(failed) == 1:
        return BadImage(failed[0][1])
    more = f"; and {len(failed) - 3:,} more" if len(failed) > 3 else ""
    why = "; ".join(error for _, error in failed[:3])
    return BadImage(
        f"none of the {len(failed)} pictures could be read ({why}{more}). Type the paths of pictures: photo.jpg"
    )


def _name_of(source: Any, place: int) -> str:
    in_memory = isinstance(source, Tensor | np.ndarray | Image.Image)
    return f"image {place}" if in_memory or not isinstance(source, str | os.PathLike) else _as_text(source)


def _as_text(path: Any) -> str:
    """A file name as it can be printed, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "replace")


def _is_address(source: Any) -> bool:
    return isinstance(source, str) and "://" in source
