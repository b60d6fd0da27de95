"""What `heatmap` writes: overlays, contact sheets, films, one page that holds everything, all numbers as JSON."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json
from clip_anatomy.errors import BadInput
from clip_anatomy.evaluation.method_checks import MethodChecks
from clip_anatomy.images.input_size import describe_size
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.maps.map_result import MapRun, Maps
from clip_anatomy.maps.map_set import SCHEMA, MapSet
from clip_anatomy.maps.registry import CONTRASTED
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.contact_sheet import Cell, SheetRow, contact_sheets
from clip_anatomy.report.drawings import (
    ON_PAGE,
    ON_SHEETS,
    file_name,
    image_bytes,
    listed_texts,
    on_page_note,
    write_sheets,
)
from clip_anatomy.report.html import framed
from clip_anatomy.report.layer_film import layer_film
from clip_anatomy.report.map_legend import PALE, with_legend
from clip_anatomy.report.map_overlay import HEAT, ShadedSet, colour_range, overlay, shades_of
from clip_anatomy.report.maps_page import maps_page, maps_section
from clip_anatomy.report.model_facts import model_facts
from clip_anatomy.report.palette import NO, YES
from clip_anatomy.report.shown_picture import ShownPicture, view_of
from clip_anatomy.split.picture_explanation import signed

__all__ = ["KIND", "figure", "html", "overlaid", "write"]

KIND = Kind("maps", "heatmap.json", SCHEMA)
EMPTY = ": nothing to show"
LEGENDS = {
    "signed": [
        (
            (NO, PALE, YES),
            "blue: against the text, orange: for it; one scale for all pictures and texts of a method, one for words",
        )
    ],
    "heat": [
        ([stop[:3] for stop in HEAT], "from the lowest value of all pictures and texts of a method to the highest")
    ],
}


def write(
    maps: MapSet | Maps,
    output: AtomicOutput,
    progress: Progress | None = None,
    *,
    checks: MethodChecks | None = None,
    pictures: bool | None = None,
) -> None:
    """Draw every picture, one after the other, into an atomic output.

    Args:
        maps: what is drawn.
        output: where to; see `atomic_output`.
        progress: told how many pictures are drawn.
        checks: whether the maps mean anything, if that was asked for.
        pictures: whether overlays and contact sheets are written too, as they are by default.
    """
    map_set = _as_set(maps)
    tell, run = progress or silent, _run(map_set)
    sections: list[Markup] = []
    rows: list[SheetRow] = []
    shaded = ShadedSet.of(map_set)
    drawn = pictures is not False
    for i in range(len(map_set) if drawn else min(len(map_set), ON_PAGE)):
        tell("drawing", i, len(map_set))
        picture, image, one = _picture(map_set, i)
        if drawn:
            _write_overlays(one, shaded[i], i, image, output)
        if len(sections) < ON_PAGE:
            sections.append(maps_section(picture, one, map_set.colours, shaded[i]))
        if drawn and sum(len(row.cells) for row in rows) < ON_SHEETS:
            rows += _rows(one, shaded[i], image)
    tell("writing the page", 0, 1)
    title, under = _title(map_set), f"{run.clip.name} · {', '.join(_methods(map_set))} · {_looked_at(run)}"
    write_sheets(output, contact_sheets(title, under, rows, LEGENDS[map_set.colours]))
    output.write(REPORT, _page(map_set, sections, checks))
    sanity = {} if checks is None else {"sanity": checks.to_list()}
    output.write(KIND.mark, as_json({**map_set.to_dict(), **sanity, "files": output.files}))


def figure(map_set: MapSet | Maps) -> Image.Image:
    """Draw the maps of the first picture as a contact sheet."""
    from io import BytesIO

    whole = _as_set(map_set)
    _, image, one = _picture(whole, 0)
    rows = _rows(one, ShadedSet.of(one), image)
    under = f"{_run(whole).clip.name} · {', '.join(_methods(whole))}"
    return Image.open(BytesIO(contact_sheets(_title(whole), under, rows, LEGENDS[whole.colours])[0]))


def overlaid(maps: Maps, image: int, text: int) -> Image.Image:
    """Draw one map over its picture, with its legend below."""
    _, original, _ = _picture(_as_set(maps), image)
    shades = shades_of(maps)[image]
    return with_legend(overlay(original, shades, text), shades, text, maps.texts[text], "signed")


def html(map_set: MapSet | Maps) -> str:
    """Return the page, in a frame for notebooks."""
    whole = _as_set(map_set)
    shaded, pictures = ShadedSet.of(whole), [_picture(whole, i) for i in range(min(len(whole), ON_PAGE))]
    sections = [maps_section(one[0], one[2], whole.colours, shaded[i]) for i, one in enumerate(pictures)]
    return framed(_page(whole, sections))


def _as_set(map_set: MapSet | Maps) -> MapSet:
    return map_set if isinstance(map_set, MapSet) else MapSet((map_set,))


def _run(map_set: MapSet) -> MapRun:
    if map_set.first.run is None or map_set.first.pictures is None:
        raise BadInput(
            "these maps do not know their pictures, so they cannot be drawn. Type: heatmap(clip, paths, texts)"
        )
    return map_set.first.run


def _picture(map_set: MapSet, image: int) -> tuple[ShownPicture, Image.Image, MapSet]:
    """Return one picture as it is shown, whole in RGB, and its maps."""
    _run(map_set)
    assert map_set.first.pictures is not None
    assert map_set.first.geometries is not None
    one, source = map_set[image], map_set.first.pictures[image]
    original = source.read(keep_mode=True)
    assert one.first.geometries is not None
    return (
        view_of(original, source.name, one.first.geometries[0]),
        source.read() if original.mode != "RGB" else original,
        one,
    )


def _page(map_set: MapSet, sections: Sequence[Markup], checks: MethodChecks | None = None) -> str:
    run = _run(map_set)
    facts = [*model_facts(run.clip), ("methods", ", ".join(_methods(map_set))), ("looked at", _looked_at(run))]
    facts += [
        ("subtracted from every text", f"{one.method}: {one.subtracted or 'nothing'}")
        for one in map_set.methods
        if one.subtracted or one.method in CONTRASTED
    ]
    notes = [*map_set.all_notes, *on_page_note(len(sections), len(map_set))]
    return maps_page(
        _title(map_set), sections, map_set.colours, notes=notes, failed=map_set.failed, facts=facts, checks=checks
    )


def _title(map_set: MapSet) -> str:
    return f"Where {listed_texts(map_set.first.texts)} {'is' if len(map_set.first.texts) == 1 else 'are'} answered"


def _methods(map_set: MapSet) -> list[str]:
    return [maps.method for maps in map_set.methods]


def _looked_at(run: MapRun) -> str:
    in_words = {"replace_sinks": "sinks replaced"}
    options = {
        name: value for name, value in run.options.items() if name != "against"
    }  # the page says what was subtracted
    further = [f", {in_words.get(name, f'{name} {value}')}" for name, value in options.items()]
    return describe_size(run.size, run.clip.preprocess) + "".join(further)


def _write_overlays(one: MapSet, shaded: ShadedSet, place: int, image: Image.Image, output: AtomicOutput) -> None:
    """Write a file for each map of one picture, and the film of its layers."""
    name, several = one.first.names[0], len(one.methods) > 1
    groups = [(shades.maps.method if several else "", shades) for shades in shaded.methods]
    groups += [(f"words of {shades.maps.texts[0]}" if i else "words", shades) for i, shades in enumerate(shaded.words)]
    for prefix, shades in groups:
        for k, text in enumerate(shades.maps.texts):
            ending, content = image_bytes(
                with_legend(overlay(image, shades, k, one.colours), shades, k, text, one.colours)
            )
            parts = [part for part in (prefix, f"{k:02d}", text) if part]
            output.write(f"{file_name(place, name, *parts)}.{ending}", content)
    if one.layers:
        output.write(f"{file_name(place, name, 'layers')}.gif", layer_film(image, shaded, one.colours))


def _rows(one: MapSet, shaded: ShadedSet, image: Image.Image) -> list[SheetRow]:
    """Return rows of the contact sheet: methods side by side where there are several, else texts."""
    name, colours = Path(one.first.names[0]).name, one.colours
    small = image.copy()
    small.thumbnail((432, 432))
    first = Cell(small, "the picture")
    texts = one.first.texts
    rows: list[SheetRow] = []
    if len(shaded.methods) > 1:
        for k, text in enumerate(texts):
            heads = [
                f"{shades.maps.method}{EMPTY}"
                if shades.says_nothing(k)
                else f"{shades.maps.method}  {colour_range(shades, k, colours)}"
                for shades in shaded.methods
            ]
            cells = [
                Cell(overlay(small, one, k, colours), head) for one, head in zip(shaded.methods, heads, strict=True)
            ]
            rows.append(SheetRow(f"{name}:  {shorten(text)}", [first, *cells]))
    else:
        shades = next(iter(shaded.methods))
        names = [
            f"{shorten(text, 18)}{EMPTY}" if shades.says_nothing(k) else shorten(text) for k, text in enumerate(texts)
        ]
        cells = [Cell(overlay(small, shades, k, colours), names[k]) for k in range(len(texts))]
        rows.append(SheetRow(f"{name}:  colours {colour_range(shades, 0, colours)}", [first, *cells]))
    for maps, shades, text in zip(one.words, shaded.words, texts, strict=False):
        shares = [signed(float(share)) for share in maps.values[0].sum((1, 2))]
        captions = ["the whole text", *(shorten(word, 24) for word in maps.texts[1:])]
        cells = [Cell(overlay(small, shades, k, colours), f"{captions[k]}  {shares[k]}") for k in range(len(captions))]
        rows.append(
            SheetRow(f"{name}:  {shorten(text)}, word by word, with each word's share of the cosine", [first, *cells])
        )
    return rows
