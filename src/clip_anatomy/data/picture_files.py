"""Which files of a collection are pictures: by their endings, and where these say nothing by their first bytes; all others are counted."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["HEAD", "HIDDEN", "LINK", "OURS", "UNREADABLE", "has_suffix", "head_of", "is_picture", "not_a_picture", "passed_over_note", "passed_over_of"]  # fmt: skip

SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", ".heic", ".heif", ".hif", ".jp2", ".tga",
))  # fmt: skip
HEAD = 16  # first bytes that tell what a file is
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|P[1-6]\s[\s\d#]|\0\0\0\x0cjP  |"
    rb"....ftyp(?:avi[fs]|hei[cxms]|hev[cx]|mif1|msf1)",
    re.DOTALL,
)
HIDDEN, OURS, UNREADABLE, LINK = "hidden", "made by clip-anatomy", "not to be read", "link"
_NO_PICTURE = "no picture"
_WORDS = {
    HIDDEN: "hidden",
    OURS: "folders that clip-anatomy made",
    UNREADABLE: "folders that may not be read",
    LINK: "links in tars",
}


def has_suffix(name: str) -> bool:
    """Whether a name ends as those of pictures do."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_picture(name: str, head: Callable[[], bytes]) -> bool:
    """Tell a picture by its ending, and where that is unknown by its first bytes.

    Args:
        name: of the file.
        head: reads its first `HEAD` bytes; called only if the ending says nothing.

    Example:
        >>> is_picture("a.JPE", bytes), is_picture("scan", lambda: b"GIF89a"), is_picture("a.txt", lambda: b"a dog")
        (True, True, False)
    """
    return has_suffix(name) or _MAGIC.match(head()) is not None


def head_of(path: Path) -> bytes:
    """Read the first bytes of a file; none where it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(HEAD)
    except (OSError, ValueError):
        return b""


def not_a_picture(name: str) -> str:
    """Return the reason to pass over a file that is no picture: by its ending, under which all like it are counted."""
    return f"{_NO_PICTURE}: {PurePosixPath(name).suffix.lower() or 'without an ending'}"


def passed_over_of(source: Any) -> Mapping[str, int]:
    """Return what the last walk of a collection passed over: reason → how many files. Collections that know of none have none."""
    return getattr(source, "passed_over", {})


def passed_over_note(counts: Mapping[str, int]) -> str:
    """Say in one line what was passed over; "" where nothing was.

    Example:
        >>> passed_over_note({"no picture: .txt": 3, "hidden": 1, "no picture: .mp4": 1})
        'passed over: 4 files that are no pictures (3 .txt, 1 .mp4), 1 hidden'
    """
    prefix = f"{_NO_PICTURE}: "
    others = Counter({reason.removeprefix(prefix): n for reason, n in counts.items() if reason.startswith(prefix)})
    notes: list[str] = []
    if others:
        kinds = [f"{count:,} {ending}" for ending, count in others.most_common(6)]
        more = ["…"] if len(others) > 6 else []
        total = others.total()
        what = "file that is no picture" if total == 1 else "files that are no pictures"
        notes.append(f"{total:,} {what} ({', '.join([*kinds, *more])})")
    notes += [
        f"{count:,} {_WORDS.get(reason, reason)}"
        for reason, count in counts.items()
        if count and not reason.startswith(prefix)
    ]
    return f"passed over: {', '.join(notes)}" if notes else ""
