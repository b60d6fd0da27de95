"""The first page of an atlas: the map of all heads, roles to filter by, search, and a card for each head."""

import json
from html import escape
from typing import Any

from clip_anatomy.naming.atlas import Atlas, AtlasHead
from clip_anatomy.naming.roles import MIXED, UNNAMED
from clip_anatomy.report.atlas_html import (
    FOLDER,
    Shown,
    bar,
    document,
    kind,
    note,
    percent,
    pictures,
    pill,
    place_of,
    swatches,
    words,
)

__all__ = ["index_page"]

TEXTS = 3  # shown on a card
STRIP = 6
FAINT = 0.62  # a cell paler than this takes the page's ink, also in the dark
LETTERS = ((6, 10), (8, 7), (12, 4))  # of a role that fit into a cell of the map, by heads in a row


def index_page(shown: Shown) -> str:
    """The page as one string."""
    atlas = shown.atlas
    notes = [*atlas.notes]
    if shown.missing:
        many = f" (and {len(shown.missing) - 1} other reasons)" if len(shown.missing) > 1 else ""
        notes.append(f"Some pictures could not be shown: {shown.missing[0]}{many}")
    body = f"""{swatches(shown)}
<header><h1>What the heads of {escape(atlas.model)} are about</h1>
<p>Every attention head adds something of its own to the embedding of an image. Over {atlas.images:,} images, the {len(atlas.heads)} heads below
were each given the texts that explain most of what they add ({atlas.pool_texts:,} texts to choose from), and a role. The first
{atlas.within} texts explain {percent(atlas.explained)} of a head on average. <a href="#how">How to read this</a></p>
{"".join(note(text) for text in notes)}</header>
<main class="index"><section class="overview"><div class="sticky">{_map(shown)}{_legend(shown)}{_truth(atlas)}</div></section>
<section class="cards"><div class="tools"><input id="find" type="search" placeholder="Search all texts, e.g. {escape(_example(atlas))}"
 aria-label="Search all texts" autocomplete="off" spellcheck="false"><label>Sort <select id="sort"><option value="place">by layer</option>
<option value="sure">by sureness</option><option value="explained">by explained share</option><option value="variance">by how much it says</option></select></label>
<output id="count" aria-live="polite">{len(atlas.heads)} heads</output></div>
<div id="list">{"".join(_card(head, shown) for head in _ordered(atlas))}</div>
<p id="none" hidden>No head fits. <button type="button" id="all">Show all heads</button></p></section></main>
{_more(atlas)}{_footer(atlas)}<div id="tip" role="status"></div>
<script type="application/json" id="data">{_data(atlas)}</script>"""
    script = (FOLDER / "atlas.js").read_text(encoding="utf-8")
    return document(f"{atlas.model}: what its heads are about", body, script=script)


def _example(atlas: Atlas) -> str:
    return next((head.texts[0].text for head in atlas.heads if head.texts), "striped")


def _ordered(atlas: Atlas) -> list[AtlasHead]:
    """As on the map: the last layer, whose heads say most, first."""
    return sorted(atlas.heads, key=lambda head: (-head.layer, head.head))


def _map(shown: Shown) -> str:
    atlas = shown.atlas
    by_place = {(head.layer, head.head): head for head in atlas.heads}
    rows = "".join(
        f'<span class="side">{layer}</span>'
        + "".join(
            _cell(by_place.get((layer, head)), shown, atlas.heads_per_layer) for head in range(atlas.heads_per_layer)
        )
        for layer in reversed(atlas.layers)
    )
    last = "".join(f'<span class="under">{head}</span>' for head in range(atlas.heads_per_layer))
    return f"""<h2>Map of heads</h2><nav class="map" style="--heads:{atlas.heads_per_layer}" aria-label="Map of heads">{rows}<span></span>{last}</nav>
<p class="soft axes">Rows are layers (the last one on top), columns are heads. The paler, the less sure.</p>"""


def _cell(head: AtlasHead | None, shown: Shown, heads: int) -> str:
    if head is None:
        return "<span></span>"
    role = head.role
    first = head.texts[0].text if head.texts else "no text"
    tip = f"{head.name} · {role.name.replace('_', ' ')}{f' {percent(role.confidence)}' if role.named else ''} · {first}"
    letters = next((n for most, n in LETTERS if heads <= most), 3)
    short = words(role.name[:letters]) if role.named else ("·" if role.name == UNNAMED else "~")
    return (
        f'<a class="cell {kind(role, shown)}{" faint" if _strength(head) < FAINT else ""}" style="--sure:{_strength(head):.2f}" href="{place_of(head)}" data-head="{head.name}" '
        f'data-tip="{escape(tip)}" aria-label="{escape(tip)}">{short}</a>'
    )


def _strength(head: AtlasHead) -> float:
    """How full a cell's colour is: half at no confidence, so that the hue can still be told."""
    return 0.3 + 0.7 * min(1.0, head.role.confidence / 0.6)


def _legend(shown: Shown) -> str:
    rows = "".join(
        f'<button type="button" class="chip {f"r{shown.hues[role]}" if role in shown.hues else role}" data-role="{escape(role)}" aria-pressed="false">'
        f"<i></i>{words(role)} <small>{count}</small></button>"
        for role, count in sorted(shown.atlas.roles.items(), key=lambda one: (one[0] in (UNNAMED, MIXED), -one[1]))
    )
    return f'<div class="legend" role="group" aria-label="Filter by role">{rows}</div>'


