"""Pictures of a store, small, for reports: fetched again from where they came."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture import Source, read_data
from clip_anatomy.errors import ClipAnatomyError
from clip_anatomy.store.rows import ImageRow

__all__ = ["thumbnails"]

SIDE = 112


def thumbnails(rows: Iterable[ImageRow], side: int = SIDE) -> Iterator[tuple[ImageRow, Image.Image | None, str]]:
    """Small pictures, their middle square if they are not square.

    Args:
        rows: images of a store.
        side: of the thumbnail in pixels; smaller pictures stay as they are.

    Yields:
        The row, its picture in RGB, and "" — or None and why there is none (a deleted file, a drive that is away).
    """
    sources: dict[str, Source | str] = {}
    for row in rows:
        if row.path is None:
            yield row, None, "it was handed over in memory and is not kept"
            continue
        if row.source not in sources:
            try:
                sources[row.source] = open_dataset(row.source)
            except (ClipAnatomyError, OSError) as error:
                sources[row.source] = str(error)
        source = sources[row.source]
        try:
            # A Python list is no place to go back to, but its paths may be.
            data = Path(row.path) if isinstance(source, str) else source.fetch(row.path)
            if isinstance(source, str) and not Path(row.path).is_file():
                yield row, None, source
                continue
            image = read_data(data, row.id)
        except (ClipAnatomyError, OSError, LookupError, ValueError) as error:
            yield row, None, str(error)
            continue
        yield row, small(image, side), ""


def small(image: Image.Image, side: int) -> Image.Image:
    """Cut the middle square, not larger than `side`."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    return square if short <= side else square.resize((side, side), Image.Resampling.LANCZOS)
