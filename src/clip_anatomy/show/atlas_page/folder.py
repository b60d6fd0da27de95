"""The folder of an atlas: built beside its place and swapped in when it is whole."""

import io
import json
import secrets
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from clip_anatomy.anatomy.atlas import SCHEMA, Atlas
from clip_anatomy.errors import OutputError
from clip_anatomy.library.rows import Row
from clip_anatomy.library.thumbs import thumbnails
from clip_anatomy.show.atlas_page.head import head_page
from clip_anatomy.show.atlas_page.index import index_page
from clip_anatomy.show.atlas_page.parts import Shown, place_of
from clip_anatomy.show.atlas_page.table import has_parquet, write_parquet

__all__ = ["building", "write_atlas"]

MARK, PAGE = "atlas.json", "index.html"
OURS = ("images", "heads", "atlas.parquet", MARK, PAGE)  # in this order: the page never names what is not there yet
TINY = 96  # sides up to this are drawings


@contextmanager
def building(out: Path) -> Generator[Path]:
    """Give an empty folder beside `out`; what is in it takes its place when all went well, and nothing is left otherwise.

    An older atlas in `out` is replaced; other files in it stay.

    Raises:
        OutputError: `out` cannot be written, or holds a page that is not an atlas. Raised before any work is done.
    """
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; a folder was expected. Type: --out {out}-atlas")
    if out.is_dir() and any((out / name).exists() for name in OURS) and not _is_atlas(out):
        raise OutputError(f"{out} holds files of something else. Type another folder: --out NAME")
    part: Path | None = None
    try:
        try:
            beside = next(place for place in (out, *out.absolute().parents) if place.exists())
            part = beside / f".{out.name or 'atlas'}.partial-{secrets.token_hex(4)}"
            part.mkdir()
        except (OSError, ValueError) as error:
            raise _failed(out, error) from error
        try:
            yield part
            _swap(part, out)
        except OutputError:
            raise
        except OSError as error:
            raise _failed(out, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def write_atlas(
    atlas: Atlas, rows: Sequence[Row], folder: Path, progress: Callable[[str, int, int], None] | None = None
) -> list[str]:
    """Write all pages, pictures and tables of an atlas into an empty folder.

    Args:
        atlas: the atlas.
        rows: what the store knows of the images that stand as evidence.
        folder: where; see `building`.
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


def _swap(part: Path, out: Path) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        part.rename(out)
        return
    old = part / "old"
    old.mkdir()
    for name in OURS:
        if (out / name).exists():
            (out / name).rename(old / name)
        if (part / name).exists():
            (part / name).rename(out / name)


def _is_atlas(folder: Path) -> bool:
    try:
        with (folder / MARK).open("rb") as file:
            return SCHEMA.encode() in file.read(200)
    except OSError:
        return False


def _failed(place: Path, error: Exception) -> OutputError:
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return OutputError(f"{place} cannot be written: {why}. Type a folder that you may write: --out NAME")
