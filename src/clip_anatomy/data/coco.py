"""COCO: objects, things and stuff, and labels per picture, from its own JSON files and pixel maps."""

import importlib
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64
from PIL import Image

from clip_anatomy.data.class_names import COCO_STUFF, COCO_THINGS
from clip_anatomy.data.masked import (
    IGNORED,
    LabelledPicture,
    MaskedDataset,
    MaskedPicture,
    TaggedDataset,
    class_numbers,
    need,
    read_ids,
    read_picture,
)
from clip_anatomy.errors import BadInput, MissingExtra, reading
from clip_anatomy.files import read_json
from clip_anatomy.number_ranges import LARGEST as MOST_PIXELS
from clip_anatomy.number_ranges import whole

WHERE = (
    "Get val2017.zip and annotations_trainval2017.zip from the COCO site, for stuff also stuff_annotations_trainval2017.zip, or "
    "stuffthingmaps_trainval2017.zip from the COCO-Stuff project, and unpack them into one folder. Type that folder (with "
    "val2017 and annotations, or stuffthingmaps, in it)"
)
MAPS = "stuffthingmaps"
LARGEST = 2**31  # bytes of a JSON file; the largest of COCO has 1.1 GB
MOST_LETTERS = 7  # of a run length


def open_coco_object(path: Path, *, split: str = "val2017") -> MaskedDataset:
    """COCO-Object: eighty things and the background.

    From `stuffthingmaps` where they are, else from the instances, larger ones painted first, so that what is small or in front
    stays visible. Every other pixel is background, stuff and unlabelled ones alike: so is the data set that papers share, which
    GroupViT's authors made from `stuffthingmaps`.

    Args:
        path: the folder.
        split: val2017 or train2017.

    Raises:
        BadInput: something is missing.
    """
    order = {number: at + 1 for at, number in enumerate(COCO_THINGS)}
    classes = ("background", *COCO_THINGS.values())
    if (path / MAPS / split).is_dir():
        table = {number - 1: order.get(number, 0) for number in range(1, 183)} | {255: 0}
        return MaskedDataset(
            f"COCO-Object {split}, 81 classes", classes, _mapped(path, split, table), 0, (_SAID[MAPS],)
        )
    annotations = _read(path, split, ("instances",))
    painted = partial(_painted, table=order, rest=0)
    return MaskedDataset(
        f"COCO-Object {split}, 81 classes", classes, _drawn(path, split, annotations, painted), 0, (_SAID["json"],)
    )


def open_coco_stuff(path: Path, *, split: str = "val2017") -> MaskedDataset:
    """COCO-Stuff: eighty things and ninety-one stuff classes, every pixel that has a label.

    From `stuffthingmaps` where they are, else stuff first and instances over it.

    Args:
        path: the folder.
        split: val2017 or train2017.

    Raises:
        BadInput: something is missing.
    """
    known = COCO_THINGS | COCO_STUFF
    order = {number: at for at, number in enumerate(known)}
    name = f"COCO-Stuff {split}, {len(known)} classes"
    if (path / MAPS / split).is_dir():
        table = {number - 1: order.get(number, IGNORED) for number in range(1, 183)} | {255: IGNORED}
        return MaskedDataset(name, tuple(known.values()), _mapped(path, split, table), None, (_SAID[MAPS],))
    annotations = _read(path, split, ("stuff", "instances"))
    painted = partial(_painted, table=order, rest=IGNORED)
    return MaskedDataset(name, tuple(known.values()), _drawn(path, split, annotations, painted), None, (_SAID["json"],))


def open_coco_labels(path: Path, *, split: str = "val2017") -> TaggedDataset:
    """Tell which of the eighty things each picture shows, from the instances; pictures without any stay in.

    Args:
        path: the folder.
        split: val2017, train2017, val2014…

    Raises:
        BadInput: something is missing.
    """
    annotations = _read(path, split, ("instances",))
    order = {number: at for at, number in enumerate(COCO_THINGS)}
    labels: dict[int, set[int]] = defaultdict(set)
    for one in annotations["annotations"]:
        labels[one["image_id"]].add(order[_category(one, order)])
    entries = tuple(
        LabelledPicture(
            one["file_name"], partial(read_picture, path / split / one["file_name"]), tuple(sorted(labels[one["id"]]))
        )
        for one in annotations["images"]
    )
    return TaggedDataset(f"COCO {split}, {len(order)} classes", tuple(COCO_THINGS.values()), entries)


_SAID = {
    MAPS: "masks from stuffthingmaps",
    "json": "masks painted from the JSON files: stuff below things, larger instances below smaller ones",
}


def _mapped(path: Path, split: str, table: Mapping[int, int]) -> tuple[MaskedPicture, ...]:
    need(path, split, what="COCO", where=WHERE)

    files = sorted((path / MAPS / split).glob("*.png"))
    if not files:
        raise BadInput(f"{path / MAPS / split} holds no masks: it is empty. {WHERE}")
    return tuple(
        MaskedPicture(
            file.stem,
            partial(read_picture, path / split / f"{file.stem}.jpg"),
            partial(class_numbers, file, table, read_ids),
        )
        for file in files
    )


