"""From what a person names to a source of pictures: one route per form."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from clip_anatomy.data.picture import SUFFIXES, Source, read_data
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.files import path_of

FORMS = (
    "a folder | a list of paths in a .txt | a table .csv, .json or .jsonl | tar files (one, a folder of them, or 'a-*.tar') | "
    "hf-dataset:NAME[:SPLIT] or a folder saved by datasets | world:COUNT[:SPLIT] | a Python list | published data sets: "
    "imagenet:, waterbirds:, cub:, cifar10: or cifar100: and FOLDER[:SPLIT][:partial]"
)


def open_dataset(source: Any, labels: str | Path | None = None) -> Source:
    """Make a collection of what people type.

    Args:
        source: a folder (class folders give the labels; a `metadata.csv`, `.json` or `.jsonl` in it gives more); a text
            file with one path a line; a table (CSV, JSON, JSONL) with a column of paths; webdataset-style tars: one
            file, a folder that holds nothing else, or a pattern such as `train-*.tar`; `hf-dataset:NAME[:SPLIT]` or a
            folder that `save_to_disk` wrote; `world:COUNT[:SPLIT]`, the demo world; `imagenet:FOLDER`,
            `waterbirds:FOLDER`, `cub:FOLDER`, `cifar10:FOLDER` or `cifar100:FOLDER`, each also with a split and `partial`
            behind; a list of paths, images or `Picture`s; or any object that is a `Source` itself.
        labels: a table for folders, lists and tars: path → label, group, captions and other columns.

    Returns:
        The collection.

    Raises:
        BadInput: nothing of this kind, or nothing there.

    Example:
        >>> source = open_dataset("world:3:test")
        >>> [picture.id for picture in source]
        ['world-0-test-0', 'world-0-test-1', 'world-0-test-2']
    """
    from clip_anatomy.data import cifar, cub, folders, imagenet, tars, waterbirds
    from clip_anatomy.data import hugging_face as datasets
    from clip_anatomy.data.tables import read_table
    from clip_anatomy.data.world import source as worlds

    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return folders.PythonList.of(source)
    if not isinstance(source, str | Path):
        if isinstance(source, Source):
            return source
        raise BadInput(f"a source of type {type(source).__name__} is not known. Type one of: {FORMS}")
    name = str(source)
    scheme, _, rest = name.partition(":")
    named: dict[str, Callable[[str], Source]] = {
        "world": worlds.WorldSource.of,
        "hf-dataset": datasets.HubDataset.of,
        "imagenet": imagenet.imagenet,
        "waterbirds": waterbirds.waterbirds,
        "cub": cub.cub,
        "cifar10": cifar.cifar10,
        "cifar100": cifar.cifar100,
    }
    if scheme in named and rest:
        return named[scheme](rest)
    table = {} if labels is None else read_table(Path(labels))
    path = path_of(name)
    if path.is_dir():
        if datasets.is_saved(path):
            return datasets.HubDataset.of(str(path.resolve()))
        if tars.only_tars(path):
            return tars.Tars.of(path / "*.tar", table)
        return folders.Folder.of(path, table)
    if any(c in path.name for c in "*?[") or path.suffix == ".tar":
        return tars.Tars.of(path, table)
    if not path.exists():
        raise BadInput(f"there is no {name!r} here. Type one of: {FORMS}")
    if path.suffix.lower() in {".csv", ".json", ".jsonl", ".tsv"}:
        return folders.ImageList.of_table(path)
    if path.suffix.lower() in {".txt", ".lst", ""}:
        return folders.ImageList.of_lines(path, table)
    if path.suffix.lower() in SUFFIXES:
        return folders.PythonList.of([path])
    raise BadInput(f"{name!r} is no collection. Type one of: {FORMS}")


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
    return Folder(Path(spec)) if Path(spec).is_dir() and Path(spec).is_absolute() else open_dataset(spec)
