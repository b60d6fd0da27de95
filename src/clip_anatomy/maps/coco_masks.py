"""Masks in COCO's format, with run lengths as pycocotools reads them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16
from numpy import ndarray

from clip_anatomy.maps.thresholds import UNSEEN

__all__ = ["coco", "run_lengths"]


def run_lengths(mask: Bool[ndarray, "row col"]) -> dict[str, Any]:
    """Encode a mask as COCO does: lengths of runs down the columns, off first, packed into a string.

    Each length but the first three is kept as the difference to the one two before; numbers are cut into 5 bits a letter, lowest
    first, with a sixth bit for "more follows", counted from "0".

    Args:
        mask: where the thing is.

    Returns:
        {"size": [row, col], "counts": letters}, as pycocotools reads it.

    Example:
        >>> run_lengths(np.array([[False, True], [True, True]]))
        {'size': [2, 2], 'counts': '13'}
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    places = [0, *edges.tolist(), flat.size]
    counts = [b - a for a, b in pairwise(places)]
    if flat.size and flat[0]:
        counts.insert(0, 0)
    letters: list[str] = []
    for i, count in enumerate(counts):
        left = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            low = left & 31
            left >>= 5
            more = left != (-1 if low & 16 else 0)
            letters.append(chr((low | 32 if more else low) + 48))
    return {"size": [int(side) for side in mask.shape], "counts": "".join(letters)}


def coco(
    labels: Sequence[Int16[ndarray, "..."]], texts: Sequence[str], names: Sequence[str], how: str
) -> dict[str, Any]:
    """Return label maps in COCO's format: one annotation per picture and text that is there; `pycocotools.coco.COCO` loads it.

    Args:
        labels: see `Masks`; −1 (unseen) belongs to no annotation.
        texts: the labels' words.
        names: the pictures' file names.
        how: how the masks were made.

    Returns:
        Ready for JSON. `score` is the share of the pixels.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (of_image, name) in enumerate(zip(labels, names, strict=True)):
        rows, cols = of_image.shape
        visible = max(1, int((of_image != UNSEEN).sum()))
        images.append({"id": 1 + i, "file_name": name, "width": cols, "height": rows})
        for k in range(len(texts)):
            mask = of_image == k + 1
            if not mask.any():
                continue
            across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            left, top = int(across[0]), int(down[0])
            annotations.append(
                {
                    "id": 1 + len(annotations),
                    "image_id": 1 + i,
                    "category_id": k + 1,
                    "segmentation": run_lengths(mask),
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(across[-1]) + 1 - left, int(down[-1]) + 1 - top],
                    "iscrowd": 0,
                    "score": float(f"{int(mask.sum()) / visible:.6g}"),
                }
            )
    return {
        "info": {"description": "masks by clip-anatomy", "how": how},
        "licenses": [],
        "images": images,
        "categories": [{"id": k + 1, "name": text, "supercategory": "text"} for k, text in enumerate(texts)],
        "annotations": annotations,
    }
