"""The page of maps: every picture, method and text, layers on a slider, words of a sentence. One file that holds everything."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.registry import METHODS
from clip_anatomy.report.layer_film import layer_shades
from clip_anatomy.report.map_gather import Seen
from clip_anatomy.report.map_overlay import Shades, colours_of, shades_of
from clip_anatomy.report.shown_picture import TINY, Picture
from clip_anatomy.report.typed_texts import shorten
from clip_anatomy.split.explanation import signed

__all__ = ["Story", "document", "frame", "maps_page", "section"]

FOLDER = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Story:
    """What the page says around its pictures.

    Attributes:
        title: the headline.
        notes: what a reader must know before believing a map.
        failed: name and error of pictures that could not be read.
        facts: name and value of what is needed to make the maps again.
        look: "signed" or "heat".
    """

    title: str
    notes: Sequence[str]
    failed: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    look: str


def maps_page(story: Story, sections: Sequence[str]) -> str:
    """The page as one string; `sections` are made by `section`, so that no picture need be kept."""
    if story.look == "signed":
        scale = '<span class="scale">less <b></b> more</span>'
        how = (
            "Orange: this place speaks for the text. Blue: against it. For shares and differences the middle of the scale is 0; for "
            "cosines of patches, and differences of them, whose level means little, it is the picture’s mean. One scale for all texts of a picture and method."
        )
    else:
        scale = '<span class="scale heat">lowest <b></b> highest</span>'
        how = (
            "Each map runs from its own lowest to its own highest value: maps of different texts are not on one scale."
        )
    lead = f"""<p>{how}</p><div class="tools"><label><input type="checkbox" id="maps" checked> Show the maps</label>{scale}
<span class="soft">Point at a picture to see it alone.</span></div>"""
    return document(story, lead, sections)


def document(story: Story, lead: str, sections: Sequence[str]) -> str:
    """A whole page around sections: headline, notes, what could not be read, how it was made."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in story.notes)
    bad = "".join(f'<p class="note">not read: {escape(error)}</p>' for _, error in story.failed)
    facts = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in story.facts)
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("maps.css", "maps.js"))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="clip-anatomy"><title>{escape(story.title)}</title><link rel="icon" href="data:,"><style>{style}</style>
<body class="{story.look}"><header><h1>{escape(story.title)}</h1>{notes}{bad}{lead}</header>
<main>{"".join(sections)}</main><footer><h2>How this was made</h2><table>{facts}</table></footer><script>{script}</script></body></html>
"""


def section(seen: Seen, look: str) -> str:
    """All maps of one picture."""
    picture = seen.picture
    one = next(iter(seen.maps.values()))
    rows, cols = one.values.shape[2:]
    cut = " Faded: cut off, the model never sees it." if picture.cropped else ""
    alone = f"<figure>{frame(picture, '')}<figcaption>the picture</figcaption></figure>"
    blocks = "".join(_block(picture, maps, look, alone if i == 0 else "") for i, maps in enumerate(seen.maps.values()))
    words = "".join(_word_block(picture, text, maps, look) for text, maps in zip(one.texts, seen.words, strict=False))
    return f"""<section><h2>{escape(Path(picture.label).name or picture.label)}</h2>
