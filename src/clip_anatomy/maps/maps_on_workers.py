"""Maps and masks of many pictures by the workers of an engine: each takes a few dozen pictures at a time, and sends their maps back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor

from clip_anatomy.data.picture_batches import Failed, NamedPicture, Pictures, named_pictures
from clip_anatomy.data.picture_files import passed_over_note, passed_over_of
from clip_anatomy.engine.engine import Engine, engine_of, in_order
from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.pixels import is_preprocessed
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.model_setup import ModelSetup
from clip_anatomy.maps.map_result import MapRun, Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.progress import Progress, silent

__all__ = ["WorkersMaps", "maps_on_workers"]

PART = 64  # pictures: a whole number of every batch, so that batches hold what they hold in one process


@dataclass(frozen=True)
class WorkersMaps:
    """What workers made: results of parts, in the order of the pictures, and what those of all pictures were made with.

    Attributes:
        parts: results without their `MapRun`.
        run: size, options, what could not be used and what was passed over.
    """

    parts: tuple[Any, ...]
    run: MapRun

    def joined(self, maps: Sequence[Maps]) -> Maps:
        """Join the maps of all parts."""
        return replace(Maps.joined(maps), run=self.run)


@dataclass(frozen=True)
class _MapsSetup:
    """A model, a function, and what is the same for all pictures: sent to a worker once."""

    model: ModelSetup
    function: Callable[..., Any]
    without_run: Callable[[Any], tuple[Any, MapRun]]
    texts: tuple[Texts, ...]
    options: dict[str, Any]

    @property
    def device(self) -> str:
        """Where the model wants to be."""
        return self.model.device

    def open(self) -> "tuple[Clip, _MapsSetup]":
        """Open the model, and bring the texts to it."""
        clip = self.model.open()
        texts = tuple(replace(one, embeddings=one.embeddings.to(clip.device)) for one in self.texts)
        return clip, replace(self, texts=texts)


def maps_on_workers(
    engine: Engine | str,
    clip: Clip,
    function: Callable[..., Any],
    without_run: Callable[[Any], tuple[Any, MapRun]],
    *,
    images: Pictures,
    texts: Sequence[Texts],
    skip_bad: bool,
    allow_urls: bool,
    progress: Progress | None,
    **options: Any,
) -> WorkersMaps:
    """Run a function over parts of the pictures.

    Args:
        engine: which.
        clip: the model.
        function: (clip, pictures, *texts, **options) → result.
        without_run: result → the same without its `MapRun`, which holds the model, and that.
        images: as for `heatmap`.
        texts: embedded here, once.
        skip_bad: as for `heatmap`.
        allow_urls: likewise.
        progress: told how many pictures are done.
        **options: of the function.

    Raises:
        BadSpec: preprocessed tensors.
        BadImage: no picture can be used, or, without `skip_bad`, one cannot.
    """
    if isinstance(images, Tensor) and is_preprocessed(images):
        raise BadSpec("preprocessed tensors are pixels in this process. Type paths, or leave engine= out")
    pictures, collection = named_pictures(images)
    tell, total = progress or silent, None if collection is None else collection.count()
    here = tuple(replace(one, embeddings=one.embeddings.cpu(), contrasts={}) for one in texts)
    options = {**options, "skip_bad": skip_bad, "allow_urls": allow_urls}
    setup = _MapsSetup(ModelSetup.of(clip), function, without_run, here, options)
    ordered: list[tuple[Any, tuple[Any, Any] | None, tuple[Failed, ...]]] = []
    with engine_of(engine) as opened:
        for result in in_order(opened.map(_part, iter(lambda: [*islice(pictures, PART)], []), setup=setup)):
            ordered.append(result)
            done = PART * len(ordered)
            tell("looking at pictures", done if total is None else min(done, total), total)
    failed = tuple(one for _, _, bad in ordered for one in bad)
    run = next((run for _, run, _ in ordered if run is not None), None)
    if run is None:
        first = f" The first, {failed[0][0]}: {failed[0][1]}" if failed else ""
        raise BadImage(
            f"none of the {len(failed)} pictures could be used.{first} Type the paths of pictures: photo.jpg"
        )
    note = passed_over_note(passed_over_of(collection))
    run = MapRun(clip, run[0], run[1], failed, (note,) if note else ())
    return WorkersMaps(tuple(part for part, run, _ in ordered if run is not None), run)


def _part(
    state: tuple[Clip, _MapsSetup], pictures: list[NamedPicture]
) -> tuple[Any, tuple[Any, Any] | None, tuple[Failed, ...]]:
    """Return the result of some pictures, size and options of its run, and pictures that could not be used; no run where none could."""
    clip, setup = state
    try:
        result, run = setup.without_run(setup.function(clip, pictures, *setup.texts, **setup.options))
    except BadImage as error:
        if not setup.options["skip_bad"]:
            raise
        return None, None, tuple((one.name, _why(one, setup) or str(error)) for one in pictures)
    return result, (run.size, run.options), run.failed


def _why(picture: NamedPicture, setup: _MapsSetup) -> str:
    """Say why a picture cannot be read; "" where it can."""
    try:
        picture.read(allow_urls=setup.options["allow_urls"])
    except BadImage as error:
        return str(error)
    return ""
