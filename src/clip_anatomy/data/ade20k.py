"""ADE20K as the scene parsing benchmark has it: 150 classes, 0 is none of them."""

from pathlib import Path

from clip_anatomy.data.masked import IGNORED, MaskedDataset, files_in, lines_of, need, paired
from clip_anatomy.errors import BadInput

WHERE = (
    "Get ADEChallengeData2016.zip from the scene parsing benchmark of MIT CSAIL and unpack it. "
    "Type the folder ADEChallengeData2016 (with images, annotations and objectInfo150.txt in it)"
)


def open_ade(path: Path, *, split: str = "validation") -> MaskedDataset:
    """Open ADE20K; classes are named by the first word of their line in `objectInfo150.txt`.

    Args:
        path: ADEChallengeData2016, or the folder that holds it.
        split: training or validation.

    Raises:
        BadInput: something is missing.
    """
    root = path / "ADEChallengeData2016" if (path / "ADEChallengeData2016").is_dir() else path
    pictures, masks = root / "images" / split, root / "annotations" / split
    need(root, f"images/{split}", f"annotations/{split}", "objectInfo150.txt", what="ADE20K", where=WHERE)
    names = _names(root / "objectInfo150.txt")
    entries = paired(
        [p.stem for p in files_in(pictures, (".jpg",))],
        lambda name: pictures / f"{name}.jpg",
        lambda name: masks / f"{name}.png",
        {0: IGNORED} | {at + 1: at for at in range(len(names))},
        what=str(pictures),
    )
    return MaskedDataset(f"ADE20K {split}, {len(names)} classes", names, entries)


def _names(file: Path) -> tuple[str, ...]:
    """Return the table's last column: "1 <tab> 0.1576 <tab> … <tab> wall", synonyms after a comma or semicolon."""
    names: dict[int, str] = {}
    for line in lines_of(file):
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0].isdigit() and len(cells) > 1:
            names[int(cells[0])] = cells[-1].replace(";", ",").split(",")[0].strip()
    if sorted(names) != list(range(1, len(names) + 1)) or not names:
        raise BadInput(f"{file} does not number its classes 1, 2, 3…: {len(names)} read. Bring back the original file")
    return tuple(names[at] for at in sorted(names))
