"""What the folders of maps and of masks do alike: names of files, contact sheets, how much the page shows."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from clip_anatomy.atomic_output import AtomicOutput, slug
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.html import LOSSLESS

__all__ = ["ON_PAGE", "ON_SHEETS", "file_name", "image_bytes", "listed_texts", "on_page_note", "write_sheets"]

ON_PAGE = 60  # pictures on the page; drawings are written for all
ON_SHEETS = 1500  # cells on contact sheets
SHEET = "contact-sheet"


def file_name(place: int, label: str, *parts: str) -> str:
    """Return a file's name without its ending: number, picture, what is drawn.

    Example:
        >>> file_name(3, "holiday/My cat!.jpg", "surgery", "a cat")
        '003-my-cat-surgery-a-cat'
    """
    return "-".join([f"{place:03d}", *(slug(part) for part in (Path(label).stem, *parts))])


def image_bytes(image: Image.Image) -> tuple[str, bytes]:
    """Encode a drawing as (ending, bytes): PNG where it is small, JPEG where it is a photograph."""
    file = BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(file, "PNG", optimize=True)
        return "png", file.getvalue()
    image.save(file, "JPEG", quality=92)
    return "jpg", file.getvalue()


def write_sheets(output: AtomicOutput, sheets: Sequence[bytes]) -> None:
    """Write contact sheets; the first has no number."""
    for i, sheet in enumerate(sheets):
        output.write(f"{SHEET}{'' if i == 0 else f'-{i + 1}'}.png", sheet)


def on_page_note(shown: int, pictures: int) -> list[str]:
    """Say that the page does not show every picture, where it does not."""
    return [f"The page shows the first {shown} of {pictures} pictures; the folder has all."] if pictures > shown else []


def listed_texts(texts: Sequence[str]) -> str:
    """Return the first texts in quotes, and how many more there are.

    Example:
        >>> listed_texts(["a dog", "a cat"])
        '“a dog”, “a cat”'
    """
    quoted = [f"“{shorten(text, 40)}”" for text in texts[:3]]
    return ", ".join(quoted) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
