"""What is in the folder of a search."""

from clip_anatomy.atomic_output import REPORT, Kind
from clip_anatomy.retrieval.ranking import SCHEMA

__all__ = ["MARK", "PAGE", "SEARCH", "SHEET"]

MARK, PAGE, SHEET = "search.json", REPORT, "contact-sheet.png"
SEARCH = Kind("search", MARK, SCHEMA, (SHEET, MARK, PAGE))
