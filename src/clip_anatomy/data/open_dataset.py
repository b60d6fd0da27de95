"""From what a person names to a source of pictures: one route per form."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from clip_anatomy.data.picture import Source, read_data
from clip_anatomy.data.picture_files import head_of, is_picture
from clip_anatomy.data.tables import TABLES
from clip_anatomy.data.tars import TARS
from clip_anatomy.data.video_file import VIDEOS, Video
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.files import LARGEST_TEXT, path_of, resolved
from clip_anatomy.network import named_by_a_file
from clip_anatomy.objects import ObjectPlace, is_object_url

STDIN = ("-", "/dev/stdin")
LISTS = (".txt", ".lst")
FORMS = (
    "a folder | - for paths on standard input | a list of paths in a .txt | a table .csv, .json or .jsonl | tar files (one, a folder "
    "of them, or 'a-*.tar') | Parquet | s3://, gs:// or az:// with pictures, tars, a table or Parquet | a video | hf-dataset:NAME[:SPLIT] (hf-stream: without downloading it first) or a folder saved by datasets | world:COUNT[:SPLIT] | a Python list | published data sets: "
    "imagenet:, waterbirds:, cub:, cifar10: or cifar100: and FOLDER[:SPLIT][:partial]"
)


def open_dataset(source: Any, labels: str | Path | None = None) -> Source:
    """Make a collection of what people type.

    Args:
        source: a folder (class folders give the labels; a `metadata.csv`, `.json` or `.jsonl` in it gives more); "-" (paths on
            standard input, one a line); a text file with one path a line; a table (CSV, JSON, JSONL) with a column of paths; webdataset-style tars: one
            file, a folder that holds nothing else, or a pattern such as `train-*.tar`; Parquet files with pictures or paths; an address of object
            storage (`s3://bucket/photos`, `gs://`, `az://`): pictures below it, tars (`{000..010}.tar`), a table or Parquet; a video, frame by frame; `hf-dataset:NAME[:SPLIT]` (`hf-stream:` without downloading it first) or a
            folder that `save_to_disk` wrote; `world:COUNT[:SPLIT]`, the demo world; `imagenet:FOLDER`,
            `waterbirds:FOLDER`, `cub:FOLDER`, `cifar10:FOLDER` or `cifar100:FOLDER`, each also with a split and `partial`
            behind; a list of paths, images or `Picture`s; or any object that is a `Source` itself.
        labels: a table: id, path or file name → label, group, captions and other columns. It wins over what the source says.

    Returns:
        The collection.

    Raises:
        BadInput: nothing of this kind, or nothing there.

    Example:
        >>> source = open_dataset("world:3:test")
        >>> [picture.id for picture in source]
        ['world-0-test-0', 'world-0-test-1', 'world-0-test-2']
    """
    from clip_anatomy.data import folders, object_pictures, tars
    from clip_anatomy.data import hugging_face as datasets
    from clip_anatomy.data.labelled_source import LabelledSource
    from clip_anatomy.data.parquet import ParquetFiles

    if labels is not None:
        return LabelledSource.of(open_dataset(source), path_of(labels))
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return folders.PythonList.of(source)
    if not isinstance(source, str | Path):
        if isinstance(source, Source):
            return source
        raise BadInput(f"a source of type {type(source).__name__} is not known. Type one of: {FORMS}")
    name = str(source)
    if name in STDIN:
        return folders.PythonList.of(typed_lines())
    scheme, _, rest = name.partition(":")
    if rest and (opener := _named_collections().get(scheme)) is not None:
        return opener(rest)
    if is_object_url(name):
        place = ObjectPlace.of(name)
        if place.folder is None:
            return object_pictures.opened_object(place) or ParquetFiles.of(place)
        name = place.url
    path = path_of(name)
    if path.is_dir():
        if datasets.is_saved(path):
            return datasets.HubDataset.of(str(resolved(path)))
        if tars.only_tars(path):
            return tars.Tars.of(path / "*.tar")
        return folders.Folder.of(path)
    if path.suffix.lower() == ".parquet":
        return ParquetFiles.of(ObjectPlace.of(path))
    if any(c in path.name for c in "*?[") or path.name.lower().endswith(TARS):
        return tars.Tars.of(path)
    if not path.exists():
        raise BadInput(f"there is no {name!r} here. Type one of: {FORMS}")
    ending = path.suffix.lower()
    if ending in TABLES:
        return folders.ImageList.of_table(path)
    if ending in VIDEOS:
        return Video.of(path)
    if is_picture(path.name, lambda: head_of(path)):
        return folders.PythonList.of([path])
    if ending in LISTS or not ending:
        return folders.ImageList.of_lines(path)
    raise BadInput(f"{name!r} is no collection. Type one of: {FORMS}")


def is_collection(name: str | Path) -> bool:
    """Whether a name as typed stands for many pictures, not for one: `open_dataset` opens it."""
    scheme, _, rest = str(name).partition(":")
    if (rest and scheme in _named_collections()) or is_object_url(name):
        return True
    path = path_of(name)
    return path.is_dir() or path.name.lower().endswith((*TABLES, *LISTS, *TARS, *VIDEOS, ".parquet"))


def typed_lines() -> list[str]:
    """Read paths from standard input: one a line, or with a NUL behind each (`find -print0`).

    Raises:
        BadInput: nothing came.
    """
    content = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(LARGEST_TEXT)
    between = b"\0" if b"\0" in content else b"\n"
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in content.split(between) if line.strip()]
    if not lines:
        raise BadInput(
            "- reads paths from standard input, and none came. Type: find photos -name '*.jpg' | clip-anatomy …"
        )
    return lines


def _named_collections() -> dict[str, Callable[[str], Source]]:
    """Return what opens a collection by what stands before a colon."""
    from clip_anatomy.data import cifar, cub, imagenet, waterbirds
    from clip_anatomy.data import hugging_face as datasets
    from clip_anatomy.data.world import source as worlds

    return {
        "world": worlds.WorldSource.of,
        "hf-dataset": datasets.HubDataset.of,
        "hf-stream": partial(datasets.HubDataset.of, streamed=True),
        "imagenet": imagenet.imagenet,
        "waterbirds": waterbirds.waterbirds,
        "cub": cub.cub,
        "cifar10": cifar.cifar10,
        "cifar100": cifar.cifar100,
    }


def picture_of(source: str, path: str | None, name: str) -> Image.Image:
    """Return the original picture of a row: `picture_of(row.source, row.path, row.id)`.

    Raises:
        BadImage: it was handed over in memory, or is no longer where it was.
    """
    if path is None:
        raise BadImage(f"{name} was handed over in memory; a store does not keep pictures. Index files instead")
    try:
        return read_data(_opened(source).fetch(path), name)
    except BadInput as error:
        raise BadImage(f"{name} cannot be shown: {error}") from error


@lru_cache(maxsize=16)
def _opened(spec: str) -> "Source":
    from clip_anatomy.data.folders import PYTHON_LIST, Folder, PythonList

    if spec == PYTHON_LIST:
        return PythonList(())
    with named_by_a_file():
        return Folder(Path(spec)) if Path(spec).is_dir() and Path(spec).is_absolute() else open_dataset(spec)
