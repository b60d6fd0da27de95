"""From pictures to files: overlays, contact sheets, films, page and numbers, one picture at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from clip_anatomy import __version__
from clip_anatomy.errors import BadImage
from clip_anatomy.maps.maps import Maps
from clip_anatomy.model.clip import Clip
from clip_anatomy.show.maps_page.draw import overlay, peak, shades_of
from clip_anatomy.show.maps_page.gather import Asked, Seen, Source, look
from clip_anatomy.show.maps_page.motion import layer_film
from clip_anatomy.show.maps_page.page import Story, maps_page, section
from clip_anatomy.show.maps_page.sheet import Cell, Row, contact_sheets
from clip_anatomy.show.pictures import TINY, label_of
from clip_anatomy.show.progress import note
from clip_anatomy.show.run import facts
from clip_anatomy.show.stages import stages
from clip_anatomy.show.staging import REPORT, Kind, Staging, as_json
from clip_anatomy.show.texts import Question, shorten
from clip_anatomy.show.wording import said_here

__all__ = ["KIND", "SHEET", "Found", "as_dict", "file_name", "image_bytes", "refuse_if_none", "walk"]

KIND = Kind("maps", "heatmap.json", "clip-anatomy/heatmap/1")
SHEET = "contact-sheet"
ON_PAGE = 60  # pictures on the page; overlays are written for all
ON_SHEETS = 1500  # cells on contact sheets
DIGITS = 6


@dataclass
class Found:
    """What came of the pictures so far.

    Attributes:
        images: one entry of the JSON each.
        failed: name and error of those that could not be read.
        files: names written into the folder.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def walk(
    clip: Clip,
    sources: Sequence[Source],
    questions: Sequence[Question],
    asked: Asked,
    staging: Staging | None,
    *,
    how: str = "signed",
    notes: Sequence[str] = (),
    allow_urls: bool = False,
) -> Found:
    """Look at every picture, and write what is drawn of it before the next one is read.

    Args:
        clip: an opened model.
        sources: the pictures.
        questions: the texts with their notes.
        asked: what is wanted of each picture.
        staging: where to write; None to draw nothing.
        how: "signed" or "heat".
        notes: what a reader must know.
        allow_urls: fetch http(s) addresses.

    Returns:
        What was found.

    Raises:
        BadImage: none of the pictures could be read.
    """
    found = Found()
    sections: list[str] = []
    rows: list[Row] = []
    with stages() as tell:
        for done, source in enumerate(sources):
            tell("looking at pictures", done, len(sources))
            try:
                seen = look(clip, source, asked, allow_urls=allow_urls)
            except BadImage as error:
                found.failed.append((label_of(source.path), said_here(str(error))))
                continue
            found.images.append(_image(seen))
            if staging is None:
                continue
            _overlays(seen, len(found.images) - 1, staging, found, how)
            if len(sections) < ON_PAGE:
                sections.append(section(seen, how))
            if sum(len(row.cells) for row in rows) < ON_SHEETS:
                rows += _rows(seen, how)
        refuse_if_none(found.failed, len(found.images))
        if staging is not None:
            tell("writing the page", 0, 1)
            title = f"Where {_listed(asked.texts)} {'is' if len(asked.texts) == 1 else 'are'} answered"
            under = f"{clip.name} · {', '.join(asked.methods)} · {_size(asked, clip)}"
            for i, sheet in enumerate(contact_sheets(title, under, rows)):
                name = f"{SHEET}{'' if i == 0 else f'-{i + 1}'}.png"
                staging.write(name, sheet)
                found.files.append(name)
            told = list(notes) + [f"“{q.short}”: {said}" for q in questions for said in q.notes]
            if len(found.images) > len(sections):
                told.append(
                    f"The page shows the first {len(sections)} of {len(found.images)} pictures; the folder has all."
                )
            known = [*facts(clip), ("methods", ", ".join(asked.methods)), ("looked at", _size(asked, clip))]
            staging.write(REPORT, maps_page(Story(title, told, found.failed, known, how), sections))
            found.files.append(REPORT)
            staging.write(KIND.mark, as_json(as_dict(clip, questions, asked, found, notes)))
    return found


def refuse_if_none(failed: Sequence[tuple[str, str]], done: int) -> None:
    """Raise if no picture could be read, naming each.

    Raises:
        BadImage: none could.
    """
    if done:
        return
    if len(failed) == 1:
        raise BadImage(failed[0][1])
    for _, error in failed:
        note(f"not read: {error}")
    raise BadImage(f"none of the {len(failed)} pictures could be read. Type the paths of pictures: photo.jpg")