<p class="soft">{picture.size[0]} × {picture.size[1]} pixels, read as {rows} × {cols} patches.{cut}</p>
{blocks}{words}{_layer_block(picture, seen, look) if seen.layers else ""}</section>"""


def frame(picture: Picture, drawn: str) -> str:
    """A picture, what lies over it, and a veil where the model did not look."""
    kind = "drawn " if max(picture.size) <= TINY else ""
    canvas, seen = picture.canvas, picture.seen
    high, wide = canvas.bottom - canvas.top, canvas.right - canvas.left
    veils = "".join(
        f'<i class="veil" style="{_place(canvas, box)}"></i>'
        for box in (
            (canvas.top, canvas.left, seen.top, canvas.right),
            (seen.bottom, canvas.left, canvas.bottom, canvas.right),
            (seen.top, canvas.left, seen.bottom, seen.left),
            (seen.top, seen.right, seen.bottom, canvas.right),
        )
        if box[2] - box[0] > 0.5 and box[3] - box[1] > 0.5
    )
    reach = ' tabindex="0"' if drawn else ""
    return (
        f'<div class="frame{" over" if drawn else ""}"{reach} style="aspect-ratio:{wide:.2f}/{high:.2f}"><img class="{kind}picture" '
        f'src="{picture.data_uri()}" alt="{escape(picture.label)}" style="{_place(canvas, picture.view)}">{drawn}{veils}</div>'
    )


def over(
    picture: Picture, values: Tensor, limit: float, look: str, layer: int | None = None, *, now: bool = False
) -> str:
    """A map as an image that lies over its picture; with its layer where a slider chooses among several."""
    file = BytesIO()
    Image.fromarray(colours_of(values.cpu(), limit, look)).save(file, "PNG", optimize=True)
    address = base64.b64encode(file.getvalue()).decode()
    place = _place(picture.canvas, picture.seen)
    of = "" if layer is None else f' data-layer="{layer}"'
    return f'<img class="map{" now" if now else ""}"{of} src="data:image/png;base64,{address}" alt="" style="{place}">'


def _place(canvas: Sequence[float], box: Sequence[float]) -> str:
    high, wide = canvas[2] - canvas[0], canvas[3] - canvas[1]
    return (
        f"top:{100 * (box[0] - canvas[0]) / high:.3f}%;left:{100 * (box[1] - canvas[1]) / wide:.3f}%;"
        f"height:{100 * (box[2] - box[0]) / high:.3f}%;width:{100 * (box[3] - box[1]) / wide:.3f}%"
    )


def _block(picture: Picture, maps: Maps, look: str, before: str) -> str:
    shades = shades_of(maps)
    told = METHODS[maps.method].told if maps.method in METHODS else ""
    figures = "".join(_figure(picture, shades, k, text, look) for k, text in enumerate(maps.texts))
    return f"<h3>{escape(maps.method)}</h3><p class='soft'>{escape(told)}</p><div class='row'>{before}{figures}</div>"


def _figure(picture: Picture, shades: Shades, text: int, words: str, look: str, *, share: bool = False) -> str:
    values = shades.maps.values[0, text]
    drawn = over(picture, values, shades.limits[text], look)
    low, high = float(values.min()), float(values.max())
    numbers = f"{signed(float(values.sum()))} in all" if share else f"{signed(low)} to {signed(high)}"
    return (
        f"<figure>{frame(picture, drawn)}<figcaption><bdi dir='auto'>{escape(shorten(words))}</bdi><br>"
        f"<span class='soft num'>{numbers}</span></figcaption></figure>"
    )


def _word_block(picture: Picture, text: str, maps: Maps, look: str) -> str:
    shades = shades_of(maps)
    names = ["the whole text", *maps.texts[1:]]
    figures = "".join(_figure(picture, shades, k, word, look, share=True) for k, word in enumerate(names))
    return f"""<h3>Word by word: <bdi dir="auto">{escape(shorten(text))}</bdi></h3><p class="words" dir="auto">{_marked(maps)}</p>
<p class="soft">The text tower’s own split: what each word wrote into the text’s embedding, met with what each patch wrote into the picture’s.
A word’s colour, and the number below its map, is its share of the cosine over all patches. The maps of the words and of
the rest (marks, MLPs, biases of the text tower) add up to the map of the sentence. Words share one scale, sentence and rest another.</p>
<div class="row">{figures}</div>"""


def _marked(maps: Maps) -> str:
    """The sentence with each word in the colour of its share of the cosine."""
    shares = maps.values[0, 1:-1].sum((1, 2))
    limit = max(float(shares.abs().max()), 1e-12) if len(shares) else 1.0
    words = [name.rsplit(" (", 1)[0] if name.endswith(")") else name for name in maps.texts[1:-1]]
    return " ".join(
        f'<span style="background:color-mix(in srgb, var({"--yes" if share > 0 else "--no"}) {75 * abs(float(share)) / limit:.0f}%, transparent)" '
        f'title="{signed(float(share))}">{escape(word)}</span>'
        for word, share in zip(words, shares, strict=True)
    )


def _layer_block(picture: Picture, seen: Seen, look: str) -> str:
    alone, sums = layer_shades(seen.layers)
    last = len(alone) - 1
    figures = ""
    for told, each in (("this layer", alone), ("all layers up to here", sums)):
        for k, text in enumerate(each[0].maps.texts):
            drawn = "".join(
                over(picture, one.maps.values[0, k], one.limits[k], look, i, now=i == last)
                for i, one in enumerate(each)
            )
            said = f"<bdi dir='auto'>{escape(shorten(text))}</bdi><br><span class='soft'>{told}</span>"
            figures += f"<figure>{frame(picture, drawn)}<figcaption>{said}</figcaption></figure>"
    return f"""<div class="layers"><h3>Layer by layer</h3><p class="soft">What the heads of each layer read from every patch; one scale for all layers, another for all sums.</p>
<div class="slider" hidden><input type="range" min="0" max="{last}" value="{last}" aria-label="layer"><output></output></div><div class="row">{figures}</div></div>"""
