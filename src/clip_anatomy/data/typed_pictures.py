"""Pictures as people name them: files, addresses, folders, other collections, `-`; one rule for every verb that looks at pictures."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from clip_anatomy.data.folders import Folder
from clip_anatomy.data.open_dataset import STDIN, is_collection, open_dataset, typed_lines
from clip_anatomy.data.picture import ImageData, ObjectFile, Picture, Source, read_data
from clip_anatomy.data.picture_files import passed_over_of
from clip_anatomy.errors import BadImage
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.objects import is_object_url

__all__ = ["NamedPicture", "TypedPictures", "as_text", "is_address", "named_picture", "typed_pictures"]


@dataclass(frozen=True)
class NamedPicture:
    """A picture, and what it is called.

    Attributes:
        image: a path, an address, or an image in memory; of a collection also the bytes of a file, or why there are none.
        name: what it is called in results.
        caption: what is known about it.
        path: where its collection finds it again.
    """

    image: ImageLike | bytes | ObjectFile | BadImage = field(repr=False)
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
class TypedPictures:
    """Pictures and collections one after the other: itself a `Source`, whose pictures are called as they were typed.

    Attributes:
        parts: what each is called up to the names in it ("" for pictures and for collections with names of their own), and what it is.
    """

    parts: tuple[tuple[str, NamedPicture | Source], ...]

    @property
    def spec(self) -> str:
        """What was typed, for messages."""
        named = [part.name if isinstance(part, NamedPicture) else part.spec for _, part in self.parts]
        return ", ".join(named[:3]) + (" …" if len(named) > 3 else "")

    def __iter__(self) -> Iterator[Any]:  # NamedPicture: the picture loop takes either kind
        """Walk the pictures."""
        for called, part in self.parts:
            if isinstance(part, NamedPicture):
                yield part
                continue
            for picture in part:
                named = named_picture(0, picture)
                yield replace(named, name=os.path.join(called, named.name)) if called else named  # noqa: PTH118 - "./a" stays "./a"

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the last walk passed over: reason → how many files."""
        return sum((Counter(passed_over_of(part)) for _, part in self.parts), Counter[str]())

    def count(self) -> int | None:
        """Count the pictures; None where a collection does not say how many it has."""
        counts = [1 if isinstance(part, NamedPicture) else part.count() for _, part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def check(self) -> None:
        """Raise BadInput if a collection cannot be reached (any more)."""
        for _, part in self.parts:
            if not isinstance(part, NamedPicture):
                part.check()

    def fetch(self, path: str) -> ImageData:
        """Not a place to go back to: its pictures know where they are."""
        return Path(path)


def typed_pictures(images: Iterable[Any]) -> TypedPictures:
    """Read what was typed: files, addresses, folders and whatever else `open_dataset` opens, `-` for paths on standard input.

    Args:
        images: words, or images in memory and named pictures among them.

    Raises:
        BadInput: a collection that cannot be opened.
    """
    parts: list[tuple[str, NamedPicture | Source]] = []
    words = (one for word in images for one in (typed_lines() if isinstance(word, str) and word in STDIN else [word]))
    for place, one in enumerate(words):
        if not isinstance(one, str | Path) or is_address(one) or not is_collection(one):
            parts.append(("", named_picture(place, one)))
            continue
        source = open_dataset(one)
        parts.append((as_text(one) if isinstance(source, Folder) else "", source))
    return TypedPictures(tuple(parts))


def named_picture(place: int, picture: Any) -> NamedPicture:
    """Name one picture of a list or collection: by its path, its id, or its place."""
    if isinstance(picture, Picture):
        return NamedPicture(picture.data, picture.id, "; ".join(picture.captions), picture.path)
    return picture if isinstance(picture, NamedPicture) else NamedPicture(picture, _name_of(picture, place))


def as_text(path: Any) -> str:
    """Return a file name as it can be printed, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "replace")


def is_address(source: Any) -> bool:
    """Whether it is an address of the web."""
    return isinstance(source, str) and "://" in source and not is_object_url(source)


def _name_of(source: Any, place: int) -> str:
    in_memory = isinstance(source, Tensor | np.ndarray | Image.Image)
    return f"image {place}" if in_memory or not isinstance(source, str | os.PathLike) else as_text(source)
