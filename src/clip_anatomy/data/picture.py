"""What a collection hands over: pictures one at a time, each with an id that stays the same on every walk.

A `Source` is anything that can be walked again and again in the same order; `opening.open_dataset` makes one of what people type.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.files import digest, digest_of_file
from clip_anatomy.images.decode import need_plugins
from clip_anatomy.images.pixels import Preprocess, read_image
from clip_anatomy.objects import ObjectPlace


@dataclass(frozen=True)
class ObjectFile:
    """An image file in object storage, read when it is decoded: what is known already costs no download.

    Attributes:
        place: address of what it lies under.
        name: below it.
        size: bytes, if they are known.
    """

    place: str
    name: str
    size: int = 0

    def read(self) -> bytes:
        """Read it.

        Raises:
            BadImage: it is not there any more, or larger than a picture is.
            ObjectStoreError: the bucket does not answer as it should.
        """
        if self.size > LARGEST:
            raise BadImage(f"{self.name} has {self.size:,} bytes, {LARGEST:,} are allowed. Take it out")
        content = ObjectPlace.of(self.place).get(self.name)
        if content is None:
            raise BadImage(f"{self.place}/{self.name} is not there. Put it back, or take its name out")
        return content


LARGEST = 2**29  # bytes of a picture in object storage
ImageData = Path | bytes | Image.Image | np.ndarray | Tensor | ObjectFile
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # a byte of another encoding, as Python keeps it in names of files; NUL


@dataclass(frozen=True)
class Picture:
    """One image of a collection, not yet decoded, and what is known about it.

    Attributes:
        id: names it for good: the same on every walk, different for different images.
        data: a path, the bytes of an image file, or an image in memory; an error where it could not even be read.
        path: where `Source.fetch` finds it again; None when it lives in memory only.
        label: its class, "" if not known.
        group: its group (for worst-group figures), "" if not known.
        captions: texts that describe it.
        meta: whatever else the table says: column → text or number.
        labelled: whether a table says something about it: then a store that knows it follows. Class folders may have been overruled by one.
    """

    id: str
    data: ImageData | BadImage
    path: str | None = None
    label: str = ""
    group: str = ""
    captions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    labelled: bool = False

    def __post_init__(self) -> None:
        """Keep out what no store, table or page can hold: names and words that are not Unicode."""
        texts = (
            self.label,
            self.group,
            *self.captions,
            *self.meta,
            *(v for v in self.meta.values() if isinstance(v, str)),
        )
        if NO_TEXT.search(self.id) or NO_TEXT.search(self.path or ""):
            name = _as_text(self.id)
            error = BadImage(
                f"the name of {name} is not text in UTF-8, so nothing could be kept of it. Rename the file"
            )
            for field_name, value in (("id", name), ("data", error), ("path", None)):
                object.__setattr__(self, field_name, value)
        if any(NO_TEXT.search(word) for word in texts):
            meta = {_as_text(key): _as_text(v) if isinstance(v, str) else v for key, v in self.meta.items()}
            captions = tuple(map(_as_text, self.captions))
            described = {
                "label": _as_text(self.label),
                "group": _as_text(self.group),
                "captions": captions,
                "meta": meta,
            }
            for field_name, value in described.items():
                object.__setattr__(self, field_name, value)


@runtime_checkable
class Source(Protocol):
    """A collection of pictures."""

    @property
    def spec(self) -> str:
        """What `open_dataset` makes this collection of again, on this machine."""
        ...

    def __iter__(self) -> Iterator[Picture]:
        """Walk the pictures, always in the same order."""
        ...

    def count(self) -> int | None:
        """Count them, where that is cheap."""
        ...

    def check(self) -> None:
        """Raise BadInput if the collection cannot be reached (any more)."""
        ...

    def fetch(self, path: str) -> ImageData:
        """Read the image at a picture's `path`."""
        ...


def unreachable(what: str) -> BadInput:
    """Return the error of a collection that has gone since it was opened."""
    return BadInput(f"{what} cannot be reached. Bring it back and type the same command again")


