"""One self-contained HTML page: plain words first, every number behind them, no network, no script needed to read it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from torch import Tensor

from clip_anatomy.report.palette import data_uri, ends_of, limit_of
from clip_anatomy.report.shown_picture import TINY, Picture
from clip_anatomy.report.typed_texts import Question
from clip_anatomy.split.explanation import Answer, Voice, loudest_region, signed, sink, summands

PAGE = Path(__file__).parent / "assets"
OPEN_CARDS = 2  # the best texts of each picture are unfolded
LOUDEST = 5


@dataclass(frozen=True)
class Answered:
    """One picture and what it answered."""

    picture: Picture
    answer: Answer
    caption: str = ""


@dataclass(frozen=True)
class Story:
    """All that a report tells.

    Attributes:
        title: the headline.
        answered: the pictures that could be read.
        questions: the texts asked.
        facts: name and value of everything needed to make the report again.
        notes: what a reader must know before believing a number.
        failed: name and error of pictures that could not be read.
    """

    title: str
    answered: Sequence[Answered]
    questions: Sequence[Question]
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()
    failed: Sequence[tuple[str, str]] = field(default=())


def render(story: Story) -> str:
    """The page as one string."""
    several = len(story.questions) > 1
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="clip-anatomy"><title>{escape(story.title)}</title>
<style>{(PAGE / "explain.css").read_text(encoding="utf-8")}</style>
<body>
{_views(several)}
<header><h1>{escape(story.title)}</h1>
<p>CLIP compares a picture with a text and gives one number, the <b>cosine</b>: the higher, the better the two match. This page
takes that number apart. Every part of the model, and every patch of the picture, gets the share that it <b class="yes">added
(orange: yes)</b> or <b class="no">took away (blue: no)</b>. The shares add up to the cosine exactly; nothing is estimated.</p>
{"".join(_note(note) for note in _all_notes(story))}</header>
{_switch() if several else ""}
<main>{"".join(_image(each, story.questions) for each in story.answered)}</main>
{_footer(story)}
<div id="tip" role="status"></div>
<script>{(PAGE / "explain.js").read_text(encoding="utf-8")}</script>
</body></html>
"""


def _views(several: bool) -> str:
    alone, versus = ("", " checked") if several else (" checked", "")
    return (
        f'<input class="view" type="radio" name="view" id="see-versus"{versus}>'
        f'<input class="view" type="radio" name="view" id="see-alone"{alone}>'
    )


def _switch() -> str:
    return """<nav class="switch"><div><span class="soft">Show each text</span>
<label for="see-versus">against the other texts</label><label for="see-alone">alone</label>
<small class="soft">Alone, all texts light up much the same places: any text shares a background with any other. Minus the mean of the
other texts, what speaks for this one is left.</small></div></nav>"""


def _all_notes(story: Story) -> list[str]:
    notes = list(story.notes)
    notes += [f"“{question.short}”: {note}" for question in story.questions for note in question.notes]
    if len(story.questions) == 1:
        notes.append(
            "Only one text was given, so there is nothing to compare it with: give two or more to see which one wins."
        )
    notes += [f"Not read: {name}: {error}" for name, error in story.failed]
    return notes


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _image(each: Answered, questions: Sequence[Question]) -> str:
    picture, found = each.picture, each.answer
    order = found.cosine.argsort(descending=True).tolist()
    rows = "".join(
        f"<tr><td>{_words(questions[k])}</td>{_share(found, k)}<td class='num'>{signed(float(found.cosine[k]))}</td></tr>"
        for k in order
    )
    share = "<th>share among these texts</th><th></th>" if len(questions) > 1 else ""
    cards = "".join(_card(each, k, questions, unfolded=place < OPEN_CARDS) for place, k in enumerate(order))
    rows_, cols = found.patches.shape[:2]
    seen = " Bright: the part that the model sees." if picture.cropped else ""
    return f"""<section class="image" style="--picture:url({picture.data_uri()})"><div class="top">
<figure>{_frame(picture, "")}<figcaption>{picture.size[0]} × {picture.size[1]} pixels, read as {rows_} × {cols} patches.{seen}</figcaption></figure>
<div><h2>{escape(Path(picture.label).name or picture.label)}</h2>
{f"<p class='soft'>{escape(each.caption)}</p>" if each.caption else ""}
<table class="ranking"><tr><th>text</th>{share}<th class="num">cosine</th></tr>{rows}</table>{_sink_note(found)}</div></div>
{cards}</section>"""


def _sink_note(found: Answer) -> str:
    at = sink(found)
    if at is None:
        return ""
    row, col, share = at
    return _note(
        f"The patch at row {row}, col {col} holds at least {share:.0%} of the map of every text. Such a patch is usually not a place "
        "that speaks for a text: models use patches without content to store things about the whole picture."
    )


