"""The result page: what was asked beside what was found, and for each picture why it matched. One file that holds everything."""

from collections.abc import Sequence
from typing import Any

from clip_anatomy.report.highlight import data_uri as shade_uri
from clip_anatomy.report.highlight import limits_of
from clip_anatomy.report.html import data_uri, encoded, page
from clip_anatomy.report.search_pictures import Shown
from clip_anatomy.report.search_wording import compared, counted, number, ordered, reading, standing, title, told
from clip_anatomy.retrieval.ranking import Hit, Ranking, Used

__all__ = ["search_page"]

DRAWING = 96  # pictures up to this side are shown with square pixels
LISTED = 40  # heads of one result
COLOURED = 10  # heads with a colour of their own; the rest are grey


def search_page(ranking: Ranking, query: Sequence[Shown], found: Sequence[Shown]) -> str:
    """Return the page as one string.

    Args:
        ranking: the result of the search.
        query: pictures that were asked for.
        found: pictures that were found, in the order of the hits.
    """
    maps = any(one.patches is not None for one in (*query, *found))
    order = ordered(ranking)
    colours = {at: _colour(place) for place, at in enumerate(order)}
    k, last = len(ranking.hits), ranking.offset + len(ranking.hits)
    more = bool(k) and last < ranking.matched - 1 and not ranking.offset % k
    return page(
        "search.html",
        kind="search",
        script="search.js",
        title=title(ranking),
        ranking=ranking,
        compared=compared(ranking),
        counted=counted(ranking),
        standing=standing(ranking),
        reading=reading(ranking, maps=maps),
        next_page=ranking.offset // k + 2 if more else None,
        maps=maps,
        query=_frames(query),
        texts=() if ranking.asked is None else ranking.asked.words,
        heads=[_head(ranking.heads[at], colours[at]) for at in order],
        coloured=COLOURED,
        results=[
            {"hit": one["shown"].hit, **one, **_shares(ranking, one["shown"].hit, order, colours)}
            for one in _frames(found)
        ],
    )


def _frames(pictures: Sequence[Shown]) -> list[dict[str, Any]]:
    """Pictures with the shade over them: each is lit by its own best patch."""
    limits = limits_of(*(one.patches for one in pictures))
    return [
        {
            "shown": one,
            "picture": None if one.image is None else data_uri(encoded(one.image, 84, lossless=DRAWING)),
            "drawn": one.image is not None and max(one.image.size) <= DRAWING,
            "shade": None if one.patches is None else shade_uri(one.patches, limit),
        }
        for one, limit in zip(pictures, limits, strict=True)
    ]


def _head(one: Used, colour: str) -> dict[str, str]:
    role, _, text = one.meaning.partition(": ")
    why = one.why.removeprefix(f"{role}, ") if role else one.why
    return {"name": one.name, "role": role, "text": text, "why": why, "colour": colour}


def _shares(ranking: Ranking, hit: Hit, order: Sequence[int], colours: dict[int, str]) -> dict[str, Any]:
    """What each head adds to one score: the largest as a list, those that speak for it as a bar."""
    # The whole width is the largest sum of positive shares on the page, so that bars can be compared.
    whole = max(sum(max(share, 0.0) for share in one.shares) for one in ranking.hits)
    largest = told(ranking, hit, LISTED)
    bar = [(colours[at], 100 * hit.shares[at] / whole) for at in order if hit.shares[at] > 0] if largest else []
    return {
        "score": number(hit.score),
        "shares": [(one, number(share, sign=True), colours[at]) for one, share, at in largest],
        "bar": bar,
        "reason": ranking.told(hit),
    }


def _colour(place: int) -> str:
    """The colour of the head that comes at this place in the order of a page, as a style."""
    return f"--hue:{25 + 360 * place / COLOURED:.0f}" if place < COLOURED else "--strength:0"
