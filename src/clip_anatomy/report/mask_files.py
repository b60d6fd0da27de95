"""Masks as files that other programs read: PNG with a palette, npz. Bytes and dictionaries, no paths."""

import colorsys
import json
import zipfile
from collections.abc import Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16, UInt8
from numpy import ndarray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_anatomy.maps.masks import Masks
from clip_anatomy.maps.thresholds import UNSEEN

__all__ = ["VOID", "class_colours", "painted", "pale", "png", "tones_of", "write_npz"]

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
    """Return colours that tell classes apart: the figures' orange and blue, six more, then hues a golden angle apart.

    Example:
        >>> class_colours(2)
        [(224, 90, 0), (24, 100, 200)]
    """
    colours = list(FIRST[:count])
    for k in range(len(FIRST), count):
        hue = (0.11 + k * 0.381966) % 1.0
        # Every third is lighter or darker, so that neighbours in hue differ in brightness.
        red, green, blue = colorsys.hls_to_rgb(hue, (0.62, 0.42, 0.74)[k % 3], 0.72)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


def png(labels: Int16[ndarray, "row col"], texts: Sequence[str]) -> bytes:
    """Encode a label map as PNG: pixel values are labels (0 for none, k for the k-th text), 255 where the model did not look.

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


def write_npz(file: str | Path | BytesIO, masks: Masks) -> None:
    """Write all label maps as one npz: `labels_0`, `labels_1`, ... in the order of `images`; `texts`; `how`. Reading it needs no pickle.

    numpy writes an npz at once; here one label map after the other is written, so that a folder of photographs need not be held.
    """
    plain = {"images": np.array(masks.names), "texts": np.array(masks.texts), "how": np.array(str(masks.how))}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in chain(((f"labels_{i}", labels) for i, labels in enumerate(masks.labels)), plain.items()):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as one:
                np.lib.format.write_array(one, array, allow_pickle=False)


def painted(
    picture: Image.Image,
    labels: Int16[ndarray, "row col"],
    count: int,
    *,
    opacity: float = 0.6,
    tones: tuple[float, float] | None = None,
) -> UInt8[ndarray, "row col 3"]:
    """Paint a picture's labels over it: each text in its colour with a firm outline, what belongs to none pale.

    Args:
        picture: the original, of the labels' size.
        labels: see `Masks`.
        count: how many texts there are.
        opacity: of the paint.
        tones: see `pale`.
    """
    base = np.asarray(picture.convert("RGB"), dtype=np.float32)
    ghost = pale(base, tones)
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


def pale(picture: Float[ndarray, "row col 3"], tones: tuple[float, float] | None = None) -> Float[ndarray, "row col 3"]:
    """Make a picture as what is drawn on it is seen best: nearly grey, and light.

    Its colours would be taken for those of the map or the mask, its shadows would make them muddy. Light and dark are stretched
    to the same narrow range in every picture, so that a night is as readable as a day.

    Args:
        picture: levels from 0 to 255.
        tones: what is dark and what is light; by default of this picture (`tones_of`).
    """
    grey = _grey(picture)
    low, high = tones or tones_of(picture)
    share = ((grey - low) / max(float(high - low), 48.0)).clip(-0.1, 1.1)[..., None]
    return 0.92 * (154 + 92 * share) + 0.08 * picture


def tones_of(picture: Float[ndarray, "row col 3"]) -> tuple[float, float]:
    """Return the grey levels below and above which a fiftieth of a picture lies."""
    low, high = np.percentile(_grey(picture), (2, 98))
    return float(low), float(high)


def _grey(picture: Float[ndarray, "row col 3"]) -> Float[ndarray, "row col"]:
    return picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _outline(labels: ndarray, thick: int) -> ndarray:
    """Return pixels within `thick` of another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    for d in range(1, thick + 1):
        rows, cols = labels[d:] != labels[:-d], labels[:, d:] != labels[:, :-d]
        edge[d:] |= rows
        edge[:-d] |= rows
        edge[:, d:] |= cols
        edge[:, :-d] |= cols
    return edge
