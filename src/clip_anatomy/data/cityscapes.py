"""Cityscapes: street scenes of 1024 × 2048 pixels, nineteen evaluated classes."""

from pathlib import Path

from clip_anatomy.data.class_names import CITYSCAPES
from clip_anatomy.data.masked import IGNORED, MaskedDataset, need, paired

WHERE = (
    "Get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from the Cityscapes site (a free account is needed) and "
    "unpack both into one folder. Type that folder (with leftImg8bit and gtFine in it)"
)


def open_cityscapes(path: Path, *, split: str = "val") -> MaskedDataset:
    """Open Cityscapes: `*_gtFine_labelIds.png`, the ids of the data set itself; those that are not evaluated are left out.

    Args:
        path: the folder with leftImg8bit and gtFine.
        split: train or val.

    Raises:
        BadInput: something is missing.
    """
    need(path, f"leftImg8bit/{split}", f"gtFine/{split}", what="Cityscapes", where=WHERE)
    pictures, masks = path / "leftImg8bit" / split, path / "gtFine" / split
    end = "_leftImg8bit.png"
    ids = [str(p.relative_to(pictures))[: -len(end)] for p in sorted(pictures.glob(f"*/*{end}"))]
    classes = tuple(CITYSCAPES.values())
    order = {number: at for at, number in enumerate(CITYSCAPES)}
    # Ids 0..33 are defined, and −1 (stored as 255) for number plates.
    table = {number: order.get(number, IGNORED) for number in (*range(34), 255)}
    entries = paired(
        ids,
        lambda name: pictures / f"{name}{end}",
        lambda name: masks / f"{name}_gtFine_labelIds.png",
        table,
        what=str(pictures),
    )
    return MaskedDataset(f"Cityscapes {split}, {len(classes)} classes", classes, entries)
