"""ImageNet-Segmentation: 4,276 pictures with one foreground mask, in `gtsegs_ijcv.mat`, a MATLAB 7.3 file (HDF5)."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from clip_anatomy.data.masked import MaskedDataset, MaskedPicture
from clip_anatomy.errors import BadImage, BadInput, MissingExtra, reading

DEEPEST = 8
WHERE = (
    "Get gtsegs_ijcv.mat from the page of Guillaumin, Küttel and Ferrari, ImageNet Auto-Annotation with Segmentation "
    "Propagation (CALVIN group, Edinburgh). Type the path of that file"
)


def open_imagenet_seg(path: Path) -> MaskedDataset:
    """Open the file: `/value/img` refers to pictures [3, col, row], `/value/gt` to cells that refer to masks [col, row].

    MATLAB stores arrays column by column, so both come transposed. The first mask of each picture is taken, as everyone does.

    Args:
        path: gtsegs_ijcv.mat, or the folder it is in.

    Raises:
        BadInput: not that file.
        MissingExtra: h5py is not installed.
    """
    file = path / "gtsegs_ijcv.mat" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file} is not there. {WHERE}")
    opened = _open(file)
    with reading(file, f"It holds no /value/img and /value/gt. {WHERE}"):
        count = min(opened["/value/img"].shape[0], opened["/value/gt"].shape[0])
    if not count:
        raise BadInput(f"{file} holds no pictures: it is empty. {WHERE}")
    entries = tuple(
        MaskedPicture(f"{at:04d}", partial(_picture, file, at), partial(_mask, file, at)) for at in range(count)
    )
    return MaskedDataset("ImageNet-Segmentation", ("background", "foreground"), entries, 0)


def _picture(file: Path, at: int) -> Image.Image:
    raw = _followed(file, "/value/img", at)
    if raw.ndim == 2:  # a grey picture
        raw = np.stack([raw] * 3)
    if raw.ndim != 3 or raw.shape[0] != 3:
        raise BadImage(f"picture {at} of {file} has the shape {raw.shape}: [3, col, row] was expected. {WHERE}")
    return Image.fromarray(np.ascontiguousarray(raw.transpose(2, 1, 0).astype(np.uint8)))


def _mask(file: Path, at: int) -> "Int[np.ndarray, 'row col']":
    raw = _followed(file, "/value/gt", at).T
    wrong = set(np.unique(raw).tolist()) - {0, 1}
    if raw.ndim != 2 or wrong:
        raise BadInput(f"mask {at} of {file} holds unknown ids: {sorted(wrong)}. Bring back the original file")
    return raw.astype(np.int32)


@lru_cache(maxsize=2)
def _open(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "measure") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise BadInput(f"{file} is no MATLAB 7.3 file (HDF5): {error}. {WHERE}") from error


def _followed(file: Path, name: str, at: int) -> np.ndarray:
    """Follow object references until numbers come: a cell array holds references, and a mask lies in a cell of its own."""
    import h5py

    opened = _open(file)
    with reading(f"entry {at} of {name} in {file}", "Bring back the original file", BadImage):
        value = np.asarray(opened[name][at])
        for _ in range(DEEPEST):  # references, which a damaged file may lead round in a circle
            if value.dtype != h5py.ref_dtype:
                return value
            value = np.asarray(opened[value.ravel()[0]])
        raise ValueError("references that lead nowhere")
