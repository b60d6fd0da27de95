"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), as Python batches or as binary files; needs neither torchvision nor pickle."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clip_anatomy.data.pickle_reader import read_safe_pickle
from clip_anatomy.data.picture import ImageData, Picture
from clip_anatomy.data.published_copies import DatasetCopy, PublishedDataset
from clip_anatomy.errors import BadInput
from clip_anatomy.files import read_lines

__all__ = ["CIFAR10", "CIFAR100", "Cifar", "cifar10", "cifar100"]

WHERE = "from its author's page at the University of Toronto (archives {0}-python and {0}-binary)"
CIFAR10 = PublishedDataset("cifar10", "CIFAR-10", WHERE.format("cifar-10"), {"train": 50_000, "test": 10_000})
CIFAR100 = PublishedDataset("cifar100", "CIFAR-100", WHERE.format("cifar-100"), {"train": 50_000, "test": 10_000})
SIDE = 32
VALUES = 3 * SIDE * SIDE
PARTS = {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)}
WHOLE = {"train": ("train",), "test": ("test",)}


@dataclass(frozen=True)
class Layout:
    """One of the two forms in which a data set is published.

    Attributes:
        folder: into which its archive unpacks.
        files: per split.
        names: file and key of class names; coarse ones after it.
        labels: key of the labels in a Python batch; of the coarse ones after it.
        binary: whether the files are binary.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    names: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    binary: bool


LAYOUTS = {
    "cifar10": (
        Layout("cifar-10-batches-py", PARTS, (("batches.meta", "label_names"),), ("labels",), False),
        Layout(
            "cifar-10-batches-bin",
            {split: tuple(f"{name}.bin" for name in names) for split, names in PARTS.items()},
            (("batches.meta.txt", ""),),
            ("labels",),
            True,
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python",
            WHOLE,
            (("meta", "fine_label_names"), ("meta", "coarse_label_names")),
            ("fine_labels", "coarse_labels"),
            False,
        ),
        Layout(
            "cifar-100-binary",
            {split: tuple(f"{name}.bin" for name in names) for split, names in WHOLE.items()},
            (("fine_label_names.txt", ""), ("coarse_label_names.txt", "")),
            ("fine_labels", "coarse_labels"),
            True,
        ),
    ),
}


@dataclass(frozen=True)
class Batch:
    """The images of one file.

    Attributes:
        images: the pixels.
        labels: class of each; for CIFAR-100 the class, then the superclass.
        names: file names that a Python batch tells, else empty.
    """

    images: UInt8[np.ndarray, "image 32 32 3"] = field(repr=False)
    labels: tuple[tuple[int, ...], ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Cifar:
    """CIFAR as a collection. Label is the class; for CIFAR-100 the group is the superclass. `meta` holds split and file name."""

    copy: DatasetCopy
    layout: Layout = field(repr=False)
    words: tuple[tuple[str, ...], ...] = field(repr=False)
    files: tuple[tuple[str, str], ...]
    images: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes in the data set's own order."""
        return self.words[0]

    @property
    def spec(self) -> str:
        """The spec that opens it again."""
        return self.copy.spec

    def __iter__(self) -> Iterator[Picture]:
        """Walk the files in their order, one of them in memory at a time."""
        self.check()
        scheme = self.copy.of.scheme
        for split, file in self.files:
            batch = self.read(file)
            for at in range(len(batch.images)):
                labels = [names[batch.labels[kind][at]] for kind, names in enumerate(self.words)]
                meta: dict[str, Any] = {"split": split} | ({"filename": batch.names[at]} if batch.names else {})
                place = f"{file.removesuffix('.bin')}#{at}"
                yield Picture(
                    f"{scheme}/{place}",
                    batch.images[at],
                    place,
                    labels[0],
                    labels[1] if len(labels) > 1 else "",
                    (),
                    meta,
                )

    def count(self) -> int:
        """Count the images."""
        return self.images

    def check(self) -> None:
        """Raise BadInput when the copy has gone."""
        self.copy.check()

    def fetch(self, path: str) -> ImageData:
        """Read the pixels at `file#number`."""
        name, _, at = path.partition("#")
        file = next((file for _, file in self.files if file.removesuffix(".bin") == name), None)
        if file is None or not at.isdecimal():
            raise BadInput(f"{path} is not in {self.spec}. Type, for example: {self.files[0][1]}#0")
        batch = self.read(file)
        if int(at) >= len(batch.images):
            raise BadInput(f"{path}: {file} holds {len(batch.images):,} images. Type a smaller number")
        return batch.images[int(at)]

    def read(self, file: str) -> Batch:
        """Read one of its files whole.

        Raises:
            BadInput: it is gone or damaged.
        """
        path = self.copy.root / file
        try:
            batch = _batch_of(path, path.stat().st_mtime_ns, self.layout.labels, self.layout.binary)
        except FileNotFoundError:
            raise self.copy.wrong(f"{path} is no longer there") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise self.copy.wrong(f"{path} is no batch of CIFAR ({error})") from error
        for kind, names in enumerate(self.words):
            if batch.labels[kind] and not 0 <= min(batch.labels[kind]) <= max(batch.labels[kind]) < len(names):
                raise self.copy.wrong(
                    f"{path} has labels {min(batch.labels[kind])} to {max(batch.labels[kind])} for {len(names)} class names"
                )
        return batch


