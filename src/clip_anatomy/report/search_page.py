"""The result page: what was asked beside what was found, and for each picture why it matched. One file that holds everything."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from clip_anatomy.report.highlight import limits_of
from clip_anatomy.report.search_card import COLOURED, card, colour, frame
from clip_anatomy.report.search_pictures import Shown
from clip_anatomy.report.search_wording import compared, counted, ordered, reading, standing, title
from clip_anatomy.retrieval.ranking import Ranking, Used

__all__ = ["search_page"]

FOLDER = Path(__file__).parent / "assets"
SCRIPT = "document.getElementById('maps')?.addEventListener('change', e => document.body.classList.toggle('plain', !e.target.checked))"


def search_page(ranking: Ranking, query: Sequence[Shown], found: Sequence[Shown]) -> str:
    """The page as one string.

    Args:
        ranking: what was found.
        query: pictures that were asked for.
        found: pictures that were found, in the order of the hits.
    """
    maps = any(one.patches is not None for one in (*query, *found))
    order = ordered(ranking)
    cards = "".join(
        card(ranking, one, limit, order)
        for one, limit in zip(found, limits_of(*(one.patches for one in found)), strict=True)
    )
    tools = (
        '<label><input type="checkbox" id="maps" checked> Show what made it match</label>'
        '<span class="scale"><i class="lit"></i>made it match<i class="dark"></i>no part in it<i class="blue"></i>against it</span>'
        if maps
        else ""
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in ranking.notes)
    empty = "" if found else "<p>Nothing was found.</p>"
    name = escape(title(ranking))
    style = (FOLDER / "search.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="clip-anatomy"><title>{name}</title><link rel="icon" href="data:,"><style>{style}</style>
<body><header><h1>{name}</h1><p>{escape(compared(ranking))}.</p>{notes}</header>
<div class="sides"><aside>{_asked(ranking, query)}{_heads([ranking.heads[at] for at in order], ranking.mode)}</aside>
<main><div class="tools"><span class="soft">{escape(counted(ranking))}{_next(ranking)}</span>{tools}</div>{empty}
<ol class="grid" start="{ranking.offset + 1}">{cards}</ol></main></div>
<footer><h2>How to read this</h2>{"".join(f"<p>{escape(said)}</p>" for said in reading(ranking, maps=maps))}
<p>{escape(ranking.model)}, {escape(ranking.store)}</p></footer><script>{SCRIPT}</script></body></html>
"""


def _asked(ranking: Ranking, query: Sequence[Shown]) -> str:
    """What was asked for: pictures with what was looked for in them, texts, and the words nearest to it."""
    limits = limits_of(*(one.patches for one in query))
    figures = "".join(
        f"<figure{' class=less' if one.unlike else ''}>{frame(one, limit)}<figcaption>{escape(one.name)}</figcaption></figure>"
        for one, limit in zip(query, limits, strict=True)
    )
    several = " several" if len(query) > 1 else ""
    asked = "" if ranking.asked is None else "".join(f'<p class="text">“{escape(w)}”</p>' for w in ranking.asked.words)
    sought = "".join(f"<li>{escape(text)}</li>" for text in ranking.sought)
    said = f'<p class="soft">{standing(ranking)}</p><ul class="sought">{sought}</ul>' if sought else ""
    if not said and ranking.focus and query and not asked:
        said = f'<p class="soft">{standing(ranking)}: no text about {escape(ranking.focus)}</p>'
    return f'<div class="asked{several}">{figures}</div>{asked}{said}'


def _heads(heads: Sequence[Used], mode: str) -> str:
    if not heads:
        return ""
    rows = [_head(one, place) for place, one in enumerate(heads)]
    more = f"<details><summary>{len(rows) - COLOURED} more</summary><ul>{''.join(rows[COLOURED:])}</ul></details>"
    count = "One head" if len(rows) == 1 else f"{len(rows)} heads"
    count += " left out" if mode == "without" else ""
    return f'<h2>{count}</h2><div class="heads"><ul>{"".join(rows[:COLOURED])}</ul>{more if len(rows) > COLOURED else ""}</div>'


def _head(one: Used, place: int) -> str:
    role, _, text = one.meaning.partition(": ")
    why = one.why.removeprefix(f"{role}, ") if role else one.why
    words = f" “{escape(text)}”" if text else ""
    return (
        f'<li><i class="h" style="{colour(place)}"></i><b>{one.name}</b> {escape(role)}{words}'
        f"{f'<span>{escape(why)}</span>' if why else ''}</li>"
    )


def _next(ranking: Ranking) -> str:
    k, last = len(ranking.hits), ranking.offset + len(ranking.hits)
    if not k or last >= ranking.matched - 1 or ranking.offset % k:
        return ""
    return f" · for more add <code>--page {ranking.offset // k + 2}</code>"
