"""Fonts for texts of any script: Pillow's own for Latin letters, else the first installed one that has all letters."""

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont

__all__ = ["Font", "font_for", "known_families"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Files and families that hold many scripts, the likelier first; matched without spaces, hyphens and case.
MANY_SCRIPTS = (
    "notosanscjk", "sourcehansans", "notosanssc", "notosansjp", "notosanskr", "wenquanyi", "wqy", "droidsansfallback", "pingfang",
    "hiragino", "msyh", "microsoftyahei", "simhei", "msgothic", "yugothic", "malgun", "applesdgothic", "ipagothic", "ipag", "arialunicode",
    "unifont", "dejavusans", "notosans", "liberationsans", "arial",
)  # fmt: skip
ONE_WEIGHT = re.compile(
    r"DejaVu|Light|Condensed|Display|Thin|Black|Medium|Mono|Symbols"
)  # matplotlib complains of a missing weight
MOST_FAMILIES = 4  # that a figure asks for one letter: each is loaded


@cache
def font_for(size: int | float, letters: str = "") -> Font:
    """Return a font that has these letters.

    Args:
        size: in pixels.
        letters: those of the text; Latin ones are in Pillow's own font.
    """
    own = ImageFont.load_default(size)
    strange = {c for c in letters if ord(c) > 0xFF and not c.isspace()}
    if not strange:
        return own
    best, missing = own, len(strange)
    for path in _installed():
        try:
            font = ImageFont.truetype(path, size)
        except OSError:
            continue
        lost = sum(not _has(font, c) for c in strange)
        if lost < missing:
            best, missing = font, lost
        if not missing:
            break
    return best


def known_families(installed: set[str]) -> list[str]:
    """Return the installed families of fonts that hold many scripts, for figures: a few, the likelier first."""
    plain = {_plain(name): name for name in sorted(installed, reverse=True)}
    families = [name for wanted in MANY_SCRIPTS for key, name in plain.items() if key.startswith(wanted)]
    return list(dict.fromkeys(name for name in families if not ONE_WEIGHT.search(name)))[:MOST_FAMILIES]


@cache
def _installed() -> tuple[str, ...]:
    """List files of fonts that hold many scripts, the likelier first."""
    files = {_plain(path.stem): str(path) for folder in _folders() for path in _files(folder)}
    return tuple(
        dict.fromkeys(files[key] for wanted in MANY_SCRIPTS for key in sorted(files) if key.startswith(wanted))
    )


def _folders() -> Iterator[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    elif sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
    else:
        yield from (
            Path("/usr/share/fonts"),
            Path("/usr/local/share/fonts"),
            home / ".local/share/fonts",
            home / ".fonts",
        )
    if (spec := find_spec("matplotlib")) is not None and spec.origin:
        yield Path(spec.origin).parent / "mpl-data/fonts/ttf"


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc"))
    except OSError:
        return


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


@cache
def _blank(font: Font) -> bytes:
    mask: Any = font.getmask("\uffff")
    return bytes(mask)


def _has(font: Font, letter: str) -> bool:
    mask: Any = font.getmask(letter)
    return bytes(mask) != _blank(font)
