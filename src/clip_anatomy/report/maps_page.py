"""The pages of maps and of masks: every picture, method and text, layers on a slider, words of a sentence. One file that holds everything."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int16
from markupsafe import Markup
from numpy import ndarray
from PIL import Image
from torch import Tensor

from clip_anatomy.loading.typed_texts import TypedText
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_set import MapSet
from clip_anatomy.maps.registry import METHODS
from clip_anatomy.maps.thresholds import UNSEEN
from clip_anatomy.report.contact_sheet import Cell, fitted
from clip_anatomy.report.html import data_uri, encoded, fragment, page
from clip_anatomy.report.layer_film import layer_shades
from clip_anatomy.report.map_overlay import colours_of, shades_of
from clip_anatomy.report.shown_picture import ShownPicture

__all__ = ["maps_page", "maps_section", "masks_page", "masks_section"]

SIDE = 448  # pixels of a mask's drawings on the page


def maps_page(title: str, sections: Sequence[Markup], look: str, **around: Any) -> str:
    """Return the page of `heatmap`.

    Args:
        title: the headline.
        sections: from `maps_section`, made one by one so that no picture need be kept.
        look: "signed" or "heat".
        **around: notes; failed, (name, error) of pictures that could not be read; facts, (name, value) of what is needed to make
            the maps again.
    """
    return page("maps.html", kind=f"maps {look}", script="maps.js", title=title, sections=sections, look=look, **around)


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
    return page("masks.html", kind="maps", script="", title=title, sections=sections, swatches=swatches, **around)


def maps_section(picture: ShownPicture, maps: MapSet, look: str) -> Markup:
    """Return all maps of one picture.

    Args:
        picture: as figures show it.
        maps: of this picture alone.
        look: "signed" or "heat".
    """
    first = maps.first
    blocks = [_block(one, look) for one in maps.methods]
    words = [_words(text, one, look) for text, one in zip(first.texts, maps.words, strict=False)]
    patches = tuple(first.values.shape[2:])
    layers = _layers(maps.layers, look) if maps.layers else []
    return fragment("maps_section.html", "maps_section", picture, patches, blocks, words, layers)


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


def _uri(values: Tensor, limit: float, look: str) -> str:
    return data_uri(encoded(Image.fromarray(colours_of(values.cpu(), limit, look))))


def _figures(maps: Maps, look: str) -> list[dict[str, Any]]:
    shades = shades_of(maps)
    return [
        {"text": text, "map": _uri(values, limit, look), "low": float(values.min()), "high": float(values.max()), "sum": float(values.sum())}
        for text, values, limit in zip(maps.texts, shades.maps.values[0], shades.limits, strict=True)
    ]  # fmt: skip


def _block(maps: Maps, look: str) -> dict[str, Any]:
    told = METHODS[maps.method].description if maps.method in METHODS else ""
    return {"method": maps.method, "about": told, "figures": _figures(maps, look)}


def _words(text: str, maps: Maps, look: str) -> dict[str, Any]:
    """Draw one sentence: each word with its share of the cosine over all patches, and the maps of sentence, words and rest."""
    shares = maps.values[0, 1:-1].sum((1, 2))
    limit = max(float(shares.abs().max()), 1e-12) if len(shares) else 1.0
    words = [name.rsplit(" (", 1)[0] if name.endswith(")") else name for name in maps.texts[1:-1]]
    marked = [(word, share, 75 * abs(share) / limit) for word, share in zip(words, shares.tolist(), strict=True)]
    figures = _figures(maps, look)
    figures[0]["text"] = "the whole text"
    return {"text": text, "words": marked, "figures": figures}


def _layers(by_layer: Sequence[Maps], look: str) -> list[dict[str, Any]]:
    """Draw a figure for each text of the single layers, and of their sums: one map a layer."""
    return [
        {"text": text, "of": told, "maps": [_uri(one.maps.values[0, k], one.limits[k], look) for one in each]}
        for told, each in zip(("this layer", "all layers up to here"), layer_shades(by_layer), strict=True)
        for k, text in enumerate(each[0].maps.texts)
    ]