def _share(found: Answer, text: int) -> str:
    if len(found.cosine) < 2:
        return ""
    share = float(found.probability[text])
    return (
        f'<td class="share"><span><i style="width:{share * 100:.1f}%"></i></span></td>'
        f'<td class="num">{share * 100:.1f} %</td>'
    )


def _words(question: Question) -> str:
    return f'<bdi dir="auto">{escape(question.short)}</bdi>'


def _card(each: Answered, text: int, questions: Sequence[Question], *, unfolded: bool) -> str:
    found = each.answer
    views = [("alone", found)] if len(questions) < 2 else [("versus", found.contrast()), ("alone", found)]
    share = f" · {float(found.probability[text]) * 100:.1f} %" if len(questions) > 1 else ""
    return f"""<details class="card"{" open" if unfolded else ""}><summary><b>{_words(questions[text])}</b>
<span class="num soft">cosine {signed(float(found.cosine[text]))}{share}</span></summary><div class="body">
{"".join(_view(name, each.picture, view, text) for name, view in views)}</div></details>"""


def _view(name: str, picture: Picture, found: Answer, text: int) -> str:
    limit = limit_of(found.patches)
    no, yes = ends_of(found.patches, limit)
    overlay = _grid_image(found.patches[..., text], limit, "patch", _place(picture))
    return f"""<div class="{name}"><p>{_sentence(found, text)}</p><div class="panels">
<div><h3>Where in the picture</h3><figure>{_frame(picture, overlay)}
<div class="scale"><span class="no num">{no}</span><i></i><span class="yes num">{yes}</span></div>
<figcaption>One scale for all texts of this picture. Point at a patch for its number, press to see the picture beneath.</figcaption></figure></div>
<div><h3>Which layers and heads of the model</h3>{_stack(found, text)}
{_sums(found, text)}</div><div>{_voices(found, text)}</div></div></div>"""


def _sentence(found: Answer, text: int) -> str:
    """What happened, in words."""
    voices = found.voices(text)
    loudest = max(voices, key=lambda v: abs(v.value))
    cosine = f"<span class='num'>{signed(float(found.cosine[text]))}</span>"
    if found.against is None:
        begin = f"The picture and this text match with a cosine of {cosine}."
    else:
        better = "better" if float(found.cosine[text]) >= 0 else "worse"
        begin = f"This text fits {better} than the others on average, by {cosine}."
    where, share = loudest_region(found.patches[..., text])
    says = "yes" if loudest.value >= 0 else "no"
    return (
        f"{begin} The loudest single voice is {loudest.name}, which says {says} ({_value(loudest.value)}). "
        f"Of all the patches’ yes, {share:.0%} comes from the {where} of the picture."
    )


def _voices(found: Answer, text: int) -> str:
    voices, places = found.voices(text), found.places(text)
    yes = [v for v in voices[:LOUDEST] if v.value > 0]
    no = [v for v in voices[::-1][:LOUDEST] if v.value < 0]
    ends = [v for v in (*places[:2], *places[:-3:-1]) if v.value]
    return f"<h3>Loudest yes</h3>{_list(yes)}<h3>Loudest no</h3>{_list(no)}<h3>Loudest patches</h3>{_list(ends)}"


def _sums(found: Answer, text: int) -> str:
    total = "cosine" if found.against is None else "difference of the cosines"
    rows = "".join(
        f"<tr><td>{name}</td><td class='num'>{_value(value)}</td></tr>" for name, value in summands(found, text)
    )
    last = f"<tr class='total'><td>{total}</td><td class='num'>{_value(float(found.cosine[text]))}</td></tr>"
    return f"<h3 class='sums'>What adds up</h3><table class='voices'>{rows}{last}</table>"


def _list(voices: list[Voice]) -> str:
    rows = "".join(f"<tr><td>{name}</td><td class='num'>{_value(value)}</td></tr>" for name, value in voices)
    return f"<table class='voices'>{rows or '<tr><td>none</td></tr>'}</table>"


def _value(value: float) -> str:
    return f'<span class="num {"yes" if value >= 0 else "no"}">{signed(value)}</span>'


def _frame(picture: Picture, overlay: str) -> str:
    box = picture.canvas
    ratio = (box.right - box.left) / (box.bottom - box.top)
    veil = f'<div class="seen" style="{_place(picture)}"></div>' if picture.cropped else ""
    mapped = (" mapped" if overlay else "") + (" tiny" if max(picture.shown.size) <= TINY else "")
    return (
        f'<div class="frame{mapped}" style="aspect-ratio:{ratio:.4f}">'
        f'<div class="picture" role="img" aria-label="{escape(picture.label)}" style="{_percent(picture.view, box)}"></div>'
        f"{veil}{overlay}</div>"
    )


