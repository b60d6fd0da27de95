"""What is written of a large picture: it under its maps or masks as image pyramids, overviews, a page, the numbers; a tile at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json, slug
from clip_anatomy.data.tile_source import Slide
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.thresholds import checked_rule, labels_above, level_of
from clip_anatomy.maps.tiled_maps import BAND, SCHEMA, TiledMaps
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.deep_zoom import TILE, Draw, overview, write_pyramid
from clip_anatomy.report.drawings import listed_texts
from clip_anatomy.report.html import page
from clip_anatomy.report.map_legend import with_legend, with_swatches
from clip_anatomy.report.map_overlay import blended, colour_range, shades_of
from clip_anatomy.report.mask_files import class_colours, painted, tones_of
from clip_anatomy.report.model_facts import model_facts

__all__ = ["KIND", "write"]

KIND = Kind("slide", "tiles.json", SCHEMA)
MASKS, LABELS = "masks", "labels.npy"
PLACES = 8  # along each side, at which the picture's tones are looked at


def write(
    tiled: TiledMaps,
    output: AtomicOutput,
    progress: Progress | None = None,
    *,
    colours: str = "signed",
    threshold: str | float | None = None,
    background: int = 0,
    pictures: bool | None = None,
) -> None:
    """Draw the picture tile by tile.

    Args:
        tiled: its maps.
        output: where to.
        progress: told how many tiles are drawn.
        colours: of maps, "signed" or "heat": one scale for the whole picture and all texts.
        threshold: a rule as for `segment`, to draw masks instead of maps: one level for the whole picture.
        background: how many of the last texts are background, which takes pixels and is no label.
        pictures: False to leave the pyramids away, and write numbers alone.
    """
    tell, count = progress or silent, len(tiled.texts) - background
    level = None if threshold is None else level_of(tiled.sample(), count, checked_rule(threshold))
    numbers, figures = {**tiled.to_dict(), "masks": None}, list[dict[str, str]]()
    if level is not None:
        shares = _write_labels(tiled, count, level, output.folder / LABELS)
        numbers["masks"] = {"threshold": threshold, "level": level, "texts": count, "shares": shares}
    for name, caption, about, paint, finish in [] if pictures is False else _drawings(tiled, colours, count, level):
        file = output.folder / f"{name}.dzi"
        tiles = -(-tiled.size[0] // TILE) * -(-tiled.size[1] // TILE)

        def told(done: int, what: str = f"drawing {name}", tiles: int = tiles) -> None:
            tell(what, done, tiles)

        write_pyramid(file, tiled.size, paint, told)
        drawn = overview(file)
        finish(drawn).save(output.folder / f"{name}.jpg", quality=92)
        _write_place(tiled, drawn.width, output, f"{name}.jgw")
        size = f"{tiled.size[1]:,} × {tiled.size[0]:,} pixels"
        figures.append(
            {
                "caption": caption,
                "about": f"{size}; {about}",
                "image": f"{name}.jpg",
                "video": "",
                "more": f"{name}.dzi",
            }
        )
    output.write(REPORT, _page(tiled, figures))
    output.write(KIND.mark, as_json({**numbers, "files": output.files}))


Finish = Callable[[Image.Image], Image.Image]


def _drawings(
    tiled: TiledMaps, colours: str, count: int, level: float | None
) -> Iterator[tuple[str, str, str, Draw, Finish]]:
    """Say what is drawn: its name, what it shows, its scale in words, its pixels at a rectangle, and what is set below it when it is small."""
    tones = _tones(tiled)
    if level is not None:
        swatches = list(zip(class_colours(count), tiled.texts[:count], strict=True))

        def masks(rows: slice, cols: slice) -> UInt8[ndarray, "row col 3"]:
            labels = labels_above(tiled.at(rows, cols), count, level)
            return painted(Image.fromarray(_pixels(tiled, rows, cols)), labels, count, tones=tones)

        about = f"one level for all of it: {level:.4g}"
        yield MASKS, listed_texts(tiled.texts[:count]), about, masks, partial(with_swatches, swatches=swatches)
        return
    sample = tiled.sample()
    shades = shades_of(Maps(sample[None], tiled.method, tiled.texts, None, None, tiled.run))
    for k, text in enumerate(tiled.texts):
        shaded = shades.maps.values[0, k]
        zero = float((sample[k] - shaded).mean()) if shaded.any() else None  # None: the same everywhere, drawn empty

        def maps(rows: slice, cols: slice, k: int = k, zero: float | None = zero) -> UInt8[ndarray, "row col 3"]:
            values = tiled.at(rows, cols, slice(k, k + 1))[0]
            values = torch.zeros_like(values) if zero is None else values - zero
            picture = _pixels(tiled, rows, cols).astype(np.float32)
            return blended(picture, values, shades.limits[k], colours, shades.ends[k], tones=tones)

        about = f"colours {colour_range(shades, k, colours)}"
        legend = partial(with_legend, shades=shades, text=k, caption=text, colours=colours)
        yield f"{k:02d}-{slug(text)}", text, about, maps, legend


def _pixels(tiled: TiledMaps, rows: slice, cols: slice) -> UInt8[ndarray, "row col 3"]:
    return np.ascontiguousarray(np.asarray(tiled.source[rows, cols])[..., :3])


def _tones(tiled: TiledMaps) -> tuple[float, float]:
    """Tell what is dark and light in the whole picture, from pieces of it spread evenly."""
    starts = [sorted({side * k // PLACES for k in range(PLACES)}) for side in tiled.size]
    spans = [
        [slice(at, min(at + TILE // 4, side)) for at in some] for some, side in zip(starts, tiled.size, strict=True)
    ]
    pieces = [_pixels(tiled, rows, cols).reshape(-1, 1, 3) for rows in spans[0] for cols in spans[1]]
    return tones_of(np.concatenate(pieces).astype(np.float32))


def _write_labels(tiled: TiledMaps, count: int, level: float, file: Path) -> dict[str, float]:
    """Write the label of every patch (0 for none), some rows at a time, and return each text's share of them."""
    rows, cols = tiled.values.shape[1:]
    labels = np.lib.format.open_memmap(file, "w+", np.int16, (rows, cols))
    pixels = np.zeros(count + 1, np.int64)
    for first in range(0, rows, BAND):
        band = labels_above(torch.from_numpy(np.array(tiled.values[:, first : first + BAND])), count, level)
        labels[first : first + BAND] = band
        pixels += np.bincount(band.ravel(), minlength=count + 1)
    labels.flush()
    return {text: round(float(n) / (rows * cols), 6) for text, n in zip(tiled.texts[:count], pixels[1:], strict=True)}