def _read(path: Path, split: str, kinds: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Read Images and annotations of one or two JSON files, in the order in which they are painted."""
    names = [f"annotations/{kind}_{split}.json" for kind in kinds]
    need(path, split, *names, what="COCO", where=WHERE)
    images: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for name in names:
        with reading(path / name, f"It is no COCO file. {WHERE}"):
            content = read_json(path / name, f"It is no COCO file. {WHERE}", largest=LARGEST)
            images |= {one["id"]: image_entry(one) for one in content["images"]}
            known = [{**one, "image_id": one["image_id"]} for one in content["annotations"]]
            annotations += sorted(known, key=lambda one: -float(one.get("area", 0)))
    if not images:
        raise BadInput(f"{path / names[0]} lists no pictures: it is empty. {WHERE}")
    return {"images": list(images.values()), "annotations": annotations}


def image_entry(one: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a file says of one picture."""
    rows, cols = (whole(name, one[name], 1) for name in ("height", "width"))
    if rows * cols > (Image.MAX_IMAGE_PIXELS or MOST_PIXELS):
        raise ValueError(f"the picture {one['id']} has {rows} × {cols} pixels")
    return {"id": one["id"], "file_name": str(one["file_name"]), "height": rows, "width": cols}


def _drawn(
    path: Path, split: str, annotations: dict[str, list[dict[str, Any]]], painted: Any
) -> tuple[MaskedPicture, ...]:
    _masks()  # say now, not at the first picture, that pycocotools is missing
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in annotations["annotations"]:
        by_image[one["image_id"]].append(one)
    return tuple(
        MaskedPicture(
            one["file_name"],
            partial(read_picture, path / split / one["file_name"]),
            partial(painted, by_image[one["id"]], (one["height"], one["width"])),
        )
        for one in annotations["images"]
    )


def _painted(
    parts: list[dict[str, Any]], size: tuple[int, int], *, table: Mapping[int, int], rest: int
) -> "Int[np.ndarray, 'row col']":
    canvas = np.full(size, rest, np.int32)
    for one in parts:
        with reading(f"annotation {one.get('id')}", "Bring back the original JSON file"):
            number = _category(one, table, other=183)
            if number is not None:
                canvas[decoded(one["segmentation"], size)] = table[number]
    return canvas


def _category(one: dict[str, Any], table: Mapping[int, int], other: int | None = None) -> Any:
    """Return the category; None for 183, COCO-Stuff's "other" (all that is a thing)."""
    number = one.get("category_id")
    if number is not None and number == other and number not in table:
        return None
    if number not in table:
        raise BadInput(
            f"annotation {one.get('id')} holds an unknown id: category {number}. Type the folder with COCO's own JSON files"
        )
    return number


def _masks() -> Any:
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise MissingExtra("pycocotools", "measure") from error


def decoded(shape: Any, size: tuple[int, int]) -> Bool[np.ndarray, "row col"]:
    """Turn polygons, run lengths as a list, or run lengths as COCO's string into pixels.

    Native code sees polygons only, and only those that lie about the picture: it checks nothing.

    Raises:
        ValueError: a mask of another size, or one that does not cover the picture exactly.
    """
    if isinstance(shape, list):
        tool, polygons = _masks(), [_polygon(one, size) for one in shape]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own array type, under numpy 2
            return tool.decode(tool.merge(tool.frPyObjects(polygons, *size))).astype(bool)
    if list(shape["size"]) != list(size):
        raise ValueError(f"a mask of {shape['size']} in a picture of {list(size)} pixels")
    counts = shape["counts"]
    runs = np.array(counts, dtype=np.int64) if isinstance(counts, list) else _runs_of(counts)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(f"its runs cover {runs.sum()} of {size[0] * size[1]} pixels")
    on = np.arange(len(runs)) % 2 == 1  # they begin with what is not the object, and go down the columns
    return np.repeat(on, runs).reshape(size, order="F")


def _polygon(corners: Any, size: tuple[int, int]) -> list[float]:
    """Check a polygon: x and y in turns, of three corners or more, none farther from the picture than its own side."""
    numbers = np.array(corners, dtype=np.float64)
    most = 2 * max(size)
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not (np.abs(numbers) <= most).all():
        raise ValueError(f"a polygon of {len(corners)} numbers that lie about no picture of {list(size)} pixels")
    return numbers.tolist()


def _runs_of(text: str) -> Int64[np.ndarray, " run"]:
    """Decode COCO's string of run lengths: five bits a letter, lowest first; from the fourth run on the difference to the last but one.

    Example:
        >>> _runs_of("52203").tolist()  # 5, 2, 2, then 2 + 0, then 2 + 3
        [5, 2, 2, 2, 5]
    """
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(letters) or (letters < 0).any() or (letters > 63).any() or letters[-1] & 32:
        raise ValueError("its string of run lengths is cut or damaged")
    first = np.concatenate([[0], np.flatnonzero(letters & 32 == 0)[:-1] + 1])  # letter of each run
    places = np.arange(len(letters)) - np.repeat(first, np.diff([*first, len(letters)]))
    if places.max() > MOST_LETTERS:
        raise ValueError("a run length of too many letters")
    runs = np.add.reduceat((letters & 31) << 5 * places, first)
    last = np.flatnonzero(letters & 32 == 0)
    runs -= np.where(letters[last] & 16, 1 << 5 * (places[last] + 1), 0)  # negative differences
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
