"""PASCAL Context: VOC 2010's photographs, every pixel labelled; the 59 frequent classes with or without the rest."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int

from clip_anatomy.data.class_names import CONTEXT_CLASSES
from clip_anatomy.data.masked import IGNORED, MaskedDataset, lines_of, need, paired, read_ids
from clip_anatomy.data.matlab import matlab_table
from clip_anatomy.errors import BadInput

WHERE = (
    "Get VOC2010 from the PASCAL VOC page of the University of Oxford, and from the PASCAL-Context page either "
    "trainval.tar.gz with labels.txt and 59_labels.txt, or 59_context_labels.tar.gz with 59_labels.txt; masks made with its "
    "Detail API (SegmentationClassContext) will do too. Type the folder VOC2010 (with JPEGImages, ImageSets and one of these "
    "three in it)"
)
# Folder of the masks → what the notes say of them, in the order in which they are looked for.
FORMS = {
    "SegmentationClassContext": "masks from SegmentationClassContext, the 59 classes in alphabetical order",
    "trainval": "masks from the data set's own label maps (trainval/*.mat, LabelMap), 459 labels to 59 by their names",
    "59_context_labels": "masks from 59_context_labels, numbered by 59_labels.txt",
}
# Three of the 59 are written otherwise in the list of 459; without these lines they would find no label at all.
IN_FULL = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
# The words of `CONTEXT_CLASSES`, so that all three forms ask for the same texts.
OURS = {"pottedplant": "potted plant", "tvmonitor": "television", **IN_FULL}


def open_context(path: Path, *, split: str = "val", background: bool = True, every: bool = False) -> MaskedDataset:
    """Open PASCAL Context in any of its three published forms.

    `trainval/*.mat` are the annotation itself: a `LabelMap` of 459 labels that `labels.txt` names, of which `59_labels.txt` names
    the 59 frequent ones; what is none of these is background. `59_context_labels/` are the same as pictures, numbered by
    `59_labels.txt`; in `SegmentationClassContext/` the 59 classes stand in alphabetical order.

    Args:
        path: VOC2010, or the VOCdevkit that holds it.
        split: train or val.
        background: 60 classes, or leave the pixels of no class out (59).
        every: all 459 labels, the 59 first; they are in `trainval` alone.

    Raises:
        BadInput: something is missing.
    """
    root = next((p for p in (path / "VOC2010", path / "VOCdevkit" / "VOC2010") if p.is_dir()), path)
    masks = next((n for n in FORMS if (root / n).is_dir()), "")
    lists = [f"ImageSets/{kind}/{split}.txt" for kind in ("SegmentationContext", "Main")]
    listed = next((n for n in lists if (root / n).is_file()), lists[0])
    need(root, "JPEGImages", listed, masks or "trainval", what="PASCAL Context", where=WHERE)
    read: Callable[[Path], Int[np.ndarray, "row col"]] = read_ids
    if masks == "trainval":
        chosen = _named(root, "59_labels.txt", 59)
        names, numbers, rest = tuple(chosen.values()), *_numbers(root, tuple(chosen.values()))
        if every:
            others = {n: name for n, name in _named(root, "labels.txt", 459).items() if n not in numbers}
            names, numbers, rest = (*names, *others.values()), (*numbers, *others), {0}
        read = _label_map
    elif every:
        raise BadInput(f"{root} has no trainval/*.mat, and only they hold all 459 labels. {WHERE}")
    else:
        own = masks == "SegmentationClassContext"
        names = CONTEXT_CLASSES if own else tuple(_named(root, "59_labels.txt", 59).values())
        numbers, rest = tuple(range(1, len(names) + 1)), {0}
    first = 1 if background else 0
    nothing = 0 if background else IGNORED
    table = {255: IGNORED} | dict.fromkeys(rest, nothing) | {n: i + first for i, n in enumerate(numbers)}
    entries = paired(
        lines_of(root / listed),
        lambda name: root / "JPEGImages" / f"{name}.jpg",
        lambda name: root / masks / f"{name}.{'mat' if masks == 'trainval' else 'png'}",
        table,
        what=str(root / listed),
        read=read,
    )
    words = tuple(OURS.get(name, name) for name in names)
    classes = ("background", *words) if background else words
    title = f"PASCAL Context {split}, {len(classes)} classes"
    return MaskedDataset(title, classes, entries, 0 if background else None, (FORMS[masks],))


def _numbers(root: Path, names: tuple[str, ...]) -> tuple[tuple[int, ...], set[int]]:
    """Return the labels of the 459 that are the 59 classes, in their order, and all others, with 0 (no label)."""
    every = {name: number for number, name in _named(root, "labels.txt", 459).items()}
    missing = [name for name in names if IN_FULL.get(name, name) not in every]
    if missing:
        raise BadInput(
            f"{', '.join(missing)} of 59_labels.txt are not in labels.txt of {root}. Bring back the original files"
        )
    numbers = tuple(every[IN_FULL.get(name, name)] for name in names)
    return numbers, {0, *every.values()} - set(numbers)


def _named(root: Path, name: str, count: int) -> dict[int, str]:
    """Read number → name from lines such as "11: table", without spaces, in the order of the numbers; 0 ("empty") is left out."""
    places = [root / name, *(root / form / name for form in FORMS)]
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise BadInput(f"{root} has masks but no {name}, which says what their numbers mean. {WHERE}")
    numbered = {int(m[1]): m[2] for m in (re.match(r"(\d+)\s*:\s*(.+)", line) for line in lines_of(file)) if m}
    kept = {number: numbered[number].replace(" ", "") for number in sorted(numbered) if number > 0}
    if len(kept) != count:
        raise BadInput(f"{file} names {len(kept)} classes, not {count}. Bring back the original file")
    return kept


def _label_map(path: Path) -> "Int[np.ndarray, 'row col']":
    """`LabelMap` of a MATLAB file: numbers of 16 bits."""
    return matlab_table(path, "LabelMap").astype(np.int32)