def _write_place(tiled: TiledMaps, wide: int, output: AtomicOutput, name: str) -> None:
    """Write where an overview's pixels lie, if the picture has coordinates: a world file, which geographic programs read."""
    if not isinstance(tiled.source, Slide) or tiled.source.transform is None:
        return
    a, b, _, d, e, _ = tiled.source.transform
    step = tiled.size[1] / wide
    middle = tiled.source.place(step / 2, step / 2)  # of the first pixel
    assert middle is not None
    output.write(name, "".join(f"{value:.12g}\n" for value in (a * step, d * step, b * step, e * step, *middle)))


def _page(tiled: TiledMaps, figures: Sequence[dict[str, str]]) -> str:
    run, notes = tiled.run, []
    facts = [*model_facts(run.clip), ("method", tiled.method), *((name, str(v)) for name, v in run.options.items())]
    facts += [("subtracted from every text", tiled.subtracted)] if tiled.subtracted else []
    title = f"Where {listed_texts(tiled.texts)} {'is' if len(tiled.texts) == 1 else 'are'} answered, tile by tile"
    if figures:
        notes = [
            "The .dzi files are the whole picture: open them in OpenSeadragon, QuPath or another viewer of Deep Zoom."
        ]
    return page("film.html", kind="maps", script="", title=title, figures=figures, notes=notes, facts=facts)
