"""COCO: objects, things and stuff, and labels per picture, from its own JSON files and pixel maps."""

import importlib
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from clip_anatomy.data.class_names import COCO_STUFF, COCO_THINGS
from clip_anatomy.data.masked import (
    IGNORED,
    LabelledPicture,
    MaskedDataset,
    MaskedPicture,
    TaggedDataset,
    need,
    read_ids,
    read_picture,
    relabel,
)
from clip_anatomy.errors import BadInput, MissingExtra

WHERE = (
    "Get val2017.zip and annotations_trainval2017.zip from the COCO site, for stuff also stuff_annotations_trainval2017.zip, or "
    "stuffthingmaps_trainval2017.zip from the COCO-Stuff project, and unpack them into one folder. Type that folder (with "
    "val2017 and annotations, or stuffthingmaps, in it)"
)
MAPS = "stuffthingmaps"


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
    found = _read(path, split, ("instances",))
    painted = partial(_painted, table=order, rest=0)
    return MaskedDataset(
        f"COCO-Object {split}, 81 classes", classes, _drawn(path, split, found, painted), 0, (_SAID["json"],)
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
    found = _read(path, split, ("stuff", "instances"))
    painted = partial(_painted, table=order, rest=IGNORED)
    return MaskedDataset(name, tuple(known.values()), _drawn(path, split, found, painted), None, (_SAID["json"],))


def open_coco_labels(path: Path, *, split: str = "val2017") -> TaggedDataset:
    """Tell which of the eighty things each picture shows, from the instances; pictures without any stay in.

    Args:
        path: the folder.
        split: val2017, train2017, val2014…

    Raises:
        BadInput: something is missing.
    """
    found = _read(path, split, ("instances",))
    order = {number: at for at, number in enumerate(COCO_THINGS)}
    labels: dict[int, set[int]] = defaultdict(set)
    for one in found["annotations"]:
        labels[one["image_id"]].add(order[_category(one, order)])
    entries = tuple(
        LabelledPicture(
            one["file_name"], partial(read_picture, path / split / one["file_name"]), tuple(sorted(labels[one["id"]]))
        )
        for one in found["images"]
    )
    return TaggedDataset(f"COCO {split}, {len(order)} classes", tuple(COCO_THINGS.values()), entries)


_SAID = {
    MAPS: "masks from stuffthingmaps",
    "json": "masks painted from the JSON files: stuff below things, larger instances below smaller ones",
}


def _mapped(path: Path, split: str, table: Mapping[int, int]) -> tuple[MaskedPicture, ...]:
    need(path, split, what="COCO", where=WHERE)

    def entry(file: Path) -> MaskedPicture:
        picture = path / split / f"{file.stem}.jpg"
        return MaskedPicture(
            file.stem, lambda: read_picture(picture), lambda: relabel(read_ids(file), table, str(file))
        )

    files = sorted((path / MAPS / split).glob("*.png"))
    if not files:
        raise BadInput(f"{path / MAPS / split} holds no masks: it is empty. {WHERE}")
    return tuple(entry(file) for file in files)


def _read(path: Path, split: str, kinds: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Read Images and annotations of one or two JSON files, in the order in which they are painted."""
    names = [f"annotations/{kind}_{split}.json" for kind in kinds]
    need(path, split, *names, what="COCO", where=WHERE)
    images: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for name in names:
        try:
            found = json.loads((path / name).read_text(encoding="utf-8"))
            images |= {one["id"]: one for one in found["images"]}
            annotations += sorted(found["annotations"], key=lambda one: -float(one.get("area", 0)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path / name} is no COCO file ({type(error).__name__}: {error}). {WHERE}") from error
    if not images:
        raise BadInput(f"{path / names[0]} lists no pictures: it is empty. {WHERE}")
    return {"images": list(images.values()), "annotations": annotations}


def _drawn(path: Path, split: str, found: dict[str, list[dict[str, Any]]], painted: Any) -> tuple[MaskedPicture, ...]:
    _masks()  # say now, not at the first picture, that pycocotools is missing
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in found["annotations"]:
        by_image[one["image_id"]].append(one)
    return tuple(
        MaskedPicture(
            one["file_name"],
            partial(read_picture, path / split / one["file_name"]),
            partial(painted, by_image[one["id"]], (one["height"], one["width"])),
        )
        for one in found["images"]
    )


def _painted(
    parts: list[dict[str, Any]], size: tuple[int, int], *, table: Mapping[int, int], rest: int
) -> "Int[np.ndarray, 'row col']":
    canvas = np.full(size, rest, np.int32)
    for one in parts:
        number = _category(one, table, other=183)
        if number is not None:
            canvas[_decoded(one["segmentation"], size)] = table[number]
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


def _decoded(shape: Any, size: tuple[int, int]) -> Bool[np.ndarray, "row col"]:
    """Turn polygons, run lengths as a list, or run lengths as COCO's string into pixels."""
    tool = _masks()
    if isinstance(shape, list) or isinstance(shape.get("counts"), list):
        coded = tool.frPyObjects(shape, *size)
    else:
        coded = {"size": shape["size"], "counts": shape["counts"].encode("ascii")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own array type, under numpy 2
        found = tool.decode(tool.merge(coded) if isinstance(coded, list) else coded)
    if found.shape != size:
        raise BadInput(f"a mask of {found.shape} in a picture of {size} pixels. Bring back the original JSON file")
    return found.astype(bool)
