"""How a search is shown: its folder (page, contact sheet, numbers), its picture, and what a notebook shows."""

import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from clip_anatomy.atomic_output import REPORT, Kind, atomic_output
from clip_anatomy.progress import note
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.report.search_page import search_page
from clip_anatomy.report.search_pictures import query_pictures, result_pictures
from clip_anatomy.report.search_sheet import contact_sheet
from clip_anatomy.retrieval.ranking import SCHEMA, Ranking

__all__ = ["figure", "html", "save"]

NUMBERS, PAGE, SHEET = "search.json", REPORT, "contact-sheet.png"
KIND = Kind("search", NUMBERS, SCHEMA, (SHEET, NUMBERS, PAGE))


def save(ranking: Ranking, folder: Path) -> Path:
    """Write page, contact sheet and numbers into a folder; name the pictures that are missing on stderr.

    Returns:
        The page.
    """
    with atomic_output(folder, KIND) as output:
        clip = ranking.model()
        query, results = query_pictures(ranking, clip), result_pictures(ranking, clip)
        output.write(SHEET, _png(contact_sheet(ranking, query, results)))
        output.write(NUMBERS, json.dumps(ranking.to_dict(), allow_nan=False) + "\n")
        output.write(PAGE, search_page(ranking, query, results))
    for missing in dict.fromkeys(f"{one.name}: {one.missing}" for one in (*query, *results) if one.image is None):
        note(f"note: picture missing: {missing}")
    return folder / PAGE


def figure(ranking: Ranking) -> Image.Image:
    """Draw the contact sheet."""
    return contact_sheet(ranking, query_pictures(ranking, None), result_pictures(ranking, None))


def html(ranking: Ranking) -> str:
    """Return the contact sheet above the summary, for notebooks."""
    return notebook_figures([(_png(figure(ranking)), ranking.title, ranking.summary())])


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
