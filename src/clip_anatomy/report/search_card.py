"""One result: its picture with what made it match lit, what it shares in words, its score and where that comes from."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

from clip_anatomy.report.highlight import data_uri
from clip_anatomy.report.search_pictures import Shown
from clip_anatomy.report.search_wording import number, told
from clip_anatomy.retrieval.ranking import Hit, Ranking

__all__ = ["COLOURED", "card", "colour", "frame"]

DRAWN = 96  # pictures up to this side are shown with square pixels
LISTED = 40  # heads of one result
COLOURED = 10  # heads with a colour of their own; the rest are grey


def card(ranking: Ranking, one: Shown, limit: float, order: Sequence[int]) -> str:
    """One result as a list entry.

    Args:
        ranking: what was found.
        one: a hit and its picture.
        limit: what is fully lit in it.
        order: of the heads on this page, as places in `Ranking.heads`.
    """
    hit = one.hit
    assert hit is not None
    label = " · ".join(escape(text) for text in (hit.row.label, hit.row.group) if text)
    copies = (
        f'<div class="name" title="{escape(", ".join(hit.copies))}">and {len(hit.copies)} equal files</div>'
        if hit.copies
        else ""
    )
    alike = f'<p class="alike" title="{escape("; ".join(hit.alike))}">{escape(hit.alike[0])}</p>' if hit.alike else ""
    return f"""<li id="r{hit.rank}">{frame(one, limit)}<div class="text">{alike}<div class="top"><b>{hit.rank}</b><span class="num">{number(hit.score)}</span></div>
{_shares(ranking, hit, order)}<div class="name">{label}{" · " if label else ""}{escape(hit.row.id)}</div>{copies}</div></li>"""


def _shares(ranking: Ranking, hit: Hit, order: Sequence[int]) -> str:
    shares = told(ranking, hit, LISTED)
    if not shares:
        return ""
    colours = {at: colour(place) for place, at in enumerate(order)}
    # The whole width is the largest sum of positive shares on the page, so that bars can be compared.
    whole = max(sum(max(share, 0.0) for share in one.shares) for one in ranking.hits)
    bar = "".join(
        f'<i class="h" style="{colours[at]};width:{100 * hit.shares[at] / whole:.1f}%"></i>'
        for at in order
        if hit.shares[at] > 0 and whole > 0
    )
    rows = "".join(
        f'<li><span class="num">{number(share, sign=True)}</span><i class="h" style="{colours[at]}"></i>{one.name} {escape(one.word)}</li>'
        for one, share, at in shares
    )
    said = escape(ranking.told(hit))
    most = f"{shares[0][0].name} {number(shares[0][1], sign=True)}"
    summary = most + (f" and {len(shares) - 1} more" if len(shares) > 1 else "")
    return (
        f'<div class="bar" role="img" title="{said}" aria-label="{said}">{bar}</div>'
        f'<details class="shares"><summary>{summary}</summary><ul class="why">{rows}</ul></details>'
    )


def colour(place: int) -> str:
    """The colour of the head that comes at this place in the order of a page, as a style."""
    return f"--hue:{25 + 360 * place / COLOURED:.0f}" if place < COLOURED else "--strength:0"


def frame(one: Shown, limit: float) -> str:
    """A picture, the shade over it, and the way to its file."""
    if one.image is None:
        return f'<div class="frame"><div class="gone">no picture: {escape(one.missing)}</div></div>'
    drawn = " class=drawn" if max(one.image.size) <= DRAWN else ""
    picture = f'<img{drawn} src="{_uri(one.image)}" alt="{escape(one.name)}">'
    over = "" if one.patches is None else f'<img class="map" src="{data_uri(one.patches, limit)}" alt="">'
    if one.link:
        hint = "open the original" + ("; point at it to see it whole" if over else "")
        return f'<a class="frame" href="{escape(one.link)}" title="{hint}">{picture}{over}</a>'
    focus = ' tabindex="0" title="point at it to see it whole"' if over else ""
    return f'<div class="frame"{focus}>{picture}{over}</div>'


def _uri(image: Image.Image) -> str:
    small = max(image.size) <= DRAWN
    file = BytesIO()
    if small:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=84, optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
