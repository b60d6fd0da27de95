"""ImageNet (ILSVRC 2012): labels from synset folders or from the data set's own tables, never from the order of files."""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_anatomy.data.masked import lines_of
from clip_anatomy.data.matlab import matlab_records
from clip_anatomy.data.published_copies import DatasetCopy, ImageEntry, LabelledDataset, PublishedDataset
from clip_anatomy.errors import BadInput
from clip_anatomy.files import text_lines
from clip_anatomy.loading.imagenet_texts import imagenet_names, imagenet_synsets, unique_names

__all__ = ["IMAGENET", "imagenet"]

IMAGENET = PublishedDataset(
    scheme="imagenet",
    title="ImageNet (ILSVRC 2012)",
    where="from image-net.org after registration, or from Kaggle (ImageNet Object Localization Challenge)",
    images={"val": 50_000, "train": 1_281_167},
)
CLASSES = 1000
SYNSET = re.compile(r"n\d{8}$")
FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g$", re.IGNORECASE)
FILES = (".jpeg", ".jpg", ".png")
FOLDERS = {
    "val": ("val", "validation", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "ILSVRC2012_img_val"),
    "train": ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "ILSVRC2012_img_train"),
}
DEVKIT = ("ILSVRC2012_devkit_t12/data", "data", "")


def imagenet(rest: str) -> LabelledDataset:
    """Open `FOLDER[:val|train][:partial]`, the validation images by default.

    FOLDER holds synset folders (n01440764/…), or `val` and `train` of that kind, as most people arrange it; or Kaggle's tree; or
    the validation images in one flat folder, with `LOC_val_solution.csv` (Kaggle) or the development kit's ground truth and
    `meta.mat` beside them. Label is the class name that open_clip ships (curated by CLIP's authors); `meta` holds split,
    synset, and the class's number among the sorted synsets.

    Raises:
        BadInput: no such copy, not a whole one, a flat folder without a table, an unknown synset.
        MissingExtra: open_clip (names), or SciPy for `meta.mat`.
    """
    copy = IMAGENET.copy_at(rest)
    split = "train" if "train" in copy.options else "val"
    copy = DatasetCopy(copy.of, copy.root, (split, *(o for o in copy.options if o not in ("val", "train"))))
    folder = _images(copy, split)
    inside = sorted(entry.name for entry in folder.iterdir() if SYNSET.match(entry.name) and entry.is_dir())
    truth = {} if inside else _truth(copy, folder)
    labels = _labels(copy, {*inside, *truth.values()}, inside)
    number = {synset: at for at, synset in enumerate(labels)}

    def walk() -> Iterator[ImageEntry]:
        prefix = folder.relative_to(copy.root).as_posix().removeprefix(".")
        base = f"{prefix}/" if prefix else ""
        if inside:
            images = ((f"{synset}/{name}", name, synset) for synset in inside for name in _names(folder / synset))
        else:
            images = ((name, name, truth[_place(name)]) for name in _names(folder) if FLAT.match(name))
        for path, name, synset in images:
            meta: dict[str, Any] = {"split": split, "synset": synset}
            if len(labels) == CLASSES:
                meta["class"] = number[synset]
            yield ImageEntry(base + path, labels[synset], "", meta, f"{split}/{name}")

    counts = {synset: len(_names(folder / synset)) for synset in inside}
    images = sum(counts.values()) if inside else sum(FLAT.match(name) is not None for name in _names(folder))
    short = [f"{synset} has {n}" for synset, n in counts.items() if n != 50] if split == "val" else []
    more = f"; {len(inside)} synset folders of {CLASSES:,}" if inside and len(inside) != CLASSES else ""
    more += f"; 50 images a synset were expected, {', '.join(short[:3])}" if short else ""
    copy.hold_to({split: images}, more)
    return LabelledDataset(copy, tuple(labels.values()), images, walk)


def _images(copy: DatasetCopy, split: str) -> Path:
    """Return the folder that holds the images of a split: the one given, or one inside."""
    root = copy.root
    names = [entry.name for entry in root.iterdir()]
    if any(SYNSET.match(name) for name in names) or any(FLAT.match(name) for name in names):
        if root.name in ("train", "val") and root.name != split:
            raise BadInput(f"{root} is the {root.name} folder. Type: imagenet:{root}:{root.name}")
        return root
    images = next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)
    if images is None:
        raise BadInput(
            f"{root} has neither synset folders (n01440764 …) nor a {split} folder. ImageNet is to be had {IMAGENET.where}. "
            f"Type: {IMAGENET.form}"
        )
    return images


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name.lower().endswith(FILES) and not name.startswith("."))


