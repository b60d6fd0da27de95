"""The world as files: a folder of PNGs with a table of every attribute, and a contact sheet to look at."""

import csv
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_anatomy.data.world.scenes import World
from clip_anatomy.errors import BadSpec
from clip_anatomy.files import write_text, written_whole

CAPTIONS = 3  # captions written per picture
_COLUMNS = (
    "file", "index", "shape", "colour", "texture", "shape2", "colour2", "texture2",
    "background", "size", "position", "count", "digit", "group", "caption",
)  # fmt: skip


def write_folder(world: World, n: int, folder: Path | str) -> Path:
    """Write pictures of a world as files.

    Layout: `images/00000000.png`; `masks/00000000.png` (a palette picture: 0 background, 1–4 the objects in the order
    in which they were drawn); `metadata.csv`, one row a picture with every attribute in words, the group and one
    caption; `captions.json`, file name → captions. The tables are written last, so a folder without them is unfinished.

    Args:
        world: which world.
        n: how many pictures, from index 0.
        folder: where to write; made if absent.

    Returns:
        The folder.

    Raises:
        BadSpec: n is negative or more than the world holds.
        OSError, OutputError: the folder cannot be written.
    """
    if not 0 <= n <= len(world):
        raise BadSpec(
            f"write_folder was asked for {n} pictures of a world of {len(world)}; use World(length={max(n, 0)})"
        )
    folder = Path(folder)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    captions: dict[str, list[str]] = {}
    for start in range(0, n, 256):
        scenes = world.batch(np.arange(start, min(start + 256, n)))
        words, said = scenes.labels(), scenes.captions(CAPTIONS)
        for at in range(len(scenes)):
            name = f"{start + at:08d}.png"
            Image.fromarray(scenes.images[at]).save(folder / "images" / name)
            _palette(scenes.masks[at]).save(folder / "masks" / name)
            captions[name] = said[at]
            row = {key: values[at] for key, values in words.items()}
            rows.append({"file": name, "index": start + at, **row, "caption": said[at][0]})
    write_text(folder / "captions.json", json.dumps(captions, indent=1) + "\n")
    with written_whole(folder / "metadata.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        table.writerows([row[column] for column in _COLUMNS] for row in rows)
    return folder


def _palette(masks: np.ndarray) -> Image.Image:
    """Return one palette picture of up to four masks."""
    codes = (masks * np.arange(1, 5, dtype=np.uint8)[:, None, None]).max(axis=0).astype(np.uint8)
    image = Image.fromarray(codes).convert("P")
    image.putpalette([0, 0, 0, 230, 60, 60, 60, 160, 230, 240, 200, 60, 120, 220, 120])
    return image


def sheet(images: UInt8[np.ndarray, "image row col 3"], columns: int = 8, gap: int = 2) -> Image.Image:
    """Lay pictures out in rows with a white gap between them.

    Args:
        images: the pictures.
        columns: pictures a row.
        gap: pixels between pictures.

    Returns:
        One picture.

    Example:
        >>> sheet(World().batch(np.arange(4)).images, columns=2).size
        (130, 130)
    """
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for at, image in enumerate(images):
        top, left = at // columns * (height + gap), at % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)
