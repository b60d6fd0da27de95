"""Pictures that lie about as files, and pictures that are in memory already."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image
from torch import Tensor

from clip_anatomy.atomic_output import made_here
from clip_anatomy.data.picture import ImageData, Picture, hash_of, unreachable
from clip_anatomy.data.picture_files import HIDDEN, OURS, UNREADABLE, head_of, is_picture, not_a_picture
from clip_anatomy.data.tables import NAMES, NOTHING, Table, TableRow, merged, read_rows, read_table, row_for
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.files import is_there, path_of, resolved, text_lines
from clip_anatomy.partial_output import is_partial

__all__ = ["PYTHON_LIST", "Folder", "ImageList", "PythonList", "pictures_under"]

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
PYTHON_LIST = "(a Python list)"
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Folder:
    """All pictures under a folder, in the order of their paths. The first folder level is the label, if there is one.

    Where all folders of the first level are called train, val and test, they are the split, and the next level is the label.

    Attributes:
        root: the folder.
        table: path (or file name) → label, group, captions; it wins over class folders.
        passed_over: what the last walk passed over: reason → how many files.
    """

    root: Path
    table: Table = field(default_factory=dict[str, TableRow], repr=False)
    passed_over: Counter[str] = field(default_factory=Counter[str], repr=False, compare=False)

    @staticmethod
    def of(root: Path) -> "Folder":
        """Open a folder; its own `metadata.csv` (or .json, .jsonl; `labels.csv`) is taken, if it has one.

        Raises:
            BadInput: none of the paths in the table is there.
        """
        given, root = root.absolute(), resolved(root)
        own = next((root / name for name in NAMES if (root / name).is_file()), None)
        table = {} if own is None else read_table(own)
        source = Folder(root, {_within(name, given, root): note for name, note in table.items()})
        if table and not source.knows_any():
            raise BadInput(
                f"none of the {len(table)} paths in the table (first: {next(iter(table))!r}) is a file under {root}. "
                "Write them relative to that folder, or as plain file names"
            )
        return source

    @property
    def spec(self) -> str:
        """The folder's path."""
        return str(self.root)

    def __iter__(self) -> Iterator[Picture]:
        """Walk the tree, sorted."""
        splits = self.splits()
        for path in self.paths():
            *folders, _ = path.split("/")
            note = row_for(self.table, path)
            meta = {"split": splits[folders[0]], **note.meta} if folders and splits else note.meta
            label = note.label or next(iter(folders[1:] if splits else folders), "")
            yield Picture(path, self.root / path, path, label, note.group, note.captions, meta, note is not NOTHING)

    def splits(self) -> dict[str, str]:
        """Map folders of the first level to splits, if all of them are called so; else nothing."""
        try:
            with os.scandir(self.root) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
        except OSError:  # the walk says so
            return {}
        return {name: SPLITS[name.lower()] for name in names} if all(name.lower() in SPLITS for name in names) else {}

    def paths(self) -> Iterator[str]:
        """List paths relative to the folder, with forward slashes."""
        self.check()
        self.passed_over.clear()
        yield from pictures_under(self.root, self.passed_over)

    def count(self) -> int:
        """Count the picture files."""
        return sum(1 for _ in self.paths())

    def check(self) -> None:
        """Raise BadInput when the folder has gone."""
        if not self.root.is_dir():
            raise unreachable(f"the folder {self.root}")

    def fetch(self, path: str) -> ImageData:
        """Read the file at `path`."""
        return self.root / path

    def knows_any(self) -> bool:
        """Tell whether the table says something about at least one file."""
        return any((self.root / name).is_file() for name in list(self.table)[:100]) or any(
            path in self.table or path.rsplit("/", 1)[-1] in self.table for path in self.paths()
        )


@dataclass(frozen=True)
class ImageList:
    """Pictures named by a file: one path a line, or a table with a column of paths. Paths are relative to that file.

    Attributes:
        file: the list or table.
        tabular: whether the file is a table itself.
    """

    file: Path
    tabular: bool = False

    @staticmethod
    def of_lines(file: Path) -> "ImageList":
        """Open a plain list of paths."""
        return ImageList(resolved(file))

    @staticmethod
    def of_table(file: Path) -> "ImageList":
        """Open a table whose rows are the pictures."""
        return ImageList(resolved(file), tabular=True)

    @property
    def spec(self) -> str:
        """The list's path."""
        return str(self.file)

    def __iter__(self) -> Iterator[Picture]:
        """Walk the list in its own order."""
        self.check()
        for path, note in self._entries():
            try:
                data = self.fetch(path)
            except BadImage as error:
                data = error
            yield Picture(path, data, path, note.label, note.group, note.captions, note.meta, self.tabular)

    def _entries(self) -> Iterator[tuple[str, TableRow]]:
        if self.tabular:
            yield from merged(read_rows(self.file)).items()
            return
        for line in text_lines(self.file, "It is not a text file with one path a line"):
            path = line.strip()
            if path and not path.startswith("#"):
                yield path, NOTHING

    def count(self) -> int:
        """Count the entries."""
        return sum(1 for _ in self._entries())

    def check(self) -> None:
        """Raise BadInput when the list has gone."""
        if not self.file.is_file():
            raise unreachable(f"the list {self.file}")

    def fetch(self, path: str) -> ImageData:
        """Read the file at `path`, beside the list or in `images/` beside it."""
        if ADDRESS.match(path):
            raise BadImage(
                f"{path} is an address, and the pictures of a list are files. Download it, and list the file"
            )
        base = self.file.parent
        local = url2pathname(urlsplit(path).path) if path.startswith("file://") else path
        names = dict.fromkeys((path, path.replace("\\", "/"), path.strip("\"'"), local))  # as other programs write them
        places = (folder / path_of(name) for name in names for folder in (base, base / "images"))
        return next((place for place in places if is_there(place)), base / path_of(path))


