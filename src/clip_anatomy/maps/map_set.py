"""Maps of the same pictures by several methods, layer by layer, and word by word: each picture is read once."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from clip_anatomy.data.picture_batches import Failed, PictureBatch, Pictures, picture_batches
from clip_anatomy.engine.engine import Engine, works_here
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.loading.typed_texts import TypedText, shorten
from clip_anatomy.maps.automatic import AUTO, chosen_method
from clip_anatomy.maps.contrast import NEUTRAL, Against
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.layer_maps import layer_maps
from clip_anatomy.maps.map_result import MapRun, Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.maps_on_workers import WorkersMaps, maps_on_workers
from clip_anatomy.maps.registry import method_of, methods_of
from clip_anatomy.maps.word_maps import word_maps
from clip_anatomy.maps.word_weights import WordWeights, word_weights
from clip_anatomy.progress import Progress
from clip_anatomy.results import Result, text_table

__all__ = ["SCHEMA", "MapSet", "checked_methods", "map_set"]

SCHEMA = "clip-anatomy/heatmap/1"
BATCH = 8  # pictures that are held decoded, while all methods run
MOST_ROWS = 24  # pictures in a summary


@dataclass(frozen=True, repr=False)
class MapSet(Result):
    """Maps of the same pictures and texts.

    Attributes:
        methods: one `Maps` per method.
        layers: the decomposition by layer, if it was asked for.
        words: per text the maps of its words, if they were asked for: the sentence, each word, the rest.
        weights: per text how much the cosine hangs on each word, by gradients (`word_weights`); () where the model has no such weights.
        typed: the texts with what the model cannot make of them; () where nobody checked.
        notes: what else a reader must know.
        colours: how they are drawn: "signed" or "heat".
    """

    methods: tuple[Maps, ...]
    layers: tuple[Maps, ...] = ()
    words: tuple[Maps, ...] = ()
    weights: tuple[WordWeights, ...] = ()
    typed: tuple[TypedText, ...] = ()
    notes: tuple[str, ...] = ()
    colours: str = "signed"
    presenter: ClassVar[str] = "maps_folder"

    @property
    def first(self) -> Maps:
        """The maps of the first method."""
        return self.methods[0]

    @property
    def texts(self) -> tuple[TypedText, ...]:
        """The texts."""
        return self.typed or tuple(map(TypedText, self.first.texts))

    @property
    def failed(self) -> tuple[Failed, ...]:
        """Name and error of pictures that could not be used."""
        return self.first.run.failed if self.first.run else ()

    @property
    def all_notes(self) -> list[str]:
        """What a reader must know: of the run, of pictures smaller than a patch, of each text."""
        return [
            *self.notes,
            *self.first.notes(),
            *(f"“{t.short}”: {note}" for t in self.texts for note in t.notes),
        ]

    @property
    def subtracted(self) -> list[str]:
        """What was subtracted from the texts, a line for each method that subtracts."""
        return [
            f"{maps.method}: subtracted from every text: {maps.subtracted}" for maps in self.methods if maps.subtracted
        ]

    def with_failed(self, failed: Sequence[Failed]) -> "MapSet":
        """Return the same maps, with other notes of pictures that could not be used."""
        return replace(self, methods=tuple(maps.with_failed(failed) for maps in self.methods))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.first)

    def __getitem__(self, image: int) -> "MapSet":
        """Return all maps of one picture, each on its own grid."""
        each = [tuple(maps[image] for maps in part) for part in (self.methods, self.layers, self.words)]
        weights = tuple(replace(one, values=one.values[image][None]) for one in self.weights)
        return replace(self, methods=each[0], layers=each[1], words=each[2], weights=weights)

    def to_dict(self) -> dict[str, Any]:
        """Return every map as plain numbers, and the model that they are of."""
        from clip_anatomy import __version__

        run = self.first.run
        size = None if run is None else run.size
        return {
            "schema": SCHEMA,
            "version": __version__,
            **({} if run is None else {"model": run.model}),
            "methods": [maps.method for maps in self.methods],
            "subtracted": {maps.method: maps.subtracted for maps in self.methods},
            "size": list(size) if isinstance(size, tuple) else size,
            "options": {} if run is None else dict(run.options),
            "notes": [*self.notes, *self.first.notes()],
            "texts": [{"text": text.text, "notes": list(text.notes)} for text in self.texts],
            "failed": [{"image": name, "error": error} for name, error in self.failed],
            "files": [],
            "images": [self._image(i) for i in range(len(self))],
        }

    def _image(self, image: int) -> dict[str, Any]:
        one = self[image]
        parts = {"maps": one.methods, "words": one.words, "layers": one.layers}
        return {
            **one.first.place(),
            **{name: [row for maps in each for row in maps.numbers()] for name, each in parts.items()},
            "word_weights": [
                [
                    {"word": word, "weight": round(share, 6)}
                    for word, share in zip(w.words, w.values[0].tolist(), strict=True)
                ]
                for w in one.weights
            ],
        }

    def summary(self) -> str:
        """Return a table: for each picture, method and text the range of its map, and where it is highest."""
        return self.table()

    def table(self, file: str = "") -> str:
        """Return the same; `file` is where the rest is, if there are too many pictures."""
        several = len(self.methods) > 1
        columns = ["picture", *(["method"] if several else []), "text", ">lowest", ">highest", ">at (x, y)"]
        rows: list[list[str]] = []
        for i, name in enumerate(self.first.short_names[:MOST_ROWS]):
            for maps in self[i].methods:
                for one in maps.numbers():
                    peak = "" if one["peak"] is None else f"{one['peak'][0]:.0f}, {one['peak'][1]:.0f}"
                    ends = [f"{one[end]:+.4f}".replace("-", "−") for end in ("lowest", "highest")]
                    rows.append([name, *([maps.method] if several else []), shorten(one["text"], 40), *ends, peak])
                    name = ""  # noqa: PLW2901
        more = len(self) - MOST_ROWS
        lines = "\n".join([text_table(columns, rows, groups=True), *self.subtracted])
        where = f":\n{file}" if file else ""
        return f"{lines}\n… and {more:,} more pictures{where}" if more > 0 else lines


def map_set(
    clip: Clip | ModelSource,
    images: Pictures,
    texts: Sequence[str] | Texts,
    methods: Sequence[str] = ("decomposition",),
    *,
    against: Against = NEUTRAL,
    templates: Sequence[str] | None = None,
    size: Size = None,
    layers: bool = False,
    words: bool = False,
    allow_urls: bool = False,
    skip_bad: bool = False,
    engine: Engine | str = "local",
    progress: Progress | None = None,
    **options: Any,
) -> MapSet:
    """Draw maps by several methods, each as `heatmap` does, and read every picture once.

    Args:
        clip: an opened model, or what `load` opens.
        images: as for `heatmap`.
        texts: as for `heatmap`.
        methods: names of METHODS, each once.
        against: as for `heatmap`, of the methods that compare.
        templates: as for `heatmap`.
        size: as for `heatmap`.
        layers: also the decomposition layer by layer.
        words: also a map for every word of each text, and how much the cosine hangs on it.
        allow_urls: fetch http(s) addresses.
        skip_bad: leave out pictures that cannot be used (`failed` names them) instead of raising at the first.
        engine: as for `heatmap`.
        progress: told how many pictures are done.
        **options: window, stride, replace_sinks, as for `heatmap`.

    Raises:
        BadSpec, BadText, BadImage: see `heatmap`.

    Example:
        >>> from clip_anatomy.loading.demo import examples
        >>> result = map_set("demo", examples()[:2], ["a bird"], ["raw", "surgery"])
        >>> [maps.method for maps in result.methods], len(result)
        (['raw', 'surgery'], 2)
    """
    clip = as_clip(clip)
    wanted = Texts.of(clip, texts, templates)
    given = {name: {"against": against} if method_of(clip, name).contrasts else {} for name in methods}
    if not any(given.values()) and not (layers or against == NEUTRAL):
        raise BadSpec(f"none of {', '.join(methods)} compares texts with anything. Type also: method='decomposition'")
    if not works_here(engine):
        same = {"methods": methods, "against": against, "size": size, "layers": layers, "words": words, **options}
        made = maps_on_workers(
            engine, clip, map_set, _without_run, images=images, texts=[wanted], skip_bad=skip_bad, allow_urls=allow_urls, progress=progress, **same
        )  # fmt: skip
        return _joined(made)
    failed: list[Failed] | None = [] if skip_bad else None
    notes: list[str] = []
    places: list[int] = []
    parts: dict[str, list[list[Maps]]] = {"methods": [], "layers": [], "words": []}
    weighed: list[list[WordWeights]] = []
    for batch in picture_batches(
        clip, images, size, BATCH, own=options.get("window") is not None, allow_urls=allow_urls, failed=failed, notes=notes, progress=progress
    ):  # fmt: skip
        parts["methods"].append(
            [heatmap(clip, batch, wanted, name, size=size, **given[name], **options) for name in methods]
        )
        parts["layers"].append(layer_maps(clip, batch, wanted, against=against) if layers else [])
        parts["words"].append([_word_maps(clip, batch, text, options) for text in wanted.names] if words else [])
        weighed.append(_word_weights(clip, batch, wanted.names, options) if words else [])
        places += batch.places
    joined = {
        name: tuple(Maps.joined(each).in_order(places) for each in zip(*batches, strict=True))
        for name, batches in parts.items()
    }
    run = joined["methods"][0].run
    assert run is not None
    changed = {} if isinstance(against, Tensor) or against == NEUTRAL else {"against": against}
    run = replace(run, failed=tuple(failed or ()), notes=tuple(notes), options={**run.options, **changed})
    order = sorted(range(len(places)), key=places.__getitem__)
    weights = tuple(
        replace(each[0], values=torch.cat([one.values for one in each])[order]) for each in zip(*weighed, strict=True)
    )
    methods_run = tuple(replace(maps, run=run) for maps in joined["methods"])
    return MapSet(methods_run, joined["layers"], joined["words"], weights)


def _without_run(one: MapSet) -> tuple[MapSet, MapRun]:
    assert one.first.run is not None
    parts = ([replace(maps, run=None) for maps in each] for each in (one.methods, one.layers, one.words))
    return replace(one, **dict(zip(("methods", "layers", "words"), map(tuple, parts), strict=True))), one.first.run


def _joined(made: WorkersMaps) -> MapSet:
    methods, layers, words = (
        tuple(made.joined(each) for each in zip(*several, strict=True))
        for several in zip(*((part.methods, part.layers, part.words) for part in made.parts), strict=True)
    )
    weights = tuple(
        replace(each[0], values=torch.cat([one.values for one in each]))
        for each in zip(*(part.weights for part in made.parts), strict=True)
    )
    return MapSet(methods, layers, words, weights)


def checked_methods(clip: Clip, names: Sequence[str]) -> tuple[str, ...]:
    """Return the methods that were named; "all" is every method that this model has and that needs nothing else.

    Raises:
        BadSpec: one that is not known, or needs what a command line cannot give.
    """
    known = methods_of(clip)
    ready = [name for name, method in known.items() if not method.needs]
    typed = [part for name in names for part in name.replace(",", " ").split()]
    wanted = [chosen_method(clip).method if name == AUTO else name for name in typed] or [chosen_method(clip).method]
    for name in wanted:
        if name != "all" and name not in ready:
            why = "needs an argument that only Python can give" if name in known else "is not known for this model"
            raise BadSpec(f"method {name!r} {why}. Type one of: all, {', '.join(ready)}")
    return tuple(dict.fromkeys(part for name in wanted for part in (ready if name == "all" else [name])))


def _word_weights(clip: Clip, batch: PictureBatch, texts: Sequence[str], options: dict[str, Any]) -> list[WordWeights]:
    """Weigh the words of each text, where the model looks at a picture once and reads a text at one token."""
    if options.get("window") is not None:
        return []
    with suppress(UnsupportedModel):
        return [word_weights(clip, batch, text) for text in texts]
    return []


def _word_maps(clip: Clip, batch: PictureBatch, text: str, options: dict[str, Any]) -> Maps:
    """Return the map of a sentence, of each of its words, and of what is left, on one scale: the first is the sum of the others."""
    result = word_maps(clip, batch, text, **options)
    each = (result.sentence, result.words, result.rest)
    values = torch.cat([maps.values for maps in each], 1)
    return replace(result.words, values=values, texts=tuple(word for maps in each for word in maps.texts))