def _place(name: str) -> int:
    """Return the number in a validation image's name."""
    match = FLAT.match(name)
    return int(match[1]) if match else 0


def _truth(copy: DatasetCopy, folder: Path) -> Mapping[int, str]:
    """Synset of every validation image by the number in its name, from Kaggle's solution or the development kit."""
    around = (copy.root, copy.root.parent, folder.parent)
    solution = next((at / "LOC_val_solution.csv" for at in around if (at / "LOC_val_solution.csv").is_file()), None)
    if solution is not None:
        truth = _solution(copy, solution)
    else:
        kits = [at / part for at in around for part in DEVKIT]
        kit = next((at for at in kits if (at / "ILSVRC2012_validation_ground_truth.txt").is_file()), None)
        if kit is None or not (kit / "meta.mat").is_file():
            raise BadInput(
                f"{folder} holds the validation images in one folder, which says nothing about their classes. Put "
                "LOC_val_solution.csv (Kaggle) or ILSVRC2012_devkit_t12 beside them, or sort them into synset folders"
            )
        ids = lines_of(kit / "ILSVRC2012_validation_ground_truth.txt")
        synsets = _meta(kit / "meta.mat")
        if odd := [one for one in ids if not one.isdecimal() or int(one) not in synsets]:
            raise copy.wrong(f"{kit}: the ground truth names class {odd[0]}, which meta.mat does not know")
        # The n-th line is about the image whose NAME says n; the order of files on the disk means nothing.
        truth = {at + 1: synsets[int(one)] for at, one in enumerate(ids)}
    lost = next((name for name in _names(folder) if FLAT.match(name) and _place(name) not in truth), None)
    if lost is not None:
        raise copy.wrong(f"{folder / lost} is not in the table of {len(truth):,} labels")
    return truth


def _solution(copy: DatasetCopy, path: Path) -> dict[int, str]:
    """Read Kaggle's table: number in an image's name → synset, the first word of PredictionString."""
    truth: dict[int, str] = {}
    try:
        for at, row in enumerate(csv.DictReader(text_lines(path))):
            columns = (row.get("PredictionString") or "").split()
            name = f"{row.get('ImageId') or ''}.jpeg"
            if not columns or not SYNSET.match(columns[0]) or not FLAT.match(name):
                raise copy.wrong(f"{path}, line {at + 2}: 'ILSVRC2012_val_00000001,n01751748 …' was expected")
            truth[_place(name)] = columns[0]
    except csv.Error as error:
        raise copy.wrong(f"{path} is not a readable table ({error})") from error
    return truth


def _meta(path: Path) -> dict[int, str]:
    """Read the development kit's class numbers (which are not in the order of synsets) → synset."""
    try:
        synsets = matlab_records(path, "synsets")
        return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0}
    except (BadInput, KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{path} is not the development kit's meta.mat ({error}). Unpack the kit again") from error


def _labels(copy: DatasetCopy, needed: set[str], inside: list[str]) -> dict[str, str]:
    """Return names by synset, ascending: the sorted synsets and open_clip's list of names are in the same order."""
    whole = _all_synsets(copy, inside)
    if whole is None:
        raise BadInput(
            f"{copy.root} has {len(inside)} of {CLASSES:,} synset folders, and no table says which classes these are. Put "
            "LOC_synset_mapping.txt (Kaggle) into it, or type: pip install timm"
        )
    if unknown := sorted(needed - {*whole}):
        raise BadInput(
            f"{len(unknown)} synsets of {copy.root} are not among the 1,000 classes of ILSVRC 2012, such as {unknown[0]}. "
            "Type the path of it as a plain folder instead: its folders are then the labels"
        )
    return dict(zip(whole, unique_names(imagenet_names(), whole), strict=True))


def _all_synsets(copy: DatasetCopy, inside: list[str]) -> tuple[str, ...] | None:
    """Return the 1,000 synsets in ascending order, from the copy's own table or folders, else from timm."""
    around = (copy.root, copy.root.parent, copy.root.parent.parent)
    for table in (at / "LOC_synset_mapping.txt" for at in around):
        if table.is_file():
            synsets = sorted({line.split()[0] for line in lines_of(table)})
            if len(synsets) != CLASSES:
                raise copy.wrong(f"{table} names {len(synsets)} synsets, {CLASSES:,} were expected")
            return tuple(synsets)
    return tuple(inside) if len(inside) == CLASSES else imagenet_synsets()
