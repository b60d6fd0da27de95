"""`MaskedDataset` and `TaggedDataset`: what every reader hands to the protocols, and the few verbs the readers share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int
from PIL import Image

from clip_anatomy.errors import BadImage, BadInput, reading
from clip_anatomy.files import read_lines
from clip_anatomy.images.decode import read_image

__all__ = [
    "IGNORED",
    "LabelledPicture",
    "MaskedDataset",
    "MaskedPicture",
    "TaggedDataset",
    "lines_of",
    "need",
    "paired",
    "read_ids",
    "relabel",
    "spread",
]

IGNORED = -1
"""Value of a mask's pixels that count for nothing."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MOST_NAMED = 6
Item = TypeVar("Item")


@dataclass(frozen=True)
class MaskedPicture:
    """One picture with its mask; neither is read before it is asked for.

    Attributes:
        id: its name in the data set.
        picture: reads the picture, RGB. Raises BadImage. Like `mask` a `partial` of a module's function, so that a worker can be sent it.
        mask: reads the mask: class numbers, IGNORED where nothing is to be said. Raises BadInput.
    """

    id: str
    picture: Callable[[], Image.Image] = field(repr=False)
    mask: Callable[[], "Int[np.ndarray, 'row col']"] = field(repr=False)


@dataclass(frozen=True)
class MaskedDataset:
    """Pictures with masks.

    Attributes:
        name: of the data set and its split.
        classes: names, in the order of the mask's numbers.
        entries: the pictures.
        background: which class is "none of the others"; None if there is no such class.
        notes: what people should know about how it was read.
    """

    name: str
    classes: tuple[str, ...]
    entries: tuple[MaskedPicture, ...] = field(repr=False)
    background: int | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.entries)


@dataclass(frozen=True)
class LabelledPicture:
    """One picture with its labels: class numbers."""

    id: str
    picture: Callable[[], Image.Image] = field(repr=False)
    labels: tuple[int, ...]


@dataclass(frozen=True)
class TaggedDataset:
    """Pictures of which each may have several labels.

    Attributes:
        name: of the data set and its split.
        classes: names.
        entries: the pictures.
        notes: what people should know about how it was read.
    """

    name: str
    classes: tuple[str, ...]
    entries: tuple[LabelledPicture, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.entries)


def need(root: Path, *inside: str, what: str, where: str) -> None:
    """Refuse a folder in which something is missing, saying where the data set comes from.

    Args:
        root: the folder.
        inside: files or folders that must be there.
        what: name of the data set.
        where: how to get it, and what to type.

    Raises:
        BadInput: something is missing.
    """
    missing = [name for name in inside if not (root / name).exists()]
    if not root.exists() or missing:
        reason = "it is not there" if not root.exists() else f"{' and '.join(missing)} missing in it"
        raise BadInput(f"{root} is not {what}: {reason}. {where}")


def lines_of(path: Path) -> list[str]:
    """List the non-empty lines of a text file, stripped."""
    return read_lines(path, "Bring it back, and type the same again", errors="replace")


def read_ids(path: Path, *, grey: bool = False) -> "Int[np.ndarray, 'row col']":
    """Read the numbers in a mask: a PNG with a palette, with grey levels of 8 or 16 bits, or black and white (0 and 1).

    Args:
        path: the file.
        grey: of a picture in colours, take its brightness: for masks of one object, which some copies hold as RGB.

    Raises:
        BadInput: unreadable, or a picture in colours.
    """
    with reading(f"the mask {path}", "Bring back the original file"), Image.open(path) as opened:
        opened.load()
        ids = np.array(opened.convert("L") if grey and opened.mode in ("RGB", "RGBA", "LA") else opened)
    if ids.ndim != 2:
        raise BadInput(
            f"the mask {path} has {ids.shape[-1]} channels: one number a pixel was expected. Type a mask of class numbers"
        )
    return ids.astype(np.int32)


def relabel(ids: "Int[np.ndarray, 'row col']", table: Mapping[int, int], name: str) -> "Int[np.ndarray, 'row col']":
    """Turn a data set's own numbers into class numbers.

    Args:
        ids: as stored.
        table: stored number → class number or IGNORED.
        name: of the mask, for the message.

    Raises:
        BadInput: numbers that the table does not have.

    Example:
        >>> relabel(np.array([[0, 255]]), {0: 3, 255: IGNORED}, "a.png").tolist()
        [[3, -1]]
    """
    there = np.unique(ids)
    unknown = [int(value) for value in there if int(value) not in table]
    if unknown:
        shown = ", ".join(map(str, unknown[:MOST_NAMED])) + ("…" if len(unknown) > MOST_NAMED else "")
        raise BadInput(
            f"the mask {name} holds unknown ids: {shown}. Type the folder of the data set's own masks, not of a conversion"
        )
    codes = np.array([table[int(value)] for value in there], np.int32)
    return codes[np.searchsorted(there, ids)]


def paired(
    ids: Iterable[str],
    picture_of: Callable[[str], Path],
    mask_of: Callable[[str], Path],
    table: Mapping[int, int],
    *,
    what: str,
    read: "Callable[[Path], Int[np.ndarray, 'row col']] | None" = None,
) -> tuple[MaskedPicture, ...]:
    """Return entries from a list of ids whose pictures and masks are files.

    Args:
        ids: the list.
        picture_of: id → picture.
        mask_of: id → mask.
        table: stored number → class number or IGNORED.
        what: the list's name, for the message.
        read: how a mask is read; by default `read_ids`.

    Raises:
        BadInput: the list is empty.
    """
    numbers = read_ids if read is None else read

    pairs = tuple(
        MaskedPicture(
            name, partial(read_picture, picture_of(name)), partial(class_numbers, mask_of(name), table, numbers)
        )
        for name in ids
    )
    if not pairs:
        raise BadInput(f"{what} lists no pictures: it is empty. Type the folder of the whole data set")
    return pairs


def class_numbers(
    path: Path, table: Mapping[int, int], read: "Callable[[Path], Int[np.ndarray, 'row col']]"
) -> "Int[np.ndarray, 'row col']":
    """Read a mask and turn its numbers into class numbers."""
    return relabel(read(path), table, str(path))


def read_picture(path: Path) -> Image.Image:
    """Read one picture as stored, not turned by EXIF: masks are drawn on the stored pixels."""
    return read_image(path, upright=False)


def files_in(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """List files of these kinds in a folder, sorted by name; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))


def spread(entries: Sequence[Item], limit: int | None) -> list[Item]:
    """So many of them, evenly spread from the first on; all where there are no more, or without a limit.

    Example:
        >>> spread("abcdefgh", 3), spread("ab", 3), spread("ab", None)
        (['a', 'c', 'f'], ['a', 'b'], ['a', 'b'])
    """
    count = len(entries) if limit is None else min(limit, len(entries))
    return [entries[at * len(entries) // count] for at in range(count)]


def check_sizes(image: Image.Image, mask: "Int[np.ndarray, 'row col']") -> None:
    """Refuse a mask of another size than its picture, or one in which nothing counts.

    Raises:
        BadImage: they differ.
    """
    rows, cols = image.size[1], image.size[0]
    if mask.shape != (rows, cols):
        raise BadImage(
            f"its mask has {mask.shape[0]} × {mask.shape[1]} pixels (row × col), the picture {rows} × {cols}. "
            "Bring back the original files"
        )
    if not (mask != IGNORED).any():
        raise BadImage(
            "its mask says nothing about any pixel. Take it out of the list, or bring back the original file"
        )