def _truth(atlas: Atlas) -> str:
    told = atlas.agreement
    if not told:
        return ""
    asked, right = int(told["asked"]), int(told["right"])
    rate = (
        f"<b>{right} of {asked}</b> roles ({percent(right / asked)}) are the true one"
        if asked
        else "none of them is named"
    )
    mixed = int(told["mixed"])
    more = f"; {mixed} more {'is' if mixed == 1 else 'are'} called mixed" if mixed else ""
    return f"""<div class="truth"><h3>Checked against the truth</h3><p>What is in these pictures is known. {int(told["clear"])} heads are driven
by one attribute (it explains {percent(told["bar"])} or more of what they add); {rate}{more}.</p></div>"""


def _card(head: AtlasHead, shown: Shown) -> str:
    texts = "".join(
        f'<li><span class="words">{escape(text.text)}</span>{bar(text.gain, f"adds {percent(text.gain)} of the variance")}'
        f'<span class="num">{percent(text.gain)}</span></li>'
        for text in head.texts[:TEXTS]
    )
    strip = pictures(head.texts[0].most, shown, most=STRIP) if head.texts else ""
    return f"""<article class="card {kind(head.role, shown)}" id="h-{head.layer}-{head.head}" data-head="{head.name}">
<h3><a href="{place_of(head)}"><span class="soft">layer</span> {head.layer} <span class="soft">head</span> {head.head}</a>{pill(head.role, shown)}</h3>
<p class="whole">{bar(head.explained, f"its first texts explain {percent(head.explained)}; the best that as many directions could: {percent(head.ceiling)}", "wide", head.ceiling)}
<small class="soft">{percent(head.explained)} explained</small></p>
<ol>{texts}</ol><p class="hit" hidden></p><a href="{place_of(head)}" tabindex="-1" aria-hidden="true">{strip}</a></article>"""


def _more(atlas: Atlas) -> str:
    parts: list[str] = []
    if len(atlas.curve) > 1:
        rows = "".join(
            f"<tr><td class='num'>{one.texts:,}</td><td class='num'>{100 * one.explained:.2f} %</td><td>{bar(one.explained, percent(one.explained), 'wide')}</td></tr>"
            for one in atlas.curve
        )
        parts.append(
            f"""<section><h2>Growing the pool</h2><p>Texts like the best ones were added until that no longer paid.</p>
<table class="curve"><tr><th class="num">texts</th><th class="num">explained</th><th></th></tr>{rows}</table></section>"""
        )
    if atlas.cues:
        rows = "".join(
            f'<tr><td>{words(cue)}</td><td class="{said}">{escape(said)}</td><td class="soft">{escape(why)}</td></tr>'
            for cue, said, why in atlas.cues
        )
        parts.append(
            f"""<section><h2>Can it mislead?</h2><p>A language model was asked which roles can be spurious cues for
<b>{escape(atlas.task)}</b>. It has not seen the pictures: take it as a hint where to look.</p>
<table class="cues"><tr><th>role</th><th>spurious cue?</th><th>its reason</th></tr>{rows}</table></section>"""
        )
    return f'<div class="more">{"".join(parts)}</div>' if parts else ""


def _footer(atlas: Atlas) -> str:
    made = {
        "model": atlas.model,
        "weights": atlas.digest,
        "images": f"{atlas.images:,}, {atlas.store}",
        "texts": atlas.pool,
        **atlas.made,
    }
    if atlas.bill:
        made["cost"] = atlas.bill
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in made.items())
    return f"""<footer id="how"><h2>How to read this</h2>
<p><b>Texts.</b> For each head, texts are picked one after the other: always the one along which most of what is left of the head's variance
over the images lies (TextSpan, Gandelsman et al. 2024). The bar of a text is what it <i>adds</i> to those before it. The mark on a long bar is the
most that any as many directions could explain. The choice also weighs how much of a text lies in the head's space at all, so that a later text may
add more than an earlier one. Heads whose first {atlas.within} texts explain less than {percent(atlas.threshold)} are called unnamed.</p>
<p><b>Margin and stability.</b> A margin of 0 means that another text came as close as makes no difference: read the words as “something like
this”. Stability says how often the text is picked again when the images are drawn anew.</p>
<p><b>Roles.</b> A role is the property that most of this evidence speaks for, from two sides: what the picked texts are about, and how far the head tells
all texts about a property apart. If the two disagree, the confidence is halved; if no property leads, the head is called mixed. The evidence comes
first: where pictures and role do not seem to go together, trust the pictures.</p>
<p><b>Pictures.</b> Those for which the head writes most (and least) in the direction of the text. They are extremes, not typical ones.</p>
<h2>How it was made</h2><dl>{rows}</dl></footer>"""


def _data(atlas: Atlas) -> str:
    heads: list[dict[str, Any]] = [
        {
            "name": head.name,
            "role": head.role.name,
            "sure": round(head.role.confidence, 3),
            "explained": round(head.explained, 3),
            "variance": head.variance,
            "texts": [[text.text, round(text.gain, 4)] for text in head.texts],
        }
        for head in _ordered(atlas)
    ]
    # "<" could end the script element that this stands in.
    return json.dumps(heads).replace("<", "\\u003c")
