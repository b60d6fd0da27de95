"""The one picture loop: read pictures, name those that cannot be used, hand out the others in batches of one shape."""

import os
from collections.abc import Generator, Iterable, Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clip_anatomy.data.picture import SUFFIXES, Picture, Source, failure_text, read_data
from clip_anatomy.errors import BadImage, BadInput, BadSpec
from clip_anatomy.images.batch_size import BatchSize
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.images.input_size import Size, sized
from clip_anatomy.images.pixels import is_preprocessed, listed
from clip_anatomy.images.prefetch import batches_ahead
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.progress import Progress, silent

__all__ = ["Failed", "NamedPicture", "PictureBatch", "Pictures", "named_pictures", "picture_batches"]

Failed = tuple[str, str]
"""Name and error of a picture that could not be used."""


@dataclass(frozen=True)
class NamedPicture:
    """A picture, and what it is called.

    Attributes:
        image: a path, an address, or an image in memory; of a collection also the bytes of a file, or why there are none.
        name: what it is called in results.
        caption: what is known about it.
        path: where its collection finds it again.
    """

    image: ImageLike | bytes | BadImage = field(repr=False)
    name: str
    caption: str = ""
    path: str | None = None

    def read(self, *, keep_mode: bool = False, allow_urls: bool = False) -> Image.Image:
        """Decode it, upright and in RGB, or with `keep_mode` in its own colours.

        Raises:
            BadImage: it cannot be read (any more).
        """
        return read_data(self.image, self.name, keep_mode=keep_mode, allow_urls=allow_urls)


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


Pictures = Images | Tensor | Iterable[NamedPicture] | PictureBatch | Source
"""Whatever can be looked at: paths, PIL images, arrays, named pictures, a collection, a preprocessed tensor [image, 3, row, col], a batch."""


def picture_batches(
    clip: Clip,
    images: Pictures,
    size: Size = None,
    batch: int | BatchSize = 16,
    *,
    own: bool = False,
    allow_urls: bool = False,
    failed: list[Failed] | None = None,
    workers: int | None = 0,
    progress: Progress | None = None,
) -> Generator[PictureBatch]:
    """Read pictures and hand them out in batches of one shape, in order as far as shapes allow.

    Args:
        clip: gives the preprocessing and the patch.
        images: see `Pictures`; a batch is handed on as it is.
        size: see `Size`; sides are rounded to whole patches.
        batch: most pictures at once.
        own: without a size, keep a picture's own pixels instead of the model's resize and crop.
        allow_urls: fetch http(s) addresses.
        failed: where pictures that cannot be used are noted, so that the others are done; None to raise at the first of them.
        workers: threads that read ahead, as for `batches_ahead`; none by default, for the same image in memory may stand in a list
            twice, and whole pictures are large.
        progress: told how many pictures were handed out.

    Yields:
        One `PictureBatch` after the other.

    Raises:
        BadImage: an image cannot be used (its place is named when there are several), or none of them can.
        BadSpec: a size for tensors that are preprocessed already, or one that is none.
        BadInput: the collection cannot be reached (any more), or holds no picture.
    """
    if isinstance(images, PictureBatch):
        yield images
        return
    batch_size = batch if isinstance(batch, BatchSize) else BatchSize.fixed(batch)
    tell, total = progress or silent, len(images) if isinstance(images, Sized) else None
    if isinstance(images, Tensor) and is_preprocessed(images):
        if size is not None:
            raise BadSpec("size= is for pictures; a preprocessed tensor has its size. Type: heatmap without size=")
        for first, part in enumerate(clip.pixels(images).split(batch_size.current)):
            places = range(first * batch_size.current, first * batch_size.current + len(part))
            tell("looking at pictures", places[0], total)
            yield PictureBatch(tuple(places), part)
        return
    collection = images if isinstance(images, Source) else None
    alone, pictures = (True, [images]) if isinstance(images, NamedPicture) else listed(images)
    bad: list[Failed] = []

    def read(item: tuple[int, Any]) -> _Read:
        named = _named(*item)
        image = named.read(keep_mode=True, allow_urls=allow_urls)
        sides = image.height, image.width
        preprocess = sized(clip.preprocess, clip.patch, sides, sides if own and size is None else size)
        if _is_address(named.image):  # what was fetched once is not fetched again to be drawn
            named = replace(named, image=image)
        return _Read(preprocess(image), preprocess.geometry(*image.size), named)

    def note(item: tuple[int, Any], error: Exception) -> None:
        if collection is not None:
            collection.check()  # a vanished folder is not a thousand bad images
        if failed is None or isinstance(error, BadSpec):
            placed = isinstance(error, BadImage) and not alone
            raise BadImage(f"image {item[0]}: {error}") if placed else error
        bad.append((_named(*item).name, failure_text(error)))
        failed.append(bad[-1])

    if collection is not None:
        collection.check()
        total = collection.count()
    tell("looking at pictures", 0, total)
    done, gentle = 0, clip.device.type == "cpu"
    with closing(
        batches_ahead(
            enumerate(pictures), read, batch_size, workers=workers, gentle=gentle, shape=lambda one: one.pixels.shape, on_error=note
        )
    ) as batches:  # fmt: skip
        for group in batches:
            places = tuple(place for (place, _), _ in group)
            ready = [one for _, one in group if isinstance(one, _Read)]
            pixels = clip.pixels(torch.stack([one.pixels for one in ready]))
            yield PictureBatch(places, pixels, tuple(one.geometry for one in ready), tuple(one.named for one in ready))
            done += len(group)
            tell("looking at pictures", done + len(bad), total)
    if not done:
        raise _none_of(bad) if bad else _no_picture(collection)


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


@dataclass(frozen=True)
class _Read:
    pixels: Float[Tensor, "3 row col"]
    geometry: Geometry
    named: NamedPicture


def _named(place: int, picture: Any) -> NamedPicture:
    if isinstance(picture, Picture):
        return NamedPicture(picture.data, picture.id, "; ".join(picture.captions), picture.path)
    return picture if isinstance(picture, NamedPicture) else NamedPicture(picture, _name_of(picture, place))


def _no_picture(collection: Source | None) -> BadInput:
    if collection is None:
        return BadImage("no picture was given. Type the path of at least one")
    suffixes = ", ".join(sorted(SUFFIXES)[:6])
    return BadInput(f"{collection.spec} holds no picture. Type a collection with {suffixes} …")


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
    """Write a file name as it can be printed, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "replace")


def _is_address(source: Any) -> bool:
    return isinstance(source, str) and "://" in source
