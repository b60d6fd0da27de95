"""COD10K: camouflaged animals, one mask of the object."""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from clip_anatomy.data.masked import MaskedDataset, MaskedPicture, files_in, need, read_ids, read_picture
from clip_anatomy.errors import BadInput

WHERE = (
    "Get COD10K-v3.zip, or the test set TestDataset/COD10K that later papers pass on, from the SINet project's page. "
    "Type the folder COD10K-v3/Test (with Image and GT_Object in it) or TestDataset/COD10K (with Imgs and GT)"
)


def open_cod10k(path: Path, *, split: str = "Test") -> MaskedDataset:
    """Open COD10K; only the camouflaged pictures of the data set's own form (COD10K-CAM-…), as every paper does.

    Args:
        path: COD10K-v3, its folder Test or Train, or the Imgs and GT form.
        split: Test or Train, where COD10K-v3 itself was given.

    Raises:
        BadInput: something is missing.
    """
    root = path / split if (path / split).is_dir() else path
    forms = (("Image", "GT_Object"), ("Imgs", "GT"))
    pictures, masks = next(((a, b) for a, b in forms if (root / a).is_dir()), forms[0])
    need(root, pictures, masks, what="COD10K", where=WHERE)
    files = [p for p in files_in(root / pictures) if "NonCAM" not in p.name]
    if not files:
        raise BadInput(f"{root / pictures} holds no pictures: it is empty. {WHERE}")

    entries = tuple(
        MaskedPicture(file.stem, partial(read_picture, file), partial(_animal, root / masks / f"{file.stem}.png"))
        for file in files
    )
    return MaskedDataset(f"COD10K {root.name}", ("background", "camouflaged animal"), entries, 0)


def _animal(mask: Path) -> "Int[np.ndarray, 'row col']":
    ids = read_ids(mask, grey=True)
    return (ids > (127 if ids.max() > 1 else 0)).astype(np.int32)
