"""What is written of a film: every frame under its maps or masks as PNG, a GIF and an MP4 of them, a page, the numbers; one frame at a time."""

import shutil
from collections.abc import Iterator, Sequence

from PIL import Image

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json, slug
from clip_anatomy.errors import MissingExtra
from clip_anatomy.images.input_size import describe_size
from clip_anatomy.maps.film_maps import SCHEMA, FilmMaps
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.thresholds import checked_rule, labels_above, level_of
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.drawings import listed_texts
from clip_anatomy.report.film_files import write_gif, write_mp4
from clip_anatomy.report.html import page
from clip_anatomy.report.map_legend import with_legend, with_swatches
from clip_anatomy.report.map_overlay import Shades, colour_range, overlay, shades_of
from clip_anatomy.report.mask_files import class_colours, painted, png
from clip_anatomy.report.model_facts import model_facts

__all__ = ["KIND", "write"]

KIND = Kind("film", "film.json", SCHEMA)
MASKS, PAINTED = "masks", "painted"


def write(
    film: FilmMaps,
    output: AtomicOutput,
    progress: Progress | None = None,
    *,
    colours: str = "signed",
    threshold: str | float | None = None,
    background: int = 0,
    pictures: bool | None = None,
) -> None:
    """Draw every frame, then the films.

    Args:
        film: its maps.
        output: where to.
        progress: told how many frames are drawn.
        colours: of maps, "signed" or "heat": one scale for all texts and frames.
        threshold: a rule as for `segment`, to draw masks instead of maps: one level for all frames, so that a frame without the thing
            has no mask.
        background: how many of the last texts are background, which takes pixels and is no label.
        pictures: False to leave away the frames' own files once the films are made.
    """
    tell = progress or silent
    count = len(film.texts) - background
    level = None if threshold is None else level_of(film.sample(), count, checked_rule(threshold))
    scale = None if level is not None else _scale(film)
    names = [PAINTED] if level is not None else [f"{k:02d}-{slug(text)}" for k, text in enumerate(film.texts)]
    for name in [*names, *([MASKS] if level is not None else [])]:
        (output.folder / name).mkdir()
    for number, maps in enumerate(film):
        tell("drawing frames", number, len(film))
        drawn = _maps_drawn(maps, scale, colours) if scale else _masks_drawn(maps, level or 0.0, count, output, number)
        for name, image in zip(names, drawn, strict=True):
            image.save(output.folder / name / _file(number))
    figures: list[dict[str, object]] = []
    notes = film.run.notes
    for k, name in enumerate(names):
        tell("writing films", k, len(names))
        frames = [output.folder / name / _file(number) for number in range(len(film))]
        in_gif = write_gif(frames, output.folder / f"{name}.gif", film.rate)
        video = f"{name}.mp4"
        try:
            write_mp4(frames, output.folder / video, film.rate)
        except MissingExtra as error:
            notes, video = (*film.run.notes, f"no MP4: {error}"), ""
        about = f"{len(film):,} frames, {film.rate:g} a second" + (f"; {in_gif:,} of them in the GIF" if in_gif < len(film) else "")  # fmt: skip
        caption = listed_texts(film.texts[:count]) if level is not None else film.texts[k]
        under = f"one level for all frames: {level:.4g}" if level is not None else f"colours {colour_range(scale, k, colours)}" if scale else ""  # fmt: skip
        figures.append(
            {"caption": caption, "about": f"{about}; {under}", "image": f"{name}.gif", "video": video, "more": ""}
        )
        if pictures is False:
            shutil.rmtree(output.folder / name)
    output.write(REPORT, _page(film, figures, notes))
    cut = None if level is None else {"threshold": threshold, "level": level, "texts": count}
    output.write(KIND.mark, as_json({**film.to_dict(), "masks": cut, "files": output.files}))


def _file(number: int) -> str:
    return f"{number:06d}.png"


def _scale(film: FilmMaps) -> Shades:
    """Find one scale for all texts and frames, some frames at a time."""
    scale: Shades | None = None
    for maps in film.chunks():
        one = shades_of(maps)
        scale = one if scale is None else one.on_scale_of([scale, one])
    assert scale is not None
    return scale


def _maps_drawn(maps: Maps, scale: Shades, colours: str) -> Iterator[Image.Image]:
    assert maps.pictures is not None
    image, shades = maps.pictures[0].read(), shades_of(maps).on_scale_of([scale])
    for k, text in enumerate(maps.texts):
        yield with_legend(overlay(image, shades, k, colours), shades, k, text, colours)


def _masks_drawn(maps: Maps, level: float, count: int, output: AtomicOutput, number: int) -> Iterator[Image.Image]:
    assert maps.pictures is not None
    image = maps.pictures[0].read()
    labels = labels_above(maps.on_picture(), count, level)
    output.write(f"{MASKS}/{_file(number)}", png(labels, maps.texts[:count]))
    swatches = list(zip(class_colours(count), maps.texts[:count], strict=True))
    yield with_swatches(Image.fromarray(painted(image, labels, count)), swatches)


def _page(film: FilmMaps, figures: Sequence[dict[str, object]], notes: Sequence[str]) -> str:
    run = film.run
    looked = describe_size(run.size, run.clip.preprocess) + "".join(f", {k} {v}" for k, v in run.options.items())
    facts = [*model_facts(run.clip), ("method", film.method), ("looked at", looked)]
    facts += [("subtracted from every text", film.subtracted)] if film.subtracted else []
    title = f"Where {listed_texts(film.texts)} {'is' if len(film.texts) == 1 else 'are'} answered, frame by frame"
    failed = [error for _, error in run.failed]
    return page(
        "film.html", kind="maps", script="film.js", title=title, figures=figures, notes=[*notes, *failed], facts=facts
    )