@dataclass(frozen=True)
class Decoded:
    """One picture as the model takes it, and the facts of its file.

    Attributes:
        pixels: preprocessed.
        row: rows of the upright original.
        col: its columns.
        size: bytes of its file, or of its pixels where there is none.
        digest: hash of those bytes: equal for equal files, whatever they are called.
        time: when its file was last changed, in nanoseconds; None where there is none.
    """

    pixels: Float[Tensor, "3 row col"]
    row: int
    col: int
    size: int
    digest: str
    time: int | None = None


def read_data(
    data: ImageData | str | BadImage, name: str, *, keep_mode: bool = False, allow_urls: bool = False
) -> Image.Image:
    """Decode a picture's data upright; with `keep_mode` in its own colours, with `allow_urls` also from an address.

    Raises:
        BadImage: it cannot be used; the message starts with `name`.
    """
    if isinstance(data, BadImage):
        raise data
    if isinstance(data, ObjectFile):
        data = data.read()
    if not isinstance(data, bytes):
        return read_image(data, keep_mode=keep_mode, allow_urls=allow_urls)
    if not data:
        raise BadImage(f"{name} is empty (0 bytes). Put a whole copy in its place")
    need_plugins()
    try:
        with Image.open(BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise BadImage(
                    f"{name} has {image.width * image.height:,} pixels, {limit:,} are allowed. Scale it down, or type "
                    f"first: PIL.Image.MAX_IMAGE_PIXELS = {image.width * image.height:_}"
                )
            return read_image(image, keep_mode=keep_mode)
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from error
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise BadImage(
            f"{name} is not a picture that can be read here. Put a JPEG, PNG or WebP in its place"
        ) from error
    except Exception as error:  # decoders raise anything at all on damaged data
        raise BadImage(f"{name} is not a picture that can be read here ({type(error).__name__}: {error})") from error


def decode(picture: Picture, preprocess: Preprocess) -> Decoded:
    """Decode and preprocess one picture.

    Raises:
        BadImage: it cannot be used.
    """
    data = picture.data
    if isinstance(data, BadImage):
        raise data
    if isinstance(data, ObjectFile):
        data = data.read()
    facts = facts_of_file(data) if isinstance(data, Path) and data.is_file() else None  # before it is read
    image = read_data(data, picture.id, keep_mode=True)
    pixels = preprocess(image)
    if isinstance(data, Path) and facts is not None:
        return Decoded(pixels, image.height, image.width, facts[0], digest_of_file(data), facts[1])
    raw = _bytes_of(data)
    return Decoded(pixels, image.height, image.width, len(raw), digest(raw))


def facts_of_file(path: Path) -> tuple[int, int]:
    """Return bytes of a file, and when it or its place was last changed, in nanoseconds: what differs when its content does.

    Raises:
        OSError: it is not there, or may not be read.
    """
    facts = path.stat()
    # Copies that keep the time of the last change have another time of the inode.
    return facts.st_size, max(facts.st_mtime_ns, facts.st_ctime_ns if os.name != "nt" else 0)


def failure_text(error: Exception) -> str:
    """Return why a picture could not be used, with what to type."""
    if isinstance(error, BadImage):
        return str(error)
    return f"{type(error).__name__}: {error}. Type the same command again once it can be read"


def _bytes_of(data: ImageData) -> bytes:
    if isinstance(data, ObjectFile):
        return data.read()
    if isinstance(data, Path):
        return data.read_bytes()
    if isinstance(data, bytes):
        return data
    if isinstance(data, Image.Image):
        return data.tobytes()
    array = data.detach().cpu().numpy() if isinstance(data, Tensor) else data
    return np.ascontiguousarray(array).view(np.uint8).tobytes()


def hash_of(data: ImageData) -> str:
    """Name an image that has no name: hash of its kind, its shape and its values."""
    shape = data.size if isinstance(data, Image.Image) else getattr(data, "shape", ())
    kind = data.mode if isinstance(data, Image.Image) else str(getattr(data, "dtype", "bytes"))
    return f"image-{digest([repr((kind, tuple(shape))), _bytes_of(data)])}"


def _as_text(text: str) -> str:
    """Put a mark in the place of each byte that is no text."""
    return NO_TEXT.sub("\ufffd", text)
