"""The result page: what was asked beside what was found, and for each picture why it matched. One file that holds everything."""

from collections.abc import Sequence
from typing import Any

from clip_anatomy.report.highlight import highlight_uri, limits_of
from clip_anatomy.report.html import data_uri, encoded, page
from clip_anatomy.report.search_pictures import ResultPicture
from clip_anatomy.retrieval.automatic_heads import ChosenHead
from clip_anatomy.retrieval.hits import Hit
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.retrieval.text_table import decimals, signed

__all__ = ["search_page"]

DRAWING = 96  # pictures up to this side are shown with square pixels
LISTED = 40  # heads of one result
COLOURED = 10  # heads with a colour of their own; the rest are grey


def search_page(ranking: Ranking, query: Sequence[ResultPicture], results: Sequence[ResultPicture]) -> str:
    """Return the page as one string.

    Args:
        ranking: the result of the search.
        query: pictures that were asked for.
        results: pictures that were found, in the order of the hits.
    """
    maps = any(one.patches is not None for one in (*query, *results))
    order = ranking.head_order()
    colours = {at: _colour(place) for place, at in enumerate(order)}
    return page(
        "search.html",
        kind="search",
        script="search.js",
        title=ranking.title,
        ranking=ranking,
        reading=_reading(ranking, maps=maps),
        maps=maps,
        query=_frames(query),
        heads=[_head(ranking.heads[at], colours[at]) for at in order],
        coloured=COLOURED,
        results=[
            {"hit": one["shown"].hit, **one, **_shares(ranking, one["shown"].hit, order, colours)}
            for one in _frames(results)
        ],
    )


def _frames(pictures: Sequence[ResultPicture]) -> list[dict[str, Any]]:
    """Draw pictures with the shade over them: each is lit by its own best patch."""
    limits = limits_of(*(one.patches for one in pictures))
    return [
        {
            "shown": one,
            "picture": None if one.image is None else data_uri(encoded(one.image, 84, lossless=DRAWING)),
            "drawn": one.image is not None and max(one.image.size) <= DRAWING,
            "shade": None if one.patches is None else highlight_uri(one.patches, limit),
        }
        for one, limit in zip(pictures, limits, strict=True)
    ]


def _head(one: ChosenHead, colour: str) -> dict[str, str]:
    role, _, text = one.meaning.partition(": ")
    why = one.why.removeprefix(f"{role}, ") if role else one.why
    return {"name": one.name, "role": role, "text": text, "why": why, "colour": colour}


def _shares(ranking: Ranking, hit: Hit, order: Sequence[int], colours: dict[int, str]) -> dict[str, Any]:
    """Tell what each head adds to one score: the largest as a list, those that speak for it as a bar."""
    # The whole width is the largest sum of positive shares on the page, so that bars can be compared.
    whole = max(sum(max(share, 0.0) for share in one.shares) for one in ranking.hits)
    largest = ranking.strongest(hit, LISTED)
    bar = [(colours[at], 100 * hit.shares[at] / whole) for at in order if hit.shares[at] > 0] if largest else []
    return {
        "score": decimals(hit.score),
        "shares": [(one, signed(share), colours[at]) for one, share, at in largest],
        "bar": bar,
        "reason": ranking.reason(hit),
    }


def _colour(place: int) -> str:
    """Return the colour of the head that comes at this place in the order of a page, as a style."""
    return f"--hue:{25 + 360 * place / COLOURED:.0f}" if place < COLOURED else "--strength:0"


def _reading(ranking: Ranking, *, maps: bool) -> list[str]:
    """Tell how to read a page of results, a sentence or two an entry."""
    sentences = [
        "The score is the cosine between what was asked for and what the compared parts wrote: 1 is the same, 0 no more alike "
        "than two pictures by chance."
        if ranking.query.measure == "cosine" and ranking.query.mode == "heads"
        else "The score is a cosine."
        if ranking.query.measure == "cosine"
        else "The score is an inner product: the part of the cosine that the compared heads contribute"
        + (", above that of an average image." if ranking.query.mode == "heads" else ".")
    ]
    if ranking.shared_texts or any(hit.shared_texts for hit in ranking.hits):
        sentences.append(
            "The words are the texts that stand out most, against all images, for both what was asked for and the result: what "
            "the model, not a person, would say that they share. No words: no text stands out for both."
        )
    if ranking.query.mode == "heads":
        sentences.append(
            "The bar shows what each head adds to the score, in the colours of the list of heads; shares add up to it exactly."
        )
    if maps:
        sentences.append(
            "Patches that made a picture match are lit, those without a part in it lie in shade, those that spoke against it in "
            "blue. Each picture is lit by its own best patch; the score says how much that was."
        )
    return sentences
