"""What is in the folder of an atlas."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from clip_anatomy.atomic_output import REPORT, Kind
from clip_anatomy.naming.atlas import SCHEMA, Atlas
from clip_anatomy.report.atlas_head_page import head_page
from clip_anatomy.report.atlas_html import Shown, place_of
from clip_anatomy.report.atlas_index_page import index_page
from clip_anatomy.report.atlas_table import has_parquet, write_parquet
from clip_anatomy.report.thumbnails import thumbnails
from clip_anatomy.store.rows import Row

__all__ = ["ATLAS", "MARK", "PAGE", "write_atlas"]

MARK, PAGE = "atlas.json", REPORT
ATLAS = Kind("atlas", MARK, SCHEMA, ("images", "heads", "atlas.parquet", MARK, PAGE))
TINY = 96  # sides up to this are drawings


def write_atlas(
    atlas: Atlas, rows: Sequence[Row], folder: Path, progress: Callable[[str, int, int], None] | None = None
) -> list[str]:
    """Write all pages, pictures and tables of an atlas into an empty folder.

    Args:
        atlas: the atlas.
        rows: what the store knows of the images that stand as evidence.
        folder: where; see `show.staging`.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        Why pictures are missing, each reason once.

    Raises:
        OSError: the place cannot be written.
    """
    tell = progress or (lambda what, done, total: None)
    (folder / "images").mkdir()
    (folder / "heads").mkdir()
    pictures: dict[int, str] = {}
    missing: dict[str, None] = {}
    for done, (row, image, why) in enumerate(thumbnails(rows), 1):
        if image is None:
            missing[why] = None
        else:
            pictures[row.index] = _save(image, folder, row.index)
        tell("making thumbnails", done, len(rows))
    shown = Shown.of(atlas, pictures, tuple(missing))
    for at, head in enumerate(atlas.heads):
        (folder / place_of(head)).write_text(head_page(shown, at), encoding="utf-8", errors="replace")
        tell("writing pages", at + 1, len(atlas.heads))
    (folder / MARK).write_text(json.dumps(atlas.to_dict(), allow_nan=False) + "\n", encoding="utf-8")
    if has_parquet():
        write_parquet(atlas, folder / "atlas.parquet")
    (folder / PAGE).write_text(index_page(shown), encoding="utf-8", errors="replace")
    return list(missing)


def _save(image: Image.Image, folder: Path, place: int) -> str:
    file = io.BytesIO()
    # Full colour resolution: small drawings lose their colours otherwise.
    image.save(file, "JPEG", quality=82, optimize=True, subsampling=0 if max(image.size) <= TINY else 2)
    name = f"images/{place}.jpg"
    (folder / name).write_bytes(file.getvalue())
    return name
