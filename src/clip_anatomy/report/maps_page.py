"""The pages of maps and of masks: every picture, method and text, layers on a slider, words of a sentence. One file that holds everything."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int16
from markupsafe import Markup
from numpy import ndarray
from PIL import Image

from clip_anatomy.loading.typed_texts import TypedText
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_set import MapSet
from clip_anatomy.maps.registry import METHODS, RESNET
from clip_anatomy.maps.thresholds import UNSEEN
from clip_anatomy.maps.word_weights import WordWeights
from clip_anatomy.report.contact_sheet import Cell, fitted
from clip_anatomy.report.html import data_uri, encoded, fragment, page
from clip_anatomy.report.map_overlay import ShadedSet, Shades, colour_range, colours_of
from clip_anatomy.report.shown_picture import ShownPicture

__all__ = ["maps_page", "maps_section", "masks_page", "masks_section"]

SIDE = 448  # pixels of a mask's drawings on the page


def maps_page(title: str, sections: Sequence[Markup], colours: str, **around: Any) -> str:
    """Return the page of `heatmap`.

    Args:
        title: the headline.
        sections: from `maps_section`, made one by one so that no picture need be kept.
        colours: "signed" or "heat".
        **around: notes; failed, (name, error) of pictures that could not be read; facts, (name, value) of what is needed to make
            the maps again.
    """
    return page(
        "maps.html", kind=f"maps {colours}", script="maps.js", title=title, sections=sections, look=colours, **around
    )


def masks_page(
    title: str,
    sections: Sequence[Markup],
    typed: Sequence[TypedText],
    colours: Sequence[tuple[int, int, int]],
    **around: Any,
) -> str:
    """Return the page of `segment`.

    Args:
        title: the headline.
        sections: from `masks_section`.
        typed: the texts.
        colours: of their masks.
        **around: as for `maps_page`.
    """
    swatches = list(zip(typed, colours, strict=True))
    return page(
        "masks.html", kind="maps", script="", title=title, sections=sections, swatches=swatches, checks=None, **around
    )


def maps_section(picture: ShownPicture, maps: MapSet, colours: str, shaded: ShadedSet | None = None) -> Markup:
    """Return all maps of one picture.

    Args:
        picture: as figures show it.
        maps: of this picture alone.
        colours: "signed" or "heat".
        shaded: the same on the scale of all pictures; by default on one of its own.
    """
    first, shaded = maps.first, shaded or ShadedSet.of(maps)
    blocks = [_block(one, shades, colours) for one, shades in zip(maps.methods, shaded.methods, strict=True)]
    weights = maps.weights or (None,) * len(first.texts)
    each = zip(first.texts, maps.words, shaded.words, weights, strict=False)
    word_blocks = [_words(text, one, shades, colours, weighed) for text, one, shades, weighed in each]
    patches = tuple(first.values.shape[2:])
    layers = _layers(shaded, colours) if shaded.layers else []
    return fragment("maps_section.html", "maps_section", picture, patches, blocks, word_blocks, layers)


def masks_section(labels: Int16[ndarray, "row col"], label: str, cells: Sequence[Cell]) -> Markup:
    """Return the masks of one picture.

    Args:
        labels: of its pixels; see `Masks`.
        label: its name.
        cells: its drawings, as on the contact sheet.
    """
    drawings = [(fitted(cell.image, SIDE, enlarge=False).convert("RGB"), cell.caption) for cell in cells]
    figures = [(data_uri(encoded(image, 86, lossless=0)), image.size, caption) for image, caption in drawings]
    unseen = float((labels == UNSEEN).mean())
    return fragment("maps_section.html", "masks_section", label, labels.shape, unseen, figures)


def _uri(shades: Shades, text: int, colours: str) -> str:
    values = shades.maps.values[0, text].cpu()
    return data_uri(encoded(Image.fromarray(colours_of(values, shades.limits[text], colours, shades.ends[text]))))


def _figures(maps: Maps, shades: Shades, colours: str) -> list[dict[str, Any]]:
    """Draw a figure for each text, coloured about the zero of the shades, with the numbers of the maps as the terminal and JSON have them."""
    return [
        {"text": row["text"], "map": _uri(shades, k, colours), "low": row["lowest"], "high": row["highest"], "sum": float(maps.values[0, k].sum()), "empty": shades.says_nothing(k)}
        for k, row in enumerate(maps.numbers())
    ]  # fmt: skip


def _block(maps: Maps, shades: Shades, colours: str) -> dict[str, Any]:
    known = (RESNET | METHODS).get(maps.method)
    description = "" if known is None else known.description
    return {
        "method": maps.method,
        "about": description,
        "subtracted": maps.subtracted,
        "scale": colour_range(shades, 0, colours),
        "zero": shades.zero,
        "figures": _figures(maps, shades, colours),
    }


def _words(text: str, maps: Maps, shades: Shades, colours: str, weighed: WordWeights | None) -> dict[str, Any]:
    """Draw one sentence: each word with its share of the cosine over all patches, and the maps of sentence, words and rest."""
    shares = maps.values[0, 1:-1].sum((1, 2))
    limit = max(float(shares.abs().max()), 1e-12) if len(shares) else 1.0
    names = [name.rsplit(" (", 1)[0] if name.endswith(")") else name for name in maps.texts[1:-1]]
    marked = [(word, share, 75 * abs(share) / limit) for word, share in zip(names, shares.tolist(), strict=True)]
    figures = _figures(maps, shades, colours)
    figures[0]["text"] = "the whole text"
    scales = [colour_range(shades, at, colours) for at in (0, min(1, len(figures) - 1))]
    hangs = [] if weighed is None else list(zip(names, weighed.values[0].tolist(), strict=True))
    return {"text": text, "words": marked, "figures": figures, "scales": scales, "weights": hangs}


def _layers(shaded: ShadedSet, colours: str) -> list[dict[str, Any]]:
    """Draw a figure for each text of the single layers, and of their sums: one map a layer."""
    return [
        {
            "text": text,
            "of": f"{title}, {colour_range(each[0], k, colours)}",
            "maps": [_uri(one, k, colours) for one in each],
        }
        for title, each in (("this layer", shaded.layers), ("up to this layer", shaded.sums))
        for k, text in enumerate(each[0].maps.texts)
    ]
