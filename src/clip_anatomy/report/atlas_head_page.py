"""The page of one head: pictures and figures first, the role that is concluded from them after."""

from html import escape

from clip_anatomy.naming.atlas import AtlasHead, AtlasText
from clip_anatomy.report.atlas_html import Shown, bar, document, percent, pictures, pill, place_of, swatches, words

__all__ = ["head_page"]

SHARES = 6
UP = "../"


def head_page(shown: Shown, at: int) -> str:
    """The page as one string.

    Args:
        shown: the atlas and its pictures.
        at: place of the head among `atlas.heads`.
    """
    heads = shown.atlas.heads
    head = heads[at]
    before = _step(heads[at - 1], "←") if at else "<span></span>"
    after = _step(heads[at + 1], "→") if at + 1 < len(heads) else "<span></span>"
    first = [text for text in head.texts if text.most]
    rest = head.texts[len(first) :]
    title = f"Layer {head.layer}, head {head.head}"
    body = f"""{swatches(shown)}
<nav class="steps">{before}<a href="{UP}index.html#{head.name}">all heads of {escape(shown.atlas.model)}</a>{after}</nav>
<header class="head"><h1>{title} {pill(head.role, shown)}</h1>
<p>{_summary(head, shown)}</p></header>
<main class="head"><section><h2>What it writes</h2>
{"".join(_evidence(text, place, shown) for place, text in enumerate(first, 1))}
{_table(rest, len(first))}</section>
<section class="verdict"><h2>What that makes it</h2>{_role(head, shown)}{_truth(head)}</section></main>"""
    script = (
        "addEventListener('keydown', (e) => { const to = { ArrowLeft: 'prev', ArrowRight: 'next' }[e.key];"
        " if (to && !e.altKey && !e.ctrlKey && !e.metaKey) document.querySelector(`a[rel=${to}]`)?.click(); });"
    )
    return document(f"{title}: {head.role.name}", body, up=UP, script=script)


def _step(head: AtlasHead, arrow: str) -> str:
    rel, label = ("prev", f"{arrow} {head.name}") if arrow == "←" else ("next", f"{head.name} {arrow}")
    return f'<a rel="{rel}" href="{UP}{place_of(head)}">{label} <span class="soft">{words(head.role.name)}</span></a>'


def _summary(head: AtlasHead, shown: Shown) -> str:
    within = min(shown.atlas.within, len(head.texts))
    if not head.texts:
        return "This head writes the same for every image: there is nothing to name."
    return (
        f"Its first {within} texts explain <b>{percent(head.explained)}</b> of what it adds to the embeddings of {shown.atlas.images:,} images; "
        f"no {within} directions could explain more than {percent(head.ceiling)}. It writes into {head.rank} dimensions."
    )


def _evidence(text: AtlasText, place: int, shown: Shown) -> str:
    return f"""<article class="pick"><h3><span class="rank">{place}</span> {escape(text.text)}{_about(text)}</h3>
<dl class="figures">{_figures(text)}</dl>
<div class="seen"><figure><figcaption>writes most</figcaption>{pictures(text.most, shown, UP)}</figure>
<figure><figcaption>writes least</figcaption>{pictures(text.least, shown, UP)}</figure></div></article>"""


def _about(text: AtlasText) -> str:
    return f' <small class="soft">{words(text.property)}</small>' if text.property else ""


def _figures(text: AtlasText) -> str:
    rows = [
        ("adds", text.gain, f"adds {percent(text.gain)} of the head's variance to the texts before it", ""),
        ("alone", text.alone, f"{percent(text.alone)} of the head's variance lies along this text", "quiet"),
        ("so far", text.cumulative, f"{percent(text.cumulative)} explained by this text and those before it", "quiet"),
        ("margin", text.margin, _margin(text), "doubt"),
    ]
    if text.again is not None:
        again = f"picked again in {percent(text.again)} of the resamples of the images"
        rows.append(("stable", text.again, again, "doubt"))
    return "".join(
        f'<dt>{name}</dt><dd title="{escape(label)}">{bar(share, label, css)}<span class="num">{percent(share)}</span></dd>'
        for name, share, label, css in rows
    )


def _margin(text: AtlasText) -> str:
    if not text.runner_up:
        return "the only text there was"
    return f"the second, “{text.runner_up}”, scored {percent(text.margin)} less"


def _table(rest: tuple[AtlasText, ...], before: int) -> str:
    if not rest:
        return ""
    rows = "".join(
        f'<tr><td class="num">{place}</td><td>{escape(text.text)}{_about(text)}</td><td class="num">{percent(text.gain)}</td>'
        f'<td class="num">{percent(text.cumulative)}</td><td class="num">{percent(text.margin)}</td>'
        f'<td class="num">{"–" if text.again is None else percent(text.again)}</td><td class="soft">{escape(text.runner_up)}</td></tr>'
        for place, text in enumerate(rest, before + 1)
    )
    return f"""<details><summary>{len(rest)} more texts</summary><div class="wide"><table class="rest"><tr><th></th><th>text</th><th class="num">adds</th>
<th class="num">so far</th><th class="num">margin</th><th class="num">stable</th><th>runner-up</th></tr>{rows}</table></div></details>"""


def _role(head: AtlasHead, shown: Shown) -> str:
    role = head.role
    shares = "".join(
        f"<tr><td>{words(name)}</td><td>{bar(share, percent(share), 'wide')}</td><td class='num'>{percent(share)}</td></tr>"
        for name, share in role.shares[:SHARES]
    )
    table = f'<table class="shares">{shares}</table>' if shares else ""
    sides = ""
    if role.by_picks or role.by_spread:
        same = "Both sides agree." if role.by_picks == role.by_spread else "The two sides do not agree."
        sides = (
            f"<p>The picked texts are about <b>{words(role.by_picks or 'nothing known')}</b>; the texts that it tells apart best are about "
            f"<b>{words(role.by_spread or 'nothing known')}</b>. {same}</p>"
        )
    said = ""
    if role.raw:
        said = (
            f"<h3>In the words of {escape(role.source)}</h3><p>{escape(role.why)}</p><details><summary>Its whole answer</summary>"
            f"<pre>{escape(role.raw)}</pre></details>"
        )
    return f"<p>{pill(role, shown)} {_sureness(head)}</p>{said}{sides}{table}"


def _sureness(head: AtlasHead) -> str:
    role = head.role
    if role.name == "unnamed":
        return "Its texts explain too little of it: better no name than a wrong one."
    if role.name == "mixed":
        return "No property leads clearly."
    return "This much of the evidence speaks for it." if role.source == "texts" else "So sure is the language model."


def _truth(head: AtlasHead) -> str:
    if not head.truth:
        return ""
    rows = "".join(
        f"<tr><td>{words(name)}</td><td>{bar(share, percent(share), 'wide true')}</td><td class='num'>{percent(share)}</td></tr>"
        for name, share in head.truth[:SHARES]
    )
    return f"""<h2>What truly drives it</h2><p>What is in these pictures is known: the share of the head's variance that each attribute explains
(attributes that go together share what they explain).</p><table class="shares">{rows}</table>"""
