"""Pictures in which a phrase names a region: RefCOCO, RefCOCO+ and RefCOCOg as `refer` (Yu et al. 2016) ships them, and PhraseCut.

Every sentence is an entry of its own, as the published figures count them. References are a pickle, which is read without being run.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from clip_anatomy.data.coco import LARGEST, decoded, image_entry
from clip_anatomy.data.masked import need, read_picture
from clip_anatomy.data.pickle_reader import read_safe_pickle
from clip_anatomy.errors import BadInput, reading
from clip_anatomy.files import read_json, resolved

__all__ = ["PHRASECUT_WHERE", "REFCOCO_WHERE", "ReferredPicture", "ReferringDataset", "open_phrasecut", "open_refcoco"]

REFCOCO_WHERE = (
    "Get refcoco.zip, refcoco+.zip or refcocog.zip of the refer project and train2014.zip from the COCO site. Type the folder with "
    "refs(unc).p (of RefCOCOg refs(umd).p) and instances.json in it, with train2014 in it or beside it"
)
PHRASECUT_WHERE = (
    "Get refer_test.json, refer_val.json and the pictures by the downloader of the PhraseCut project. Type the folder with those files and "
    "images in it"
)
PLACES = ("train2014", "../train2014", "../images/mscoco/images/train2014")
INSTRUCTIONS = 2**24  # of a file of references; RefCOCO's have about five million
Mask = Bool[np.ndarray, "row col"]


@dataclass(frozen=True)
class ReferredPicture:
    """One phrase and the region that it names; nothing is read before it is asked for.

    Attributes:
        id: picture and phrase.
        file: name of the picture's file.
        phrase: as its author wrote it.
        picture: reads the picture, RGB. Raises BadImage.
        mask: draws the region. Raises BadInput.
        objects: draws every annotated object of the picture, the named one among them; None where the data set has only the named.
    """

    id: str
    file: str
    phrase: str
    picture: Callable[[], Image.Image] = field(repr=False)
    mask: Callable[[], Mask] = field(repr=False)
    objects: Callable[[], list[Mask]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ReferringDataset:
    """Phrases and regions.

    Attributes:
        name: of the data set and its split.
        entries: one a phrase.
        classes: none: what can be named is open.
        notes: what people should know about how it was read.
    """

    name: str
    entries: tuple[ReferredPicture, ...] = field(repr=False)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of phrases."""
        return len(self.entries)


def open_refcoco(path: Path, *, split: str, by: str = "unc") -> ReferringDataset:
    """Open RefCOCO, RefCOCO+ or RefCOCOg; which of them it is, the folder says.

    Args:
        path: the folder.
        split: val, testA (people) or testB (other things); of RefCOCOg val or test.
        by: who split it: unc (RefCOCO, RefCOCO+), umd or google (RefCOCOg).

    Raises:
        BadInput: something is missing or damaged, or the split has no phrase.
    """
    references = path / f"refs({by}).p"
    need(path, references.name, "instances.json", what="RefCOCO", where=REFCOCO_WHERE)
    pictures = next((path / place for place in PLACES if (path / place).is_dir()), None)
    if pictures is None:
        raise BadInput(f"{path} has no pictures: train2014 is not there. {REFCOCO_WHERE}")
    instead = f"It is no file of the refer project. {REFCOCO_WHERE}"
    with reading(path / "instances.json", instead):
        content = read_json(path / "instances.json", instead, largest=LARGEST)
        images = {one["id"]: image_entry(one) for one in content["images"]}
        objects = {one["id"]: one for one in content["annotations"]}
        of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for one in objects.values():
            of_image[one["image_id"]].append(one)
    entries: list[ReferredPicture] = []
    with reading(references, instead):
        for ref in read_safe_pickle(references, kind=list, most=INSTRUCTIONS):
            if not (split[-1] in ref["split"] if split in ("testA", "testB") else ref["split"] == split):
                continue
            image, named = images[ref["image_id"]], objects[ref["ann_id"]]
            size = image["height"], image["width"]
            for sentence in ref["sentences"]:
                entries.append(
                    ReferredPicture(
                        f"{image['file_name']} {sentence['sent_id']}",
                        image["file_name"],
                        str(sentence["sent"]),
                        partial(read_picture, pictures / image["file_name"]),
                        partial(_drawn, named, size),
                        partial(_every, of_image[ref["image_id"]], size),
                    )
                )
    if not entries:
        raise BadInput(f"{references} has no phrase of the split {split!r}. {REFCOCO_WHERE}")
    return ReferringDataset(f"{resolved(path).name} {split} ({by})", tuple(entries))


def open_phrasecut(path: Path, *, split: str = "test") -> ReferringDataset:
    """Open PhraseCut; the region of a phrase is the union of all instances that it names.

    Args:
        path: the folder.
        split: test, val, miniv or train.

    Raises:
        BadInput: something is missing or damaged.
    """
    file = path / f"refer_{split}.json"
    need(path, file.name, "images", what="PhraseCut", where=PHRASECUT_WHERE)
    instead = f"It is no file of PhraseCut. {PHRASECUT_WHERE}"
    entries: list[ReferredPicture] = []
    with reading(file, instead):
        for task in read_json(file, instead, of=list, largest=LARGEST):
            picture = path / "images" / f"{int(task['image_id'])}.jpg"
            corners = [[c for corner in one for c in corner] for instance in task["Polygons"] for one in instance]
            entries.append(
                ReferredPicture(
                    str(task["task_id"]), picture.name, str(task["phrase"]), partial(read_picture, picture), partial(_region, corners, picture)
                )
            )  # fmt: skip
    if not entries:
        raise BadInput(f"{file} lists no phrases: it is empty. {PHRASECUT_WHERE}")
    return ReferringDataset(f"PhraseCut {split}", tuple(entries))


def _drawn(annotation: dict[str, Any], size: tuple[int, int]) -> Mask:
    with reading(f"annotation {annotation.get('id')}", "Bring back the original instances.json"):
        return decoded(annotation["segmentation"], size)


def _every(annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> list[Mask]:
    return [_drawn(one, size) for one in annotations]


def _region(polygons: Sequence[Any], picture: Path) -> Mask:
    """Draw polygons on a picture of Visual Genome; those of fewer than three corners cover nothing."""
    image = read_picture(picture)
    with reading(f"the polygons of {picture.name}", "Bring back the original file"):
        return decoded([one for one in polygons if len(one) >= 6], (image.height, image.width))
