"""From what was typed to maps: pictures one by one, so that a bad one is named and the others are done."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clip_anatomy.data.picture import SUFFIXES
from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.input_size import Size
from clip_anatomy.images.pixels import read_image
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.tokenizer import Tokenizer
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.layer_maps import layer_maps
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.registry import methods_of
from clip_anatomy.maps.word_maps import word_maps
from clip_anatomy.report.shown_picture import Picture, label_of, view_of
from clip_anatomy.report.typed_texts import Question, ask, shorten

__all__ = ["Asked", "Seen", "Source", "asked_of", "checked_methods", "expanded", "look", "parsed_size"]


@dataclass(frozen=True)
class Source:
    """One picture to look at: where it is, and what it is called if not by its path."""

    path: str
    label: str = ""


@dataclass(frozen=True)
class Asked:
    """What is wanted of every picture.

    Attributes:
        texts: cleaned, each once, and embedded.
        methods: names.
        size: as for `heatmap`.
        options: for every method (`window`, `stride`).
        layers: whether the exact map is also wanted layer by layer.
        words: whether every text is also wanted word by word.
    """

    texts: Texts
    methods: tuple[str, ...]
    size: Size = None
    options: tuple[tuple[str, Any], ...] = ()
    layers: bool = False
    words: bool = False


@dataclass(frozen=True)
class Seen:
    """One picture with its maps.

    Attributes:
        picture: as figures show it.
        image: the original in RGB.
        maps: by method.
        layers: by layer, if asked.
        words: by text, if asked: the maps of its words.
    """

    picture: Picture
    image: Image.Image
    maps: dict[str, Maps]
    layers: tuple[Maps, ...] = ()
    words: tuple[Maps, ...] = ()


def expanded(paths: Iterable[str]) -> list[Source]:
    """Folders become the pictures in them, by name; everything else stays as it was typed.

    Raises:
        BadImage: a folder without a picture.
    """
    found: list[Source] = []
    for path in paths:
        folder = Path(path) if "://" not in path else None
        if folder is None or not folder.is_dir():
            found.append(Source(path))
            continue
        inside = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not inside:
            raise BadImage(f"{label_of(path)} is a folder without pictures. Type a folder with JPEG, PNG or WebP files")
        found += [Source(str(p)) for p in inside]
    return found


def asked_of(texts: Sequence[str], tokenizer: Tokenizer | None) -> tuple[list[Question], list[str]]:
    """The texts as questions, each once and none empty, and a line about every one that was left out.

    Raises:
        BadText: none is left.
    """
    kept = [text for text in texts if shorten(text)] or list(texts)
    notes = [f"text {i} is empty and was left out" for i, text in enumerate(texts, 1) if text not in kept]
    questions = ask(kept, tokenizer)
    twice = [text for text in dict.fromkeys(kept) if kept.count(text) > 1]
    return questions, [
        *notes,
        *(f"“{shorten(text)}” was given {kept.count(text)} times and is asked once" for text in twice),
    ]


def checked_methods(clip: Clip, names: Sequence[str]) -> tuple[str, ...]:
    """The methods that were asked for; "all" is every method that this model has and that needs nothing else.

    Raises:
        BadSpec: one that is not known, or needs what a command line cannot give.
    """
    known = methods_of(clip)
    ready = [name for name, method in known.items() if not method.needs]
    wanted = [part for name in names for part in name.replace(",", " ").split()] or ["decomposition"]
    for name in wanted:
        if name != "all" and name not in ready:
            why = "needs an argument that only Python can give" if name in known else "is not known for this model"
            raise BadSpec(f"method {name!r} {why}. Type one of: all, {', '.join(ready)}")
    return tuple(dict.fromkeys(part for name in wanted for part in (ready if name == "all" else [name])))


def parsed_size(text: str | None) -> Size:
    """A size as typed: nothing, "whole", "336" or "336x448" (row x col).

    Raises:
        BadSpec: none of these.

    Example:
        >>> parsed_size("336x448"), parsed_size("whole"), parsed_size(None)
        ((336, 448), 'whole', None)
    """
    if text is None or text == "crop":
        return None
    if text == "whole":
        return "whole"
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise BadSpec(
            f"--size {text}: pixels were expected. Type --size 336 (short side), --size 336x448 or --size whole"
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def look(clip: Clip, image: Image.Image, label: str, asked: Asked) -> Seen:
    """PictureBatch at one picture with every method.

    Raises:
        BadImage: it cannot be used.
    """
    options, size = dict(asked.options), asked.size
    maps = {name: heatmap(clip, [image], asked.texts, name, size=size, **options) for name in asked.methods}
    one = next(iter(maps.values()))
    assert one.geometries is not None
    layers = tuple(layer_maps(clip, [image], asked.texts, size=size)) if asked.layers else ()
    words = tuple(_words(clip, image, text, size, options) for text in asked.texts.names) if asked.words else ()
    return Seen(view_of(image, label, one.geometries[0]), read_image(image), maps, layers, words)


def _words(clip: Clip, image: Image.Image, text: str, size: Size, options: dict[str, Any]) -> Maps:
    """The map of a sentence, of each of its words, and of what is left, on one scale: the first is the sum of the others."""
    found = word_maps(clip, [image], text, size=size, **options)
    each = (found.sentence, found.words, found.rest)
    return replace(
        found.words,
        values=torch.cat([maps.values for maps in each], 1),
        texts=tuple(word for maps in each for word in maps.texts),
    )
