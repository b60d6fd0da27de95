"""The one picture loop: read pictures, name those that cannot be used, hand out the others in batches of one shape."""

from collections.abc import Generator, Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.data.open_dataset import STDIN, is_collection
from clip_anatomy.data.picture import Source, failure_text
from clip_anatomy.data.picture_files import passed_over_note, passed_over_of
from clip_anatomy.data.typed_pictures import NamedPicture, is_address, named_picture, typed_pictures
from clip_anatomy.errors import BadImage, BadInput, BadSpec
from clip_anatomy.files import path_of
from clip_anatomy.images.batch_size import BatchSize
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.images.input_size import Size, sized
from clip_anatomy.images.pixels import is_preprocessed, listed
from clip_anatomy.images.prefetch import batches_ahead
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.progress import Progress, silent

__all__ = [
    "Failed",
    "NamedPicture",
    "PictureBatch",
    "Pictures",
    "embedded_pictures",
    "named_pictures",
    "no_picture",
    "picture_batches",
]

Failed = tuple[str, str]
"""Name and error of a picture that could not be used."""


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
"""Whatever can be looked at: paths (folders and collections among them: all their pictures), "-" for paths on standard input, PIL
images, arrays, named pictures, a `Source`, a preprocessed tensor [image, 3, row, col], a batch."""