def cifar10(rest: str) -> Cifar:
    """Open `FOLDER[:train|test][:partial]` of CIFAR-10: the Python or the binary version, or the folder around either.

    Raises:
        BadInput: no such copy, not a whole one, or a damaged file.
    """
    return _open(CIFAR10, rest)


def cifar100(rest: str) -> Cifar:
    """Open `FOLDER[:train|test][:partial]` of CIFAR-100: the Python or the binary version, or the folder around either.

    Raises:
        BadInput: no such copy, not a whole one, or a damaged file.
    """
    return _open(CIFAR100, rest)


def _open(published: PublishedDataset, rest: str) -> Cifar:
    layouts = LAYOUTS[published.scheme]
    copy = published.copy_at(rest, [layout.folder for layout in layouts])
    layout = next((one for one in layouts if (copy.root / one.names[0][0]).is_file()), None)
    if layout is None:
        other = [name for name, many in LAYOUTS.items() if name != published.scheme for one in many if (copy.root / one.names[0][0]).is_file()]  # fmt: skip
        hint = f" It looks like another one; type: {other[0]}:{copy.root}." if other else ""
        raise BadInput(
            f"{copy.root} has no {' or '.join(one.names[0][0] for one in layouts)}, so it is no copy of {published.title}.{hint} "
            f"It is to be had {published.where}. Type: {published.form}"
        )
    words = tuple(_words(copy, layout, *name) for name in layout.names)
    expected = 10 if published is CIFAR10 else 100
    if len(words[0]) != expected:
        raise copy.wrong(f"{layout.names[0][0]} names {len(words[0])} classes, {expected} were expected")
    files = [(s, name) for s in copy.splits for name in layout.files[s] if (copy.root / name).is_file()]
    source = Cifar(copy, layout, words, tuple(files), 0)
    counts = {split: sum(_length(source, name) for s, name in files if s == split) for split in copy.splits}
    lost = [name for s in copy.splits for name in layout.files[s] if (s, name) not in files]
    copy.hold_to(counts, f"; missing: {', '.join(lost)}" if lost else "")
    return Cifar(copy, layout, words, tuple(files), sum(counts.values()))


def _words(copy: DatasetCopy, layout: Layout, file: str, key: str) -> tuple[str, ...]:
    path = copy.need(file)
    if layout.binary:
        return tuple(line.replace("_", " ") for line in read_lines(path, errors="replace"))
    words = read_safe_pickle(path).get(key)
    if not isinstance(words, list):
        raise copy.wrong(f"{path} has no {key}")
    return tuple((name.decode("latin-1") if isinstance(name, bytes) else str(name)).replace("_", " ") for name in words)


def _length(source: Cifar, file: str) -> int:
    """Return Images of a file; a binary file tells it by its size, a Python one is read."""
    if not source.layout.binary:
        return len(source.read(file).images)
    record, size = VALUES + len(source.layout.labels), (source.copy.root / file).stat().st_size
    if size % record:
        raise source.copy.wrong(f"{source.copy.root / file} has {size:,} bytes, a multiple of {record:,} was expected")
    return size // record


@lru_cache(maxsize=2)
def _batch_of(path: Path, _: int, keys: tuple[str, ...], binary: bool) -> Batch:
    """Read one file (30 MB, or 150 MB for CIFAR-100); looked up again while it is unchanged."""
    if binary:
        raw = np.fromfile(path, np.uint8).reshape(-1, VALUES + len(keys))
        # In the binary CIFAR-100 the superclass comes first.
        labels = tuple(tuple(raw[:, at].tolist()) for at in reversed(range(len(keys))))
        return Batch(_upright(raw[:, len(keys) :]), labels, ())
    batch = read_safe_pickle(path)
    data = batch["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != VALUES:
        raise ValueError(f"its data are not [image, {VALUES}] bytes")
    labels = tuple(tuple(int(label) for label in batch[key]) for key in keys)
    names = tuple(
        name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in batch.get("filenames", ())
    )
    if {len(one) for one in (*labels, names or labels[0])} != {len(data)}:
        raise ValueError(f"it holds {len(data)} images and another number of labels")
    return Batch(_upright(data), labels, names)


def _upright(flat: UInt8[np.ndarray, "image value"]) -> UInt8[np.ndarray, "image 32 32 3"]:
    """Return planes of red, green, blue as pixels."""
    return np.ascontiguousarray(flat.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
