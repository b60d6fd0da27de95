"""ISPRS Potsdam: aerial tiles of 6000 × 6000 pixels with labels in colours, cut into squares as everyone does."""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from clip_anatomy.data.class_names import POTSDAM
from clip_anatomy.data.masked import IGNORED, MaskedDataset, MaskedPicture, need
from clip_anatomy.errors import BadImage, BadInput, reading
from clip_anatomy.images.geometry import window_starts

WHERE = (
    "Get the Potsdam data (2_Ortho_RGB.zip and 5_Labels_all.zip) from the ISPRS semantic labelling benchmark and unpack both "
    "into one folder. Type that folder (with 2_Ortho_RGB and 5_Labels_all in it)"
)
# The benchmark's hold-out: columns of each row of tiles.
TEST_TILES = {
    f"{row}_{col}"
    for row, cols in ((2, "34"), (3, "34"), (4, "345"), (5, "345"), (6, "345"), (7, "3"))
    for col in (f"1{c}" for c in cols)
}
CUT = 512


def open_potsdam(path: Path, *, split: str = "test") -> MaskedDataset:
    """Open Potsdam: `top_potsdam_X_Y_RGB.tif` and `top_potsdam_X_Y_label.tif`, in squares of 512 side by side.

    The last square of a row or column is moved back into the tile, so that it overlaps its neighbour: 144 squares a tile.

    Args:
        path: the folder with 2_Ortho_RGB and 5_Labels_all.
        split: test (the benchmark's fourteen tiles), train (the others) or all.

    Raises:
        BadInput: something is missing.
    """
    root = path / "Potsdam" if (path / "Potsdam").is_dir() else path
    need(root, "2_Ortho_RGB", "5_Labels_all", what="ISPRS Potsdam", where=WHERE)
    entries: list[MaskedPicture] = []
    for file in sorted((root / "2_Ortho_RGB").glob("top_potsdam_*_RGB.tif")):
        tile = file.stem.removeprefix("top_potsdam_").removesuffix("_RGB")
        if split == "all" or (tile in TEST_TILES) == (split == "test"):
            entries += _squares(file, root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", tile)
    if not entries:
        raise BadInput(f"{root / '2_Ortho_RGB'} holds no tile of the split {split}. {WHERE}")
    classes = tuple(POTSDAM.values())
    return MaskedDataset(f"ISPRS Potsdam {split}, {len(classes)} classes", classes, tuple(entries))


def _squares(file: Path, labels: Path, tile: str) -> list[MaskedPicture]:
    with reading(file, "Bring back the original file"), Image.open(file) as opened:
        cols, rows = opened.size

    return [
        MaskedPicture(
            f"{tile} at {row}, {col}",
            partial(_picture_of, file, (col, row, min(col + CUT, cols), min(row + CUT, rows))),
            partial(_mask_of, labels, (rows, cols), row, col),
        )
        for row in window_starts(rows, CUT, CUT)
        for col in window_starts(cols, CUT, CUT)
    ]


def _picture_of(file: Path, box: tuple[int, int, int, int]) -> Image.Image:
    return _tile(file).crop(box)


def _mask_of(labels: Path, size: tuple[int, int], row: int, col: int) -> "Int[np.ndarray, 'row col']":
    return _classes(_tile(labels), size, labels)[row : row + CUT, col : col + CUT]


@lru_cache(maxsize=2)  # the tile and its labels, for its 144 squares
def _tile(file: Path) -> Image.Image:
    with reading(file, "Bring back the original file", BadImage), Image.open(file) as opened:
        return opened.convert("RGB")


@lru_cache(maxsize=1)
def _numbers(file: Path) -> "Int[np.ndarray, 'row col']":
    colours = np.asarray(_tile(file))
    packed = np.zeros(colours.shape[:2], np.int32)
    for channel in range(3):  # one at a time: a tile has 36 million pixels
        packed = packed << 8 | colours[..., channel]
    numbers = np.full(packed.shape, IGNORED, np.int32)
    known = np.zeros(packed.shape, bool)
    for at, (red, green, blue) in enumerate(POTSDAM):
        here = packed == (red << 16 | green << 8 | blue)
        numbers[here] = at
        known |= here
    known |= packed == 0  # black: borders, in the labels without boundaries
    if not known.all():
        raise BadInput(
            f"the labels {file} hold {int((~known).sum()):,} pixels of other colours than the six classes'. "
            "Type the folder with the original TIFFs, not a copy saved as JPEG"
        )
    return numbers


def _classes(image: Image.Image, size: tuple[int, int], file: Path) -> "Int[np.ndarray, 'row col']":
    if (image.size[1], image.size[0]) != size:
        raise BadInput(f"the labels {file} are of another size than their tile. Bring back the original file")
    return _numbers(file)
