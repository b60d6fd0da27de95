"""NUS-WIDE: photographs of Flickr with 81 concepts, as text files of zeros and ones."""

from functools import partial
from pathlib import Path

import numpy as np

from clip_anatomy.data.masked import LabelledPicture, TaggedDataset, lines_of, need, read_picture
from clip_anatomy.errors import BadInput

WHERE = (
    "Get NUS-WIDE's ground truth (Groundtruth.rar), concept list and image list from the LMS group of the National University "
    "of Singapore, and the pictures on request there. Type the folder with Concepts81.txt, ImageList, TrainTestLabels and "
    "Flickr in it"
)


def open_nuswide(path: Path, *, split: str = "Test") -> TaggedDataset:
    """Open NUS-WIDE: `Concepts81.txt`, `ImageList/TestImagelist.txt`, `TrainTestLabels/Labels_NAME_Test.txt`, `Flickr/`.

    Pictures that have vanished since are skipped and counted when they are asked for.

    Args:
        path: the folder.
        split: Test or Train.

    Raises:
        BadInput: something is missing, or a label file has another number of lines than the list.
    """
    root = path / "NUS-WIDE" if (path / "NUS-WIDE").is_dir() else path
    listed = f"ImageList/{split}Imagelist.txt"
    labels = "TrainTestLabels" if (root / "TrainTestLabels").is_dir() else "Groundtruth/TrainTestLabels"
    need(root, "Concepts81.txt", listed, labels, "Flickr", what="NUS-WIDE", where=WHERE)
    concepts = lines_of(root / "Concepts81.txt")
    files = [line.replace("\\", "/") for line in lines_of(root / listed)]
    if not files or not concepts:
        raise BadInput(f"{root / listed} or Concepts81.txt is empty. {WHERE}")
    columns = [_column(root / labels / f"Labels_{name}_{split}.txt", len(files)) for name in concepts]
    truth = np.stack(columns, 1)
    entries = tuple(
        LabelledPicture(name, partial(read_picture, root / "Flickr" / name), tuple(np.flatnonzero(row).tolist()))
        for name, row in zip(files, truth, strict=True)
    )
    return TaggedDataset(f"NUS-WIDE {split}, {len(concepts)} concepts", tuple(concepts), entries)


def _column(file: Path, count: int) -> np.ndarray:
    values = lines_of(file)
    if len(values) != count or not set(values) <= {"0", "1"}:
        raise BadInput(
            f"{file} has {len(values)} lines, {count} of 0 or 1 were expected (one per picture). Bring back the original file"
        )
    return np.array(values) == "1"
