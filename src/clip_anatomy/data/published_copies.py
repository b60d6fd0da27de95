"""What the readers of published data sets share: how a copy is opened, what a whole one holds, and the walk over its files."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_anatomy.data.picture import ImageData, Picture, unreachable
from clip_anatomy.errors import BadInput
from clip_anatomy.files import path_of, read_lines, resolved, text_lines

__all__ = ["DatasetCopy", "ImageEntry", "LabelledDataset", "PublishedDataset", "read_table_of", "read_words"]

PARTIAL = "partial"


@dataclass(frozen=True)
class PublishedDataset:
    """A data set as it is published.

    Attributes:
        scheme: what a spec starts with, such as "waterbirds".
        title: its name for people.
        where: where to get it, in words.
        images: images of each split of a whole copy.
        options: what may follow the path of a copy: splits, and words of its own.
    """

    scheme: str
    title: str
    where: str
    images: Mapping[str, int]
    options: tuple[str, ...] = ()

    @property
    def form(self) -> str:
        """What to type."""
        return f"{self.scheme}:FOLDER[:{'|'.join((*self.images, *self.options, PARTIAL))}]"

    def copy_at(self, rest: str, inside: Sequence[str] = ()) -> "DatasetCopy":
        """Take apart `FOLDER[:SPLIT][:partial]`.

        Args:
            rest: what follows the scheme.
            inside: folders in which archives unpack: FOLDER may be the one that holds such a folder.

        Raises:
            BadInput: no such folder; says where the data set is to be had.
        """
        name, options = rest, set[str]()
        known = {*self.images, *self.options, PARTIAL}
        while (cut := name.rpartition(":"))[1] and cut[2] in known:
            name = cut[0]
            options.add(cut[2])
        given = path_of(name)
        root = next((given / part for part in inside if (given / part).is_dir()), given)
        if given.is_file():
            raise BadInput(f"{given} is a file. Unpack it and type its folder: {self.form}")
        if not name or not root.is_dir():
            raise BadInput(
                f"there is no folder {name!r} with {self.title}. It is to be had {self.where}. Type: {self.form}"
            )
        return DatasetCopy(self, resolved(root), tuple(sorted(options)))


@dataclass(frozen=True)
class DatasetCopy:
    """One copy of a data set, and what of it is wanted.

    Attributes:
        of: the data set.
        root: folder of the copy.
        options: words behind the path.
    """

    of: PublishedDataset
    root: Path
    options: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """The spec that opens it again."""
        return ":".join((self.of.scheme, str(self.root), *self.options))

    @property
    def partial(self) -> bool:
        """Whether a copy will do that is not whole."""
        return PARTIAL in self.options

    @property
    def splits(self) -> tuple[str, ...]:
        """Which splits are wanted."""
        return tuple(split for split in self.of.images if split in self.options) or tuple(self.of.images)

    def check(self) -> None:
        """Raise BadInput when the copy has gone."""
        if not self.root.is_dir():
            raise unreachable(f"the folder {self.root}")

    def need(self, name: str) -> Path:
        """Return a file that the copy must have.

        Raises:
            BadInput: it has not; says where the data set is to be had.
        """
        path = self.root / name
        if not path.is_file():
            raise BadInput(
                f"{self.root} has no {name}, so it is no copy of {self.of.title}. It is to be had {self.of.where}. "
                f"Type the folder that holds {name}: {self.of.form}"
            )
        return path

    def wrong(self, message: str) -> BadInput:
        """Tell what is wrong with a file of the copy, and what to do about it."""
        return BadInput(f"{message}. Put a fresh copy of {self.of.title} in its place; it is to be had {self.of.where}")

    def hold_to(self, counts: Mapping[str, int], more: str = "") -> None:
        """Compare what was found with a whole copy.

        Args:
            found: images found per split.
            more: what else is to be said about what is missing.

        Raises:
            BadInput: not the published number of images, unless a partial copy will do; or none at all.
        """
        wanted = {split: self.of.images[split] for split in self.splits}
        again = ":".join((self.of.scheme, str(self.root), *self.options, PARTIAL))
        if not sum(counts.get(split, 0) for split in wanted):
            raise self.wrong(f"{self.root} holds no {' or '.join(wanted)} images of {self.of.title}")
        odd = [
            f"{counts.get(s, 0):,} {s} images, {n:,} were expected" for s, n in wanted.items() if counts.get(s, 0) != n
        ]
        if odd and not self.partial:
            raise BadInput(
                f"{self.root} is not a whole copy of {self.of.title}: {'; '.join(odd)}{more}. Fetch what is missing "
                f"({self.of.where}), or go on with what is there: {again}"
            )


@dataclass(frozen=True)
class ImageEntry:
    """One image file of a data set, and what its tables say."""

    path: str
    label: str
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    id: str = ""  # what the copy's layout does not change; by default the path


@dataclass(frozen=True)
class LabelledDataset:
    """A published data set as a collection of image files.

    Attributes:
        copy: the copy.
        classes: names of all its classes in the data set's own order.
        images: how many there are.
        walk: goes through them, always in the same order.
    """

    copy: DatasetCopy
    classes: tuple[str, ...] = field(repr=False)
    images: int
    walk: Callable[[], Iterable[ImageEntry]] = field(repr=False)

    @property
    def spec(self) -> str:
        """The spec that opens it again."""
        return self.copy.spec

    def __iter__(self) -> Iterator[Picture]:
        """Walk the images."""
        self.check()
        scheme, root = self.copy.of.scheme, self.copy.root
        for one in self.walk():
            yield Picture(
                f"{scheme}/{one.id or one.path}", root / one.path, one.path, one.label, one.group, (), one.meta
            )

    def count(self) -> int:
        """Count the images."""
        return self.images

    def check(self) -> None:
        """Raise BadInput when the copy has gone."""
        self.copy.check()

    def fetch(self, path: str) -> ImageData:
        """Read the file at `path`."""
        return self.copy.root / path

    @staticmethod
    def of_entries(
        copy: DatasetCopy, classes: Sequence[str], entries: Sequence[ImageEntry], files: Path
    ) -> "LabelledDataset":
        """Make a collection of a data set whose tables list every image; keep the wanted splits and what is there.

        Args:
            copy: the copy.
            classes: names of all classes.
            entries: all images of the tables, each with its split in `meta`.
            files: the folder to which the entries' paths are relative.

        Raises:
            BadInput: images that are listed are not there, or not the published number of images.
        """
        there = _files_under(files, {path.rpartition("/")[0] for path in (one.path for one in entries)})
        wanted = [one for one in entries if one.meta["split"] in copy.splits]
        present = [one for one in wanted if one.path in there]
        lost = next((one.path for one in wanted if one.path not in there), None)
        counts = {split: sum(one.meta["split"] == split for one in present) for split in copy.splits}
        more = (
            "" if lost is None else f"; {len(wanted) - len(present):,} are listed but not there, such as {files / lost}"
        )
        copy.hold_to(counts, more)
        prefix = files.relative_to(copy.root).as_posix()
        if prefix != ".":
            present = [ImageEntry(f"{prefix}/{o.path}", o.label, o.group, o.meta, o.id or o.path) for o in present]
        return LabelledDataset(copy, tuple(classes), len(present), lambda: present)


def _files_under(root: Path, folders: Iterable[str]) -> set[str]:
    """List files in these folders, each folder read once: asking for every file by itself takes long over a network."""
    files: set[str] = set()
    for folder in folders:
        try:
            with os.scandir(root / folder) as entries:
                files.update(f"{folder}/{entry.name}" if folder else entry.name for entry in entries if entry.is_file())
        except OSError:
            continue
    return files


def read_table_of(copy: DatasetCopy, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV of a copy.

    Raises:
        BadInput: it is missing, unreadable, or lacks a column.
    """
    path = copy.need(name)
    try:
        table = csv.DictReader(text_lines(path))
        rows = list(table)
        has = [str(column) for column in table.fieldnames or ()]
    except (BadInput, csv.Error) as error:
        raise copy.wrong(f"{path} is not a readable table ({error})") from error
    if missing := [column for column in columns if column not in has]:
        raise copy.wrong(f"{path} has no column {', '.join(missing)}; it has: {', '.join(has) or 'none'}")
    return rows


def read_words(copy: DatasetCopy, name: str, fields: int) -> list[list[str]]:
    """Read a text file of a copy whose lines are so many words, the last of which may hold spaces.

    Raises:
        BadInput: it is missing, unreadable, or has another kind of line.
    """
    path = copy.need(name)
    try:
        lines = read_lines(path)
    except BadInput as error:
        raise copy.wrong(f"{path} is not a readable text file ({error})") from error
    rows = [line.split(maxsplit=fields - 1) for line in lines]
    at = next((at for at, row in enumerate(rows) if len(row) != fields), None)
    if at is not None:
        raise copy.wrong(f"{path}, line {at + 1}: {lines[at]!r}, {fields} words were expected")
    return rows
