"""Pictures in object storage: a prefix, tars or a table there. Names are walked a listing at a time; a picture is read when it is decoded."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from clip_anatomy.data.folders import SPLITS
from clip_anatomy.data.picture import ImageData, ObjectFile, Picture
from clip_anatomy.data.picture_files import HIDDEN, has_suffix, not_a_picture
from clip_anatomy.data.tables import NAMES, NOTHING, TABLES, Table, TableRow, merged, read_rows, row_for
from clip_anatomy.data.tars import TARS, member_of, samples
from clip_anatomy.errors import BadInput
from clip_anatomy.files import digest
from clip_anatomy.objects import ObjectPlace, is_object_url

__all__ = ["ObjectFolder", "ObjectTable", "ObjectTars", "expanded", "object_names", "opened_object", "split_url"]

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_NAMES = 10_000_000
LOOKED_AT = 1000  # names that tell a prefix of tars from one of pictures


@dataclass(frozen=True)
class ObjectFolder:
    """All pictures below a prefix, in the order of their names, told by their endings. The first level is the label, as in a folder.

    Attributes:
        place: the prefix.
        table: what a `metadata.csv` there says (or .json, .jsonl; `labels.csv`).
        only: one picture, where its address was typed.
        passed_over: what the last walk passed over: reason → how many objects.
    """

    place: ObjectPlace
    table: Table = field(default_factory=dict[str, TableRow], repr=False)
    only: str = ""
    passed_over: Counter[str] = field(default_factory=Counter[str], repr=False, compare=False)

    @staticmethod
    def of(place: ObjectPlace) -> "ObjectFolder":
        """Open a prefix, and the table of labels in it."""
        own = next((name for name in NAMES if place.get(name) is not None), None)
        return ObjectFolder(place, {} if own is None else dict(_rows(place, own)))

    @property
    def spec(self) -> str:
        """Its address."""
        return f"{self.place.url}/{self.only}".rstrip("/")

    def __iter__(self) -> Iterator[Picture]:
        """Walk the pictures."""
        self.passed_over.clear()
        if self.only:
            yield Picture(self.spec, self.fetch(self.only), self.only)
            return
        levels = [name.lower() for name in self.place.folders("")]
        splits = bool(levels) and all(name in SPLITS for name in levels)
        for name, size in self.place.names():
            *folders, base = name.split("/")
            if any(part.startswith(".") for part in (*folders, base)):
                self.passed_over[HIDDEN] += 1
            elif has_suffix(base):
                note = row_for(self.table, name)
                meta = {"split": SPLITS[folders[0].lower()], **note.meta} if folders and splits else note.meta
                label = note.label or next(iter(folders[1:] if splits else folders), "")
                data = ObjectFile(self.place.url, name, size)
                yield Picture(name, data, name, label, note.group, note.captions, meta, note is not NOTHING)
            elif base and name not in NAMES:
                self.passed_over[not_a_picture(base)] += 1

    def count(self) -> None:
        """Not known without listing it to its end."""
        return

    def check(self) -> None:
        """Raise ObjectStoreError if the bucket cannot be reached (any more)."""
        next(iter(self.place.names()), None)

    def fetch(self, path: str) -> ImageData:
        """Say where the image of a name is."""
        return ObjectFile(self.place.url, path)


@dataclass(frozen=True)
class ObjectTable:
    """Pictures named by a table there; paths are as seen from it, or addresses.

    Attributes:
        place: the prefix that it lies under.
        name: of the table.
    """

    place: ObjectPlace
    name: str

    @property
    def spec(self) -> str:
        """Its address."""
        return f"{self.place.url}/{self.name}"

    def __iter__(self) -> Iterator[Picture]:
        """Walk the rows."""
        for path, note in merged(_rows(self.place, self.name)).items():
            yield Picture(path, self.fetch(path), path, note.label, note.group, note.captions, note.meta, True)

    def count(self) -> None:
        """Not known without reading it."""
        return

    def check(self) -> None:
        """Raise ObjectStoreError if the bucket cannot be reached (any more)."""
        next(iter(self.place.names(self.name)), None)

    def fetch(self, path: str) -> ImageData:
        """Say where the image of a path is."""
        return ObjectFile(*split_url(path)) if is_object_url(path) else ObjectFile(self.place.url, path)


@dataclass(frozen=True)
class ObjectTars:
    """Samples of tars there, read as streams; see `Tars`.

    Attributes:
        place: the prefix that they lie under.
        pattern: their names: `{000..010}.tar`, or with * and ?.
        passed_over: what the last walk passed over: reason → how many members.
    """

    place: ObjectPlace
    pattern: str
    passed_over: Counter[str] = field(default_factory=Counter[str], repr=False, compare=False)

    @property
    def spec(self) -> str:
        """Their address."""
        return f"{self.place.url}/{self.pattern}"

    def __iter__(self) -> Iterator[Picture]:
        """Walk all samples."""
        self.passed_over.clear()
        for name in object_names(self.place, self.pattern):
            yield from samples(lambda name=name: _stream(self.place, name), self.spec, name, self.passed_over)

    def count(self) -> None:
        """Not known without reading the tars."""
        return

    def check(self) -> None:
        """Raise BadInput when no tar is there (any more)."""
        object_names(self.place, self.pattern)

    def fetch(self, path: str) -> ImageData:
        """Read the bytes of a member, from `tar#member`, through all that stands before it."""
        name, _, member = path.partition("#")
        return member_of(_stream(self.place, name), member, self.spec)


def opened_object(place: ObjectPlace) -> ObjectFolder | ObjectTable | ObjectTars | None:
    """Open what is at an address; None for Parquet files.

    Raises:
        BadInput: nothing is there.
        ObjectStoreError: the bucket cannot be read.
    """
    above, name = split_url(place.url)
    if name.lower().endswith(".parquet"):
        return None
    if name.lower().endswith(TARS):
        return ObjectTars(ObjectPlace(above), name)
    if name.lower().endswith(TABLES):
        return ObjectTable(ObjectPlace(above), name)
    if has_suffix(name):
        return ObjectFolder(ObjectPlace(above), only=name)
    names = [one for one, _ in islice(place.names(), LOOKED_AT)]
    if not names:
        raise BadInput(
            f"there is no object under {place.url}. Look at the address; type one of a prefix, tars or a table"
        )
    kinds = {PurePosixPath(one).suffix.lower() for one in names if "/" not in one}
    if kinds == {".parquet"}:
        return None
    return ObjectTars(place, "*.tar") if ".tar" in kinds and not any(map(has_suffix, names)) else ObjectFolder.of(place)


def object_names(place: ObjectPlace, pattern: str) -> list[str]:
    """List the objects that a pattern means.

    Raises:
        BadInput: there is none.
    """
    if not any(sign in pattern for sign in "*?["):
        return expanded(pattern)
    if place.folder is None:
        names = sorted(name for name, _ in place.names() if fnmatchcase(name, pattern))
    else:
        names = sorted(path.name for path in place.folder.glob(pattern))
    if not names:
        raise BadInput(f"there is no {pattern} under {place.url}. Look at the address")
    return names


def expanded(pattern: str) -> list[str]:
    """Write out `{000..010}` as webdataset does.

    Example:
        >>> expanded("part-{08..10}.tar")
        ['part-08.tar', 'part-09.tar', 'part-10.tar']
    """
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = (int(end) for end in match.groups())
    if not 0 <= last - first < MOST_NAMES:
        raise BadInput(f"{pattern!r} means {last - first + 1} names. Type the smaller number first: {{000..010}}")
    numbers = (f"{number:0{len(match[1])}d}" for number in range(first, last + 1))
    return [name for number in numbers for name in expanded(pattern[: match.start()] + number + pattern[match.end() :])]


def split_url(url: str) -> tuple[str, str]:
    """Return the place that an object lies under, and its name there."""
    above, _, name = ObjectPlace.of(url).url.rpartition("/")
    return above, name


def _rows(place: ObjectPlace, name: str) -> Iterator[tuple[str, TableRow]]:
    """Read a table by way of a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{digest(name)}{PurePosixPath(name).suffix}"
        with path.open("wb") as file:
            for piece in place.pieces(name):
                file.write(piece)
        yield from read_rows(path)


class _Pieces(io.RawIOBase):
    """A file to be read once, of pieces that come one by one."""

    mode = "rb"

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self.pieces, self.rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self.rest:
            piece = next(self.pieces, None)
            if piece is None:
                return 0
            self.rest = memoryview(piece)
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def _stream(place: ObjectPlace, name: str) -> io.BufferedReader:
    return io.BufferedReader(_Pieces(place.pieces(name)), 2**20)