def picture_batches(
    clip: Clip,
    images: Pictures,
    size: Size = None,
    batch: int | BatchSize = 16,
    *,
    own: bool = False,
    allow_urls: bool = False,
    failed: list[Failed] | None = None,
    notes: list[str] | None = None,
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
        notes: where it is noted what of a collection was passed over, as files that are no pictures.
        workers: threads that read ahead, as for `batches_ahead`; none by default, for the same image in memory may stand in a list
            twice, and whole pictures are large.
        progress: told how many pictures were handed out.

    Yields:
        One `PictureBatch` after the other.

    Raises:
        BadImage: an image cannot be used (its place is named when there are several), or none of them can.
        BadSpec: a size for tensors that are preprocessed already, or one that is none.
        BadInput: a collection cannot be opened or reached (any more).
    """
    if isinstance(images, PictureBatch):
        yield images
        return
    batch_size = batch if isinstance(batch, BatchSize) else BatchSize.fixed(batch)
    tell, total = progress or silent, len(images) if isinstance(images, Sized) else None
    if isinstance(images, Tensor) and is_preprocessed(images):
        yield from _tensor_batches(clip.pixels(images), size, batch_size.current, tell)
        return
    images = _opened(images)
    collection = images if isinstance(images, Source) else None
    alone, pictures = (True, [images]) if isinstance(images, NamedPicture) else listed(images)
    bad: list[Failed] = []

    def note(item: tuple[int, Any], error: Exception) -> None:
        if collection is not None:
            collection.check()  # a vanished folder is not a thousand bad images
        if failed is None or isinstance(error, BadSpec):
            placed = isinstance(error, BadImage) and not alone
            raise BadImage(f"image {item[0]}: {error}") if placed else error
        bad.append((named_picture(*item).name, failure_text(error)))
        failed.append(bad[-1])

    if collection is not None:
        collection.check()
        total = collection.count()
    tell("looking at pictures", 0, total)
    done, gentle = 0, clip.device.type == "cpu"
    with closing(
        batches_ahead(
            enumerate(pictures), partial(_read, clip, size, own, allow_urls), batch_size, workers=workers, gentle=gentle, shape=lambda one: one.pixels.shape, on_error=note
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
        raise _none_of(bad) if bad else no_picture(collection)
    if notes is not None and (passed_over := passed_over_note(passed_over_of(collection))):
        notes.append(passed_over)


def named_pictures(images: Pictures) -> tuple[Iterator[NamedPicture], Source | None]:
    """Return pictures one after the other as another process can read them, paths absolute; and their collection, if they are one.

    Raises:
        BadInput: a collection cannot be opened or reached (any more).
    """
    images = _opened(images)
    collection = images if isinstance(images, Source) else None
    if collection is not None:
        collection.check()
    if isinstance(images, PictureBatch):
        return iter(images.pictures or ()), None
    pictures: Iterable[Any] = [images] if isinstance(images, NamedPicture) else listed(images)[1]
    return (_anywhere(named_picture(place, one)) for place, one in enumerate(pictures)), collection


def _anywhere(picture: NamedPicture) -> NamedPicture:
    image = picture.image
    if not isinstance(image, str | PathLike) or is_address(image):
        return picture
    return replace(picture, image=path_of(Path(image)).absolute())


def _tensor_batches(pixels: Tensor, size: Size, most: int, tell: Progress) -> Generator[PictureBatch]:
    if size is not None:
        raise BadSpec("size= is for pictures; a preprocessed tensor has its size. Type: heatmap without size=")
    for first in range(0, len(pixels), most):
        part = pixels[first : first + most]
        tell("looking at pictures", first, len(pixels))
        yield PictureBatch(tuple(range(first, first + len(part))), part)


@dataclass(frozen=True)
class _Read:
    pixels: Float[Tensor, "3 row col"]
    geometry: Geometry
    named: NamedPicture


def _read(clip: Clip, size: Size, own: bool, allow_urls: bool, item: tuple[int, Any]) -> _Read:
    """Read and preprocess one picture, given as its place and what was handed in."""
    named = named_picture(*item)
    image = named.read(keep_mode=True, allow_urls=allow_urls)
    sides = image.height, image.width
    preprocess = sized(clip.preprocess, clip.patch, sides, sides if own and size is None else size)
    if is_address(named.image):  # what was fetched once is not fetched again to be drawn
        named = replace(named, image=image)
    return _Read(preprocess(image), preprocess.geometry(*image.size), named)


def no_picture(collection: Source | None) -> BadInput:
    """Say that there was no picture, and what lay there instead."""
    if collection is None:
        return BadImage("no picture was given. Type the path of at least one")
    passed_over = passed_over_note(passed_over_of(collection))
    what = f"holds no picture ({passed_over})" if passed_over else "holds no picture"
    return BadImage(f"{collection.spec} {what}. Type a collection with JPEG, PNG or WebP files")


def _opened(images: Pictures) -> Pictures:
    """Open the collections among what was handed in; anything else stays as it is, generators unread."""
    words = [images] if isinstance(images, str | Path) else images if isinstance(images, list | tuple) else []
    if any(isinstance(word, str | Path) and (word in STDIN or is_collection(word)) for word in words):
        return typed_pictures(words)
    return images


def _none_of(failed: list[Failed]) -> BadImage:
    if len(failed) == 1:
        return BadImage(failed[0][1])
    more = f"; and {len(failed) - 3:,} more" if len(failed) > 3 else ""
    why = "; ".join(error for _, error in failed[:3])
    return BadImage(
        f"none of the {len(failed)} pictures could be read ({why}{more}). Type the paths of pictures: photo.jpg"
    )


def embedded_pictures(
    clip: Clip, images: Pictures, **how: Any
) -> tuple[Float64[Tensor, "image embed"], tuple[str, ...], tuple[NamedPicture, ...] | None]:
    """Embed pictures, in the order in which they were handed in.

    Args:
        clip: an opened model.
        images: as for `picture_batches`.
        **how: options of that.

    Returns:
        Embeddings as the model gives them, the pictures' names, and the pictures; None for tensors that came preprocessed.
    """
    rows: list[tuple[int, Tensor, NamedPicture | None]] = []
    for batch in picture_batches(clip, images, **how):
        known = batch.pictures or (None,) * len(batch.pixels)
        rows += zip(batch.places, clip.vision.encode(batch.pixels).double().cpu(), known, strict=True)
    rows.sort(key=lambda row: row[0])
    names = tuple(f"image {at}" if one is None else one.name for at, (_, _, one) in enumerate(rows))
    pictures = tuple(one for _, _, one in rows if one is not None) or None
    return torch.stack([vector for _, vector, _ in rows]), names, pictures