@dataclass(frozen=True)
class PythonList:
    """A Python list: paths (folders stand for the pictures in them), `Picture`s, or images in memory, which are called by a hash of their pixels."""

    pictures: tuple[Picture, ...] = field(repr=False)
    passed_over: Counter[str] = field(default_factory=Counter[str], repr=False, compare=False)

    @staticmethod
    def of(images: Sequence[Any]) -> "PythonList":
        """Take a list as it is.

        Raises:
            BadInput: it is empty, or holds something else.
        """
        if not len(images):
            raise BadInput("an empty list of images. Give at least one path, PIL image or array")
        passed_over = Counter[str]()
        return PythonList(
            tuple(_picture(one) for image in images for one in _each(image, passed_over)), passed_over=passed_over
        )

    @property
    def spec(self) -> str:
        """What is said of it: a list cannot be opened again from a name, its files can."""
        return PYTHON_LIST

    def __iter__(self) -> Iterator[Picture]:
        """Walk the list."""
        return iter(self.pictures)

    def count(self) -> int:
        """Length of the list."""
        return len(self.pictures)

    def check(self) -> None:
        """Nothing can go away."""

    def fetch(self, path: str) -> ImageData:
        """Read the file of an entry that was a path."""
        return Path(path)


def _each(image: Any, passed_over: Counter[str]) -> Iterator[Any]:
    """One entry of a list: itself, or the pictures of the folder that it names."""
    folder = path_of(image) if isinstance(image, str | Path) else None
    if folder is None or not folder.is_dir():
        yield image
        return
    yield from (folder / path for path in pictures_under(folder, passed_over))


def _picture(image: Any) -> Picture:
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        path = resolved(path_of(image))
        return Picture(path.as_posix(), path, path.as_posix())
    if isinstance(image, Image.Image | np.ndarray | Tensor | bytes):
        return Picture(hash_of(image), image)
    raise BadInput(f"a value of type {type(image).__name__} in the list. Give paths, PIL images, arrays or `Picture`s")


def pictures_under(
    root: Path, passed_over: Counter[str], folder: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Walk the picture files of a folder, then of the folders in it; links are followed, but never around in a circle.

    Args:
        root: the folder.
        passed_over: where everything else is counted, by reason. Folders that this program made are not walked, or what it drew
            would be looked at the next time.
        folder: below it, with a slash behind it.
        above: folders that lead there.

    Yields:
        Paths relative to the root, sorted.

    Raises:
        BadInput: the root itself cannot be read.
    """
    try:
        facts = (root / folder).stat()
        with os.scandir(root / folder) as entries:
            members = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        if folder:
            passed_over[UNREADABLE] += 1
            return
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}. Type a folder that you may read") from error
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    if folder and made_here(root / folder, [name for name, is_dir in members if not is_dir]):
        passed_over[OURS] += 1
        return
    shown = [(name, is_dir) for name, is_dir in members if not name.startswith(".")]
    passed_over[HIDDEN] += sum(name.startswith(".") and not is_partial(root / folder / name) for name, _ in members)
    for name, is_dir in shown:
        if is_dir or (not folder and name in NAMES):  # a table of labels is read, not passed over
            continue
        if is_picture(name, lambda path=root / folder / name: head_of(path)):
            yield f"{folder}{name}"
        else:
            passed_over[not_a_picture(name)] += 1
    for name, is_dir in shown:
        if is_dir:
            yield from pictures_under(root, passed_over, f"{folder}{name}/", above | {here})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle: walked as a file, and named there as one that cannot be read
        return False


def _within(name: str, *roots: Path) -> str:
    """Return a table's path relative to the folder, where it is written out in full."""
    root = next((root for root in roots if Path(name).is_absolute() and Path(name).is_relative_to(root)), None)
    return name if root is None else Path(name).relative_to(root).as_posix()
