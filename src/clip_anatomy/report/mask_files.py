"""Masks as files that other programs read: PNG with a palette, COCO's JSON with run lengths, npz. Bytes and dictionaries, no paths."""

import colorsys
import json
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8
from numpy import ndarray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_anatomy.maps.masks import Masks
from clip_anatomy.maps.thresholds import UNSEEN

__all__ = ["VOID", "class_colours", "coco", "npz", "painted", "pale", "png", "run_lengths"]

VOID = 255
"""What a PNG holds where the model did not look: the value that PASCAL VOC and most evaluations ignore."""
MANY_VOID = 65535
BACKGROUND = (0, 0, 0)
UNSEEN_COLOUR = (224, 224, 216)


FIRST = (
    (224, 90, 0),
    (24, 100, 200),
    (46, 140, 70),
    (196, 60, 150),
    (232, 176, 20),
    (110, 80, 190),
    (30, 165, 175),
    (150, 85, 45),
)


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that tell classes apart: the figures' orange and blue, six more, then hues a golden angle apart.

    Example:
        >>> class_colours(2)
        [(224, 90, 0), (24, 100, 200)]
    """
    found = list(FIRST[:count])
    for k in range(len(FIRST), count):
        hue = (0.11 + k * 0.381966) % 1.0
        # Every third is lighter or darker, so that neighbours in hue differ in brightness.
        red, green, blue = colorsys.hls_to_rgb(hue, (0.62, 0.42, 0.74)[k % 3], 0.72)
        found.append((round(red * 255), round(green * 255), round(blue * 255)))
    return found


def png(labels: Int16[ndarray, "row col"], texts: Sequence[str]) -> bytes:
    """A label map as PNG: pixel values are labels (0 for none, k for the k-th text), 255 where the model did not look.

    Up to 254 texts it has a palette, so that it looks like what it says; with more it is 16-bit grey, and 65535 is unseen.

    Args:
        labels: −1 where the model did not look.
        texts: the labels' words; kept in the file as the PNG text "labels".

    Returns:
        The file.
    """
    known = PngInfo()
    known.add_itxt("labels", json.dumps(list(texts)))
    known.add_text("Software", "clip-anatomy")
    if len(texts) < VOID:
        image = Image.fromarray(np.where(labels == UNSEEN, VOID, labels).astype(np.uint8)).convert("P")
        palette = [BACKGROUND, *class_colours(len(texts))]
        palette += [BACKGROUND] * (VOID - len(palette)) + [UNSEEN_COLOUR]
        image.putpalette([level for colour in palette for level in colour])
    else:
        image = Image.fromarray(np.where(labels == UNSEEN, MANY_VOID, labels).astype(np.uint16))
    file = BytesIO()
    image.save(file, "PNG", pnginfo=known)
    return file.getvalue()


def run_lengths(mask: Bool[ndarray, "row col"]) -> dict[str, Any]:
    """A mask as COCO keeps it: lengths of runs down the columns, off first, packed into a string.

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


def coco(masks: Masks, names: Sequence[str], *, first_image: int = 1, first_annotation: int = 1) -> dict[str, Any]:
    """All masks in COCO's format: one annotation per picture and text that is there; `pycocotools.coco.COCO` loads it.

    Args:
        masks: what was found; labels −1 (unseen) belong to no annotation.
        names: the pictures' file names.
        first_image: number of the first picture.
        first_annotation: number of the first annotation.

    Returns:
        Ready for JSON. `score` is the share of the pixels; `info.how` says how the masks were made.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (labels, name) in enumerate(zip(masks.labels, names, strict=True)):
        rows, cols = labels.shape
        images.append({"id": first_image + i, "file_name": name, "width": cols, "height": rows})
        for k in range(len(masks.texts)):
            mask = labels == k + 1
            if not mask.any():
                continue
            across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            left, top = int(across[0]), int(down[0])
            annotations.append(
                {
                    "id": first_annotation + len(annotations),
                    "image_id": first_image + i,
                    "category_id": k + 1,
                    "segmentation": run_lengths(mask),
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(across[-1]) + 1 - left, int(down[-1]) + 1 - top],
                    "iscrowd": 0,
                    "score": float(f"{masks.shares(i)[masks.texts[k]]:.6g}"),
                }
            )
    return {
        "info": {"description": "masks by clip-anatomy", "how": str(masks.how)},
        "licenses": [],
        "images": images,
        "categories": [{"id": k + 1, "name": text, "supercategory": "text"} for k, text in enumerate(masks.texts)],
        "annotations": annotations,
    }


def npz(masks: Masks, names: Sequence[str]) -> bytes:
    """All label maps as one npz: `labels_0`, `labels_1`, ... in the order of `images`, and `texts`; no pickle is needed to read it."""
    file = BytesIO()
    held: dict[str, Any] = {f"labels_{i}": labels for i, labels in enumerate(masks.labels)}
    np.savez_compressed(file, images=np.array(names), texts=np.array(masks.texts), how=np.array(str(masks.how)), **held)
    return file.getvalue()


def painted(
    picture: Image.Image, labels: Int16[ndarray, "row col"], count: int, *, opacity: float = 0.6
) -> UInt8[ndarray, "row col 3"]:
    """A picture with its labels painted over it: each text in its colour with a firm outline, what belongs to none pale.

    Args:
        picture: the original, of the labels' size.
        labels: see `Masks`.
        count: how many texts there are.
        opacity: of the paint.
    """
    base = np.asarray(picture.convert("RGB"), dtype=np.float32)
    ghost = pale(base)
    out = ghost.copy()
    colours = np.array(class_colours(max(count, 1)), dtype=np.float32)
    held = labels > 0
    inks = colours[labels[held] - 1]
    out[held] = (1 - opacity) * ghost[held] + opacity * inks
    thick = max(1, round(min(labels.shape) / 240))
    edge = _outline(labels, thick) & held
    out[edge] = 0.8 * colours[labels[edge] - 1]
    unseen = labels == UNSEEN
    out[unseen] = 0.2 * ghost[unseen] + 0.8 * 255
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def pale(picture: Float[ndarray, "row col 3"]) -> Float[ndarray, "row col 3"]:
    """A picture as what is drawn on it is seen best: nearly grey, and light.

    Its colours would be taken for those of the map or the mask, its shadows would make them muddy. Light and dark are stretched
    to the same narrow range in every picture, so that a night is as readable as a day.
    """
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    low, high = np.percentile(grey, (2, 98))
    share = ((grey - low) / max(float(high - low), 48.0)).clip(-0.1, 1.1)[..., None]
    return 0.92 * (154 + 92 * share) + 0.08 * picture


def _outline(labels: ndarray, thick: int) -> ndarray:
    """Pixels within `thick` of another label."""
    found = np.zeros(labels.shape, dtype=bool)
    for d in range(1, thick + 1):
        rows, cols = labels[d:] != labels[:-d], labels[:, d:] != labels[:, :-d]
        found[d:] |= rows
        found[:-d] |= rows
        found[:, d:] |= cols
        found[:, :-d] |= cols
    return found
