"""PASCAL Context: VOC 2010's photographs, every pixel labelled; the 59 frequent classes with or without the rest."""

import re
from pathlib import Path

from clip_anatomy.errors import BadInput
from clip_anatomy.measure.datasets.masked import Masked, lines_of, need, paired
from clip_anatomy.measure.datasets.names import CONTEXT_CLASSES
from clip_anatomy.measure.segmentation import IGNORED

WHERE = (
    "Get VOC2010 from the PASCAL VOC page of the University of Oxford, and from the PASCAL-Context page either "
    "59_context_labels.tar.gz with 59_labels.txt, or masks made with its Detail API (SegmentationClassContext). "
    "Type the folder VOC2010 (with JPEGImages, ImageSets and one of these two in it)"
)
OURS = {"pottedplant": "potted plant", "tvmonitor": "television", "diningtable": "dining table"}


def open_context(path: Path, *, split: str = "val", background: bool = True) -> Masked:
    """Open PASCAL Context.

    Two forms of the same masks are known: `59_context_labels/` with its own `59_labels.txt` beside it, which says what the
    numbers mean; and `SegmentationClassContext/`, where the 59 classes stand in alphabetical order.

    Args:
        path: VOC2010, or the VOCdevkit that holds it.
        split: train or val.
        background: 60 classes, or leave the pixels of no class out (59).

    Raises:
        BadInput: something is missing.
    """
    root = next((p for p in (path / "VOC2010", path / "VOCdevkit" / "VOC2010") if p.is_dir()), path)
    masks = next((n for n in ("SegmentationClassContext", "59_context_labels") if (root / n).is_dir()), "")
    lists = [f"ImageSets/{kind}/{split}.txt" for kind in ("SegmentationContext", "Main")]
    listed = next((n for n in lists if (root / n).is_file()), lists[0])
    need(root, "JPEGImages", listed, masks or "59_context_labels", what="PASCAL Context", where=WHERE)
    names = CONTEXT_CLASSES if masks == "SegmentationClassContext" else _own_names(root)
    first = 1 if background else 0
    table = {0: 0 if background else IGNORED, 255: IGNORED} | {i + 1: i + first for i in range(len(names))}
    entries = paired(
        lines_of(root / listed),
        lambda name: root / "JPEGImages" / f"{name}.jpg",
        lambda name: root / masks / f"{name}.png",
        table,
        what=str(root / listed),
    )
    classes = ("background", *names) if background else names
    return Masked(f"PASCAL Context {split}, {len(classes)} classes", classes, entries, 0 if background else None)


def _own_names(root: Path) -> tuple[str, ...]:
    """What `59_labels.txt` says: lines such as "11: table"."""
    file = next(
        (p for p in (root / "59_labels.txt", root / "59_context_labels" / "59_labels.txt") if p.is_file()), None
    )
    if file is None:
        raise BadInput(f"{root} has 59_context_labels but no 59_labels.txt, which says what its numbers mean. {WHERE}")
    found = {int(m[1]): m[2].strip() for m in (re.match(r"(\d+)\s*:\s*(.+)", line) for line in lines_of(file)) if m}
    names = [OURS.get(found[at], found[at]) for at in sorted(found) if at > 0]
    if len(names) != 59:
        raise BadInput(f"{file} names {len(names)} classes, not 59. Bring back the original file")
    return tuple(names)