def _place(picture: Picture) -> str:
    return _percent(picture.seen, picture.canvas)


def _percent(box: Sequence[float], canvas: Sequence[float]) -> str:
    top, left, bottom, right = box
    high, wide = canvas[2] - canvas[0], canvas[3] - canvas[1]
    return (
        f"top:{(top - canvas[0]) / high:.3%};left:{(left - canvas[1]) / wide:.3%};"
        f"height:{(bottom - top) / high:.3%};width:{(right - left) / wide:.3%}"
    )


def _grid_image(values: Tensor, limit: float, of: str, style: str = "") -> str:
    rows, cols = values.shape
    return (
        f'<img class="map" alt="" data-of="{of}" data-grid="{rows} {cols}" data-v="{_millionths(values)}" '
        f'src="{data_uri(values, limit)}"{f" style={chr(34)}{style}{chr(34)}" if style else ""}>'
    )


def _millionths(values: Tensor) -> str:
    return " ".join(str(round(v * 1e6)) for v in values.flatten().tolist())


def _stack(found: Answer, text: int) -> str:
    """Layer × head grid, and beside each of its rows what the layer's attention and MLP said."""
    layers, heads, _ = found.heads.shape
    limit = limit_of(found.heads)
    by_layer = found.layers(text)
    edge = max(float(found.layers(k).abs().max()) for k in range(found.cosine.shape[0])) or 1.0
    every = 1 if layers <= 16 else 2
    labels = "".join(f"<span>{layer if layer % every == 0 else ''}</span>" for layer in range(layers))
    bars = "".join(
        f'<rect class="{"a" if value >= 0 else "b"}{" m" if half else ""}" x="{min(value, 0) / edge * 50:.2f}" '
        f'y="{layer + 0.12 + 0.4 * half:.2f}" width="{abs(value) / edge * 50:.2f}" height="0.36"/>'
        for layer, pair in enumerate(by_layer.tolist())
        for half, value in enumerate(pair)
    )
    height = f"height:{max(150, min(20 * layers, 380))}px"
    return f"""<div class="stack" style="--layers:{layers};--heads:{heads}">
<div class="rows" style="{height}">{labels}</div><div class="heads" style="{height}">{_grid_image(found.heads[..., text], limit, "head")}</div>
<div class="bars" style="{height}" data-of="layer" data-grid="{2 * layers} 1" data-v="{_millionths(by_layer)}"><svg viewBox="-52 0 104 {layers}" preserveAspectRatio="none"><line x1="0" x2="0" y1="0" y2="{layers}"/>{bars}</svg></div>
<div></div><div class="under">{heads} heads a layer, layers 0 to {layers - 1} downwards; full colour ±{limit:.4f}</div>
<div class="under">full: attention, pale: MLP; longest ±{edge:.4f}</div></div>"""


def _how(story: Story) -> str:
    if story.answered and all(not len(each.answer.mlps) for each in story.answered):
        return """<p>A CLIP-ResNet pools its places by one attention layer: the mean of all places asks, every head answers with one vector,
and their sum is the picture’s embedding. Each of them can be compared with the text on its own:</p>
<div class="formula">cosine = Σ<sub>head</sub> Σ<sub>place</sub> head’s share + biases</div>"""
    return """<p>A vision transformer keeps one running sum for its summary token. Every attention head and every MLP adds one vector to it; the final
sum, normalised and projected, is the picture’s embedding. The last normalisation is held at the value it had for this picture, so
each addition can be projected on its own and compared with the text:</p>
<div class="formula">cosine = start + Σ<sub>layer</sub> ( Σ<sub>head</sub> Σ<sub>patch</sub> head’s share + MLP’s share ) + biases</div>"""


def _footer(story: Story) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in story.facts)
    worst = max((float(e.answer.residue.abs().max()) for e in story.answered), default=0.0)
    return f"""<footer><h2>How the numbers are made</h2>
{_how(story)}
<p></p><p>A head reads from patches, weighted by its attention: that gives the map. Each share is ⟨text, part⟩ divided by the lengths of both
embeddings. Shares say what was <i>written</i> directly into the result, not what would happen if a part were removed: later parts may
have read what earlier ones wrote. The share in percent is a softmax over the given texts only: with other texts it would be another.</p>
<p>Source: Gandelsman, Efros and Steinhardt, “Interpreting CLIP’s Image Representation via Text-Based Decomposition”, ICLR 2024. Each
part is centred by its own mean (convention “centered”). Layers, heads, rows and columns are counted from 0.</p>
<dl>{facts}<dt>left over in the sums</dt><dd>at most {worst:.1e} of a cosine (float error)</dd></dl></footer>"""
