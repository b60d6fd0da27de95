"""PASCAL VOC 2012 segmentation: palette PNGs, 0 background, 1..20 objects, 255 their borders."""

from pathlib import Path

from clip_anatomy.data.class_names import VOC_CLASSES
from clip_anatomy.data.masked import IGNORED, MaskedDataset, lines_of, need, paired

WHERE = (
    "Get VOCtrainval_11-May-2012.tar from the PASCAL VOC 2012 page of the University of Oxford and unpack it. "
    "Type the folder VOCdevkit/VOC2012 (with JPEGImages, SegmentationClass and ImageSets in it)"
)


def open_voc(path: Path, *, split: str = "val", background: bool = True) -> MaskedDataset:
    """Open VOC 2012.

    Args:
        path: VOC2012, or the VOCdevkit that holds it.
        split: train, val or trainval: a list in ImageSets/Segmentation.
        background: keep the background as a class (21 classes), or leave its pixels out (20).

    Raises:
        BadInput: something is missing.
    """
    root = next((p for p in (path / "VOC2012", path / "VOCdevkit" / "VOC2012") if p.is_dir()), path)
    listed = f"ImageSets/Segmentation/{split}.txt"
    need(root, "JPEGImages", "SegmentationClass", listed, what="PASCAL VOC 2012", where=WHERE)
    first = 1 if background else 0
    table = {0: 0 if background else IGNORED, 255: IGNORED} | {i + 1: i + first for i in range(len(VOC_CLASSES))}
    entries = paired(
        lines_of(root / listed),
        lambda name: root / "JPEGImages" / f"{name}.jpg",
        lambda name: root / "SegmentationClass" / f"{name}.png",
        table,
        what=str(root / listed),
    )
    classes = ("background", *VOC_CLASSES) if background else VOC_CLASSES
    return MaskedDataset(
        f"PASCAL VOC 2012 {split}, {len(classes)} classes", classes, entries, 0 if background else None
    )