def as_dict(
    clip: Clip, questions: Sequence[Question], asked: Asked, found: Found, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything found, ready for JSON."""
    return {
        "schema": KIND.schema,
        "version": __version__,
        "model": {"name": clip.name, "digest": clip.digest, "preprocess": clip.preprocess.to_dict()},
        "methods": list(asked.methods),
        "size": asked.size if not isinstance(asked.size, tuple) else list(asked.size),
        "options": dict(asked.options),
        "notes": list(notes),
        "texts": [{"text": q.text, "notes": list(q.notes)} for q in questions],
        "failed": [{"image": name, "error": error} for name, error in found.failed],
        "files": found.files,
        "images": found.images,
    }


def file_name(place: int, label: str, *parts: str) -> str:
    """A file's name without its ending: number, picture, what is drawn.

    Example:
        >>> file_name(3, "holiday/My cat!.jpg", "surgery", "a cat")
        '003-my-cat-surgery-a-cat'
    """
    return "-".join([f"{place:03d}", *(_slug(part) for part in (Path(label).stem, *parts))])


def image_bytes(image: Image.Image) -> tuple[str, bytes]:
    """A drawing as (ending, bytes): PNG where it is small, JPEG where it is a photograph."""
    file = BytesIO()
    if max(image.size) <= TINY:
        image.save(file, "PNG", optimize=True)
        return "png", file.getvalue()
    image.save(file, "JPEG", quality=92)
    return "jpg", file.getvalue()


def _overlays(seen: Seen, place: int, staging: Staging, found: Found, how: str) -> None:
    several = len(seen.maps) > 1

    def write(name: str, content: bytes) -> None:
        staging.write(name, content)
        found.files.append(name)

    groups: list[tuple[str, Maps]] = [(name if several else "", maps) for name, maps in seen.maps.items()]
    groups += [(f"words of {maps.texts[0]}" if i else "words", maps) for i, maps in enumerate(seen.words)]
    for prefix, maps in groups:
        shades = shades_of(maps)
        for k, text in enumerate(maps.texts):
            ending, content = image_bytes(overlay(seen.image, shades, k, how))
            parts = [part for part in (prefix, f"{k:02d}", text) if part]
            write(f"{file_name(place, seen.picture.label, *parts)}.{ending}", content)
    if seen.layers:
        write(f"{file_name(place, seen.picture.label, 'layers')}.gif", layer_film(seen.image, seen.layers, how))


def _rows(seen: Seen, how: str) -> list[Row]:
    """Rows of the contact sheet: methods side by side where there are several, else texts."""
    name = Path(seen.picture.label).name
    small = seen.image.copy()
    small.thumbnail((432, 432))
    first = Cell(small, "the picture")
    shaded = {method: shades_of(maps) for method, maps in seen.maps.items()}
    texts = next(iter(seen.maps.values())).texts
    rows: list[Row] = []
    if len(shaded) > 1:
        for k, text in enumerate(texts):
            cells = [Cell(overlay(small, shades, k, how), method) for method, shades in shaded.items()]
            rows.append(Row(f"{name}:  {shorten(text)}", [first, *cells]))
    else:
        shades = next(iter(shaded.values()))
        rows.append(
            Row(name, [first, *(Cell(overlay(small, shades, k, how), shorten(t)) for k, t in enumerate(texts))])
        )
    for maps, text in zip(seen.words, texts, strict=False):
        shades = shades_of(maps)
        cells = [Cell(overlay(small, shades, k, how), word) for k, word in enumerate(maps.texts)]
        rows.append(Row(f"{name}:  {shorten(text)}, word by word", cells))
    return rows


def _image(seen: Seen) -> dict[str, Any]:
    return {
        "image": seen.picture.label,
        "width": seen.picture.size[0],
        "height": seen.picture.size[1],
        "seen": [round(edge, 3) for edge in seen.picture.seen],
        "maps": [_numbers(maps, k, name) for name, maps in seen.maps.items() for k in range(len(maps.texts))],
        "words": [_numbers(maps, k, maps.method) for maps in seen.words for k in range(len(maps.texts))],
        "layers": [_numbers(maps, k, maps.method) for maps in seen.layers for k in range(len(maps.texts))],
    }


def _numbers(maps: Maps, text: int, method: str) -> dict[str, Any]:
    values = maps.values[0, text]
    x, y = peak(maps, text)
    return {
        "method": method,
        "text": maps.texts[text],
        "lowest": _plain(float(values.min())),
        "highest": _plain(float(values.max())),
        "peak": [round(x, 2), round(y, 2)],
        "values": [[_plain(v) for v in row] for row in values.tolist()],
    }


def _plain(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _size(asked: Asked, clip: Clip) -> str:
    rows, cols = clip.preprocess.size
    if asked.size is None:
        text = f"the model's crop, {rows} × {cols} pixels"
    elif asked.size == "whole":
        text = f"the whole picture, short side {min(rows, cols)}"
    elif isinstance(asked.size, tuple):
        text = f"the whole picture, squashed to {asked.size[0]} × {asked.size[1]}"
    else:
        text = f"the whole picture, short side {asked.size}"
    told = {"replace_sinks": "sinks replaced"}
    return text + "".join(f", {told.get(name, f'{name} {value}')}" for name, value in asked.options)


def _listed(texts: Sequence[str]) -> str:
    quoted = [f"“{shorten(text, 40)}”" for text in texts[:3]]
    return ", ".join(quoted) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _slug(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text[:200].lower())
    return "-".join(part for part in kept.split("-") if part)[:40].rstrip("-") or "x"
