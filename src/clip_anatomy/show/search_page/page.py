"""The result page: what was asked, which heads were compared, and for each picture why it matched. One file that holds everything."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from clip_anatomy.retrieval.ranking import Hit, Ranking
from clip_anatomy.show.palette import data_uri, limit_of
from clip_anatomy.show.search_page.gather import Shown

__all__ = ["search_page"]

FOLDER = Path(__file__).parent
TOLD = 3  # heads named under a picture
LISTED = 24
DRAWN = 96  # pictures up to this side are shown with square pixels
SCRIPT = "document.getElementById('maps')?.addEventListener('change', e => document.body.classList.toggle('plain', !e.target.checked))"


def search_page(ranking: Ranking, query: Sequence[Shown], found: Sequence[Shown], *, unlike: int = 0) -> str:
    """The page as one string.

    Args:
        ranking: what was found.
        query: pictures that were asked for; the last `unlike` of them are to be unlike.
        found: pictures that were found, in the order of the hits.
        unlike: see `query`.
    """
    maps = [one.patches for one in found if one.patches is not None]
    limit = limit_of(*maps) if maps else None
    asked = "".join(
        f"<figure{' class=less' if place >= len(query) - unlike else ''}>{_frame(one, None)}<figcaption>{escape(one.name)}</figcaption></figure>"
        for place, one in enumerate(query)
    )
    cards = "".join(_card(ranking, one, limit) for one in found)
    tools = (
        '<label><input type="checkbox" id="maps" checked> Show which patches made it match</label><span class="scale">against <b></b> for</span>'
        if maps
        else ""
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in ranking.notes)
    empty = "" if found else "<p>Nothing was found.</p>"
    body = f"""<header><div class="said"><h1>Like {escape(ranking.query)}</h1><p>{escape(_how(ranking))}</p>{_heads(ranking)}{notes}</div>
<div class="asked">{asked}</div></header>
<main><div class="tools"><span class="soft">{_count(ranking)}</span>{tools}</div>{empty}<ol class="grid" start="{ranking.offset + 1}">{cards}</ol></main>
<footer><h2>How to read this</h2>{_reading(ranking, bool(maps))}</footer>"""
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="clip-anatomy"><title>Like {escape(ranking.query)}</title><link rel="icon" href="data:,"><style>{style}</style>
<body>{body}<script>{SCRIPT}</script></body></html>
"""


def _how(ranking: Ranking) -> str:
    along = f", only along the directions in which texts about {ranking.focus} differ" if ranking.focus else ""
    what = {
        "heads": "Compared in what these heads of the model see, and in nothing else",
        "whole": "Compared by the whole embedding",
        "without": "Compared by the embedding with these heads set to their mean, so that what they see does not count",
    }
    return f"{what[ranking.mode]}{along}."


def _count(ranking: Ranking) -> str:
    among = (
        f"{ranking.matched:,} of {ranking.images:,} images that satisfy {escape(ranking.where)}"
        if ranking.where
        else f"{ranking.images:,} images"
    )
    first, last = ranking.offset + 1, ranking.offset + len(ranking.hits)
    kind = "" if ranking.exact else ", approximate"
    return f"{first}–{last} of {among}{kind}, {1e3 * ranking.seconds:.0f} ms" if ranking.hits else f"none of {among}"


def _hue(place: int, count: int) -> str:
    return f"--hue:{(25 + 360 * place / max(count, 1)) % 360:.0f}"


def _heads(ranking: Ranking) -> str:
    count = len(ranking.heads)
    rows = "".join(
        f'<li><i class="h" style="{_hue(place, count)}"></i><b>{one.name}</b> {escape(one.why)}</li>'
        for place, one in enumerate(ranking.heads[:LISTED])
    )
    more = f"<li>and {count - LISTED} more</li>" if count > LISTED else ""
    return f'<ul class="heads">{rows}{more}</ul>' if count else ""


def _card(ranking: Ranking, one: Shown, limit: float | None) -> str:
    hit = one.hit
    assert hit is not None
    label = " · ".join(escape(text) for text in (hit.row.label, hit.row.group) if text)
    copies = (
        f'<div class="name" title="{escape(", ".join(hit.copies))}">and {len(hit.copies)} equal files</div>'
        if hit.copies
        else ""
    )
    return f"""<li id="r{hit.rank}">{_frame(one, limit)}<div class="text"><div class="top"><b>{hit.rank}</b><span class="num">{_number(hit.score)}</span></div>
{f"<div>{label}</div>" if label else ""}<div class="name">{escape(hit.row.id)}</div>{copies}{_shares(ranking, hit)}</div></li>"""


def _shares(ranking: Ranking, hit: Hit) -> str:
    if ranking.mode != "heads":
        return ""
    count = len(ranking.heads)
    order = sorted(range(count), key=lambda at: -abs(hit.shares[at]))
    positive = sum(max(share, 0.0) for share in hit.shares)
    bar = "".join(
        f'<i class="h" style="{_hue(at, count)};width:{100 * hit.shares[at] / positive:.1f}%"></i>'
        for at in order
        if hit.shares[at] > 0 and positive > 0
    )
    rows = "".join(
        f'<li><span class="num">{_number(hit.shares[at], sign=True)}</span><i class="h" style="{_hue(at, count)}"></i>{ranking.heads[at].name} '
        f"{escape(ranking.heads[at].why.split(',')[0][:22])}</li>"
        for at in order[:TOLD]
    )
    told = escape(ranking.told(hit, count if count <= LISTED else LISTED))
    return f'<div class="bar" role="img" title="{told}" aria-label="{told}">{bar}</div><ul class="why">{rows}</ul>'


def _number(value: float, *, sign: bool = False) -> str:
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def _frame(one: Shown, limit: float | None) -> str:
    if one.image is None:
        return f'<div class="frame"><div class="gone">no picture: {escape(one.missing)}</div></div>'
    drawn = " class=drawn" if max(one.image.size) <= DRAWN else ""
    picture = f'<img{drawn} src="{_uri(one.image)}" alt="{escape(one.name)}">'
    over = (
        "" if limit is None or one.patches is None else f'<img class="map" src="{data_uri(one.patches, limit)}" alt="">'
    )
    focus = ' tabindex="0" title="point at it to see the picture alone"' if over else ""
    return f'<div class="frame"{focus}>{picture}{over}</div>'


def _uri(image: Image.Image) -> str:
    file = BytesIO()
    if max(image.size) <= DRAWN:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=84, optimize=True)
    kind = "png" if max(image.size) <= DRAWN else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _reading(ranking: Ranking, maps: bool) -> str:
    score = (
        "The score is the cosine between what was asked and what the compared parts wrote: 1 is the same, 0 is no more alike than two pictures by chance."
        if ranking.measure == "cosine" and ranking.centred
        else "The score is a cosine."
        if ranking.measure == "cosine"
        else "The score is an inner product: the part of the cosine that the compared heads contribute, above that of an average image."
        if ranking.centred
        else "The score is an inner product: the part of the cosine that the compared heads contribute."
    )
    heads = (
        " The bar and the numbers under a picture are what each head adds to its score; they add up to it exactly."
        if ranking.mode == "heads"
        else ""
    )
    where = (
        " Orange patches of a picture add to its score, blue ones take from it; all pictures share one scale. Where means are taken away, an average "
        "image's share is taken from every patch alike."
        if maps
        else ""
    )
    return f"<p>{score}{heads}{where}</p><p>{escape(ranking.model)}, {escape(ranking.store)}</p>"
