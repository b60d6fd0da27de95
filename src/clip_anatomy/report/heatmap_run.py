"""From pictures to files: overlays, contact sheets, films, page and numbers, one picture at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from clip_anatomy.atomic_output import REPORT, Kind, as_json
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.report.contact_sheet import Cell, Row, contact_sheets
from clip_anatomy.report.layer_film import layer_film
from clip_anatomy.report.map_files import Found, file_name, image_bytes
from clip_anatomy.report.map_gather import Asked, Seen, look
from clip_anatomy.report.map_overlay import HEAT, overlay, peak, shades_of
from clip_anatomy.report.map_request import Request
from clip_anatomy.report.maps_page import maps_page, maps_section
from clip_anatomy.report.palette import NO, YES
from clip_anatomy.report.step_progress import stages
from clip_anatomy.report.typed_texts import shorten
from clip_anatomy.split.explanation import signed

__all__ = ["KIND", "ON_PAGE", "ON_SHEETS", "as_dict", "walk"]

KIND = Kind("maps", "heatmap.json", "clip-anatomy/heatmap/1")
ON_PAGE = 60  # pictures on the page; overlays are written for all
ON_SHEETS = 1500  # cells on contact sheets
DIGITS = 6
LEGENDS = {
    "signed": [
        (
            (NO, (232, 230, 226), YES),
            "blue: against the text, orange: for it; one scale for all texts of a picture and method, one for words",
        )
    ],
    "heat": [([stop[:3] for stop in HEAT], "each map from its lowest value to its highest")],
}


def walk(request: Request, asked: Asked, how: str = "signed") -> Found:
    """Look at every picture, and write what is drawn of it before the next one is read.

    Args:
        request: model, pictures, texts, and where to write.
        asked: what is wanted of each picture.
        how: "signed" or "heat".

    Returns:
        What was found.

    Raises:
        BadImage: none of the pictures could be read.
    """
    found = Found()
    sections: list[Markup] = []
    rows: list[Row] = []

    def act(image: Image.Image, label: str) -> None:
        seen = look(request.clip, image, label, asked)
        found.images.append(_image(seen))
        if request.staging is None:
            return
        _overlays(request, found, seen, how)
        if len(sections) < ON_PAGE:
            sections.append(maps_section(seen, how))
        if sum(len(row.cells) for row in rows) < ON_SHEETS:
            rows.extend(_rows(seen, how))

    found.each(request, "looking at pictures", act)
    if request.staging is not None:
        with stages() as tell:
            tell("writing the page", 0, 1)
            title = f"Where {_listed(asked.texts.names)} {'is' if len(asked.texts) == 1 else 'are'} answered"
            under = f"{request.clip.name} · {', '.join(asked.methods)} · {_size(asked, request.clip)}"
            found.write_sheets(request, contact_sheets(title, under, rows, LEGENDS[how]))
            told = found.told(request)
            if len(found.images) > len(sections):
                told.append(
                    f"The page shows the first {len(sections)} of {len(found.images)} pictures; the folder has all."
                )
            known = [
                *request.facts,
                ("methods", ", ".join(asked.methods)),
                ("looked at", _size(asked, request.clip)),
            ]
            page = maps_page(title, sections, how, notes=told, failed=found.failed, facts=known)
            found.write(request, REPORT, page)
            request.staging.write(KIND.mark, as_json(as_dict(request, asked, found)))
    return found


def as_dict(request: Request, asked: Asked, found: Found) -> dict[str, Any]:
    """Everything found, ready for JSON."""
    return found.header(
        request,
        KIND,
        methods=list(asked.methods),
        size=list(asked.size) if isinstance(asked.size, tuple) else asked.size,
        options=dict(asked.options),
    )


def _overlays(request: Request, found: Found, seen: Seen, how: str) -> None:
    several, place = len(seen.maps) > 1, len(found.images) - 1
    groups: list[tuple[str, Maps]] = [(name if several else "", maps) for name, maps in seen.maps.items()]
    groups += [(f"words of {maps.texts[0]}" if i else "words", maps) for i, maps in enumerate(seen.words)]
    for prefix, maps in groups:
        shades = shades_of(maps)
        for k, text in enumerate(maps.texts):
            ending, content = image_bytes(overlay(seen.image, shades, k, how))
            parts = [part for part in (prefix, f"{k:02d}", text) if part]
            found.write(request, f"{file_name(place, seen.picture.label, *parts)}.{ending}", content)
    if seen.layers:
        film = layer_film(seen.image, seen.layers, how)
        found.write(request, f"{file_name(place, seen.picture.label, 'layers')}.gif", film)


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
    elif not (
        seen.words and len(texts) == 1 and "decomposition" in shaded
    ):  # the row of its words begins with this map
        shades = next(iter(shaded.values()))
        rows.append(
            Row(name, [first, *(Cell(overlay(small, shades, k, how), shorten(t)) for k, t in enumerate(texts))])
        )
    for maps, text in zip(seen.words, texts, strict=False):
        shades = shades_of(maps)
        shares = [signed(float(share)) for share in maps.values[0].sum((1, 2))]
        words = ["the whole text", *(shorten(word, 24) for word in maps.texts[1:])]
        cells = [Cell(overlay(small, shades, k, how), f"{words[k]}  {shares[k]}") for k in range(len(words))]
        rows.append(
            Row(f"{name}:  {shorten(text)}, word by word, with each word's share of the cosine", [first, *cells])
        )
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
