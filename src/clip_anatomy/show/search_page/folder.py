"""The folder of a result: written beside its place, moved in when it is whole."""

import json
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from clip_anatomy.errors import OutputError
from clip_anatomy.library.ranking import SCHEMA

__all__ = ["MARK", "PAGE", "SHEET", "building"]

MARK, PAGE, SHEET = "search.json", "index.html", "contact-sheet.png"


@contextmanager
def building(out: Path) -> Generator[Path]:
    """Give an empty folder beside `out`; its files are moved there when all went well, and nothing is left otherwise.

    Raises:
        OutputError: `out` cannot be written, or holds a page of something else. Raised before any work is done.
    """
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; a folder was expected. Type: --out {out}-search")
    if out.is_dir() and any((out / name).exists() for name in (PAGE, MARK, SHEET)) and not _ours(out):
        raise OutputError(f"{out} holds files of something else. Type another folder: --out NAME")
    part: Path | None = None
    try:
        try:
            beside = next(place for place in (out, *out.absolute().parents) if place.exists())
            part = beside / f".{out.name or 'search'}.partial-{secrets.token_hex(4)}"
            part.mkdir()
        except (OSError, ValueError) as error:
            raise _failed(out, error) from error
        try:
            yield part
            out.mkdir(parents=True, exist_ok=True)
            for name in (SHEET, MARK, PAGE):  # the page last: it never shows what is not there yet
                if (part / name).exists():
                    (part / name).replace(out / name)
        except OutputError:
            raise
        except OSError as error:
            raise _failed(out, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _ours(folder: Path) -> bool:
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8")).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        return False


def _failed(place: Path, error: Exception) -> OutputError:
    why = (getattr(error, "strerror", None) or str(error)).lower()
    return OutputError(f"{place} cannot be written: {why}. Type a folder that you may write: --out NAME")
