"""All methods of `heatmap` in one table, on pictures whose objects are known (`known_objects`).

mIoU is the mean of background and foreground over all pictures, accumulated, as ImageNet-Segmentation has it. Pictures come one
batch after another, each through all methods: of any number none is kept, and a stopped run has the same ones for every method.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.masked import IGNORED
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.evaluation.known_objects import ObjectBatch
from clip_anatomy.evaluation.metrics import Confusion, Mean, Pointing, average_precision, points_at
from clip_anatomy.evaluation.text_tables import configuration_lines, finite, percent, skipped_lines, table_lines
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.registry import METHODS, as_published, method_of, methods_of
from clip_anatomy.maps.thresholds import otsu
from clip_anatomy.progress import Progress, silent
from clip_anatomy.results import Result

__all__ = ["THRESHOLDS", "VARIANTS", "MapScore", "MapTable", "map_table"]

THRESHOLDS = {
    "mean": "above the map's mean",
    "half": "above half of the map's range",
    "otsu": "Otsu's threshold",
}
VARIANTS: dict[str, tuple[str | DenseAttention, dict[str, Any]]] = {
    "surgery, all blocks": ("surgery", {"depth": 99}),
    "kk, all blocks": (DenseAttention(("kk",), residual=False, ffn=False, depth=99, minus_mean=True), {}),
    "grad_eclip, one head": ("grad_eclip", {"heads": 1}),
    "grad_eclip, without keys": ("grad_eclip", {"key_similarity": False}),
}
"""Rows beside METHODS: the second path through every block, not the published few; Grad-ECLIP as released, and its paper's "w/o ksim"."""


@dataclass(frozen=True)
class MapScore:
    """One row of the table.

    Attributes:
        method: of `heatmap`.
        mean_iou: of background and foreground, over all maps.
        foreground_iou: of the foreground alone.
        pixel_accuracy: share of right patches.
        average_precision: of the patches of each map, mean over maps.
        pointing: share of maps whose highest patch lies on the object.
        seconds: for all pictures, without reading them.
        maps: how many were measured.
        why: why there are no figures, where the method does not apply to the model.
    """

    method: str
    mean_iou: float
    foreground_iou: float
    pixel_accuracy: float
    average_precision: float
    pointing: float
    seconds: float
    maps: int
    why: str = ""


@dataclass(frozen=True, repr=False)
class MapTable(Result):
    """What came of some methods on the same pictures.

    Attributes:
        rows: one per method, in the order in which they were asked for.
        pictures: how many were measured.
        partial: whether the run was stopped before its end.
        configuration: everything that decides the figures.
        skipped: id and reason of each picture that could not be measured.
    """

    presenter: ClassVar[str] = "figures_folder"
    rows: tuple[MapScore, ...]
    pictures: int
    partial: bool
    configuration: dict[str, str] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
        return {
            "schema": "clip-anatomy/bench-maps/1",
            "configuration": self.configuration,
            "rows": [finite(asdict(row)) for row in self.rows],
            "partial": self.partial,
            "skipped": [{"id": one, "why": why} for one, why in self.skipped],
        }

    def summary(self) -> str:
        """Return the configuration, the table, and why methods were refused."""
        rows: list[list[str]] = []
        for row in self.rows:
            shares = (row.mean_iou, row.foreground_iou, row.pixel_accuracy, row.average_precision, row.pointing)
            rows.append([row.method, *(percent(share, 1) for share in shares), f"{row.seconds:.2f}"])
        head = ["method", "mIoU", "object IoU", "pixel accuracy", "AP", "pointing", "seconds"]
        refused = [f"{row.method}: {row.why}" for row in self.rows if row.why]
        return "\n".join([*configuration_lines(self.configuration), "", *table_lines(head, rows), *refused])

    def notes(self) -> list[str]:
        """Return what a reader must know: what was skipped, and whether the run was stopped."""
        stopped = "stopped: these figures are PARTIAL, of the pictures measured so far, the same for every method"
        return skipped_lines(self.skipped) + ([stopped] if self.partial else [])


@dataclass(frozen=True)
class _Counts:
    confusion: Confusion = field(default_factory=lambda: Confusion.empty(2))
    precision: Mean = field(default_factory=Mean)
    pointing: Pointing = field(default_factory=Pointing)
    seconds: float = 0.0
    maps: int = 0
    why: str = ""

    def add(self, map_: Tensor, mask: Tensor, threshold: str) -> "_Counts":
        above, known = map_ > _level(map_, threshold), mask != IGNORED
        return replace(
            self,
            confusion=self.confusion.add(above.long(), mask),
            precision=self.precision.add(average_precision(map_[known], mask[known] == 1)),
            pointing=self.pointing.add(points_at(map_, mask)),
            maps=self.maps + 1,
        )

    def score(self, name: str) -> MapScore:
        return MapScore(
            name, self.confusion.mean_iou, float(self.confusion.iou[1]), self.confusion.pixel_accuracy,
            self.precision.value, self.pointing.rate, self.seconds, self.maps, self.why,
        )  # fmt: skip


def map_table(
    clip: Clip,
    batches: Iterable[ObjectBatch],
    methods: Sequence[str] | None = None,
    *,
    threshold: str = "mean",
    total: int | None = None,
    progress: Progress | None = None,
) -> MapTable:
    """Measure methods on the same pictures. Ctrl-C ends the run and gives what was measured so far, marked as partial.

    Args:
        clip: an opened model.
        batches: the pictures, read once.
        methods: names of methods or of VARIANTS; by default all that have a meaning on this model and need nothing else.
        threshold: above it a patch is foreground: "mean" of the map (the papers'), "half" of its range, or "otsu".
        total: how many batches there are, where that is known.
        progress: told how many maps of batches are drawn.

    Returns:
        The table. A method that refuses this model has NaN and says why.

    Raises:
        BadSpec: an unknown method or threshold.
        UnsupportedModel: a method that has no meaning on it.
    """
    known = methods_of(clip)
    further = VARIANTS if known is METHODS else {}
    every = (*(name for name in known if not known[name].needs), *further)
    chosen = every if methods is None else tuple(dict.fromkeys(methods))
    for name in chosen:
        if name not in further:
            method_of(clip, name)
    if threshold not in THRESHOLDS:
        raise BadSpec(f"threshold {threshold!r} is not known. Type one of: {', '.join(THRESHOLDS)}")
    counts = dict.fromkeys(chosen, _Counts())
    pictures, partial, tell = 0, False, progress or silent
    try:
        for number, batch in enumerate(batches):
            fresh: dict[str, _Counts] = {}
            for at, name in enumerate(chosen):
                tell("drawing maps", number * len(chosen) + at, None if total is None else total * len(chosen))
                fresh[name] = _measured(clip, batch, name, counts[name], threshold)
            counts = fresh
            pictures += len(batch.pixels)
    except KeyboardInterrupt:
        if not pictures:  # nothing to tell
            raise
        partial = True
    return MapTable(tuple(counted.score(name) for name, counted in counts.items()), pictures, partial)


def _measured(clip: Clip, batch: ObjectBatch, name: str, counted: _Counts, threshold: str) -> _Counts:
    if counted.why:
        return counted
    method, options = VARIANTS.get(name, (name, {}))
    options = {**as_published(clip, method), **options}
    start = perf_counter()
    try:
        maps = _target_maps(clip, batch, method, options)
    except UnsupportedModel as error:
        return _Counts(why=str(error))
    counted = replace(counted, seconds=counted.seconds + perf_counter() - start)
    for map_, (_, _, mask) in zip(maps, batch.targets, strict=True):
        counted = counted.add(map_, mask, threshold)
    return counted


def _target_maps(clip: Clip, batch: ObjectBatch, method: str | DenseAttention, options: dict[str, Any]) -> list[Tensor]:
    """Compute the map of each question, with all texts as contrast; of methods that have no use for a contrast, no other text is drawn."""
    if isinstance(method, DenseAttention) or not method_of(clip, method).alone:
        values = heatmap(clip, batch.pixels, batch.texts, method, **options).values.cpu()
        return [values[image, text] for image, text, _ in batch.targets]
    pairs = sorted({(image, text) for image, text, _ in batch.targets})
    images, texts = ({pair[axis] for pair in pairs} for axis in (0, 1))
    by = 0 if len(images) < len(texts) else 1  # one forward a picture, or one a text: whichever are fewer
    maps: dict[tuple[int, int], Tensor] = {}
    for one in images if by == 0 else texts:
        some = [pair for pair in pairs if pair[by] == one]
        rows, columns = (list(dict.fromkeys(pair[axis] for pair in some)) for axis in (0, 1))
        values = heatmap(clip, batch.pixels[rows], batch.texts[columns], method, **options).values.cpu()
        maps |= {(image, text): values[rows.index(image), columns.index(text)] for image, text in some}
    return [maps[image, text] for image, text, _ in batch.targets]


def _level(map_: Float[Tensor, "row col"], threshold: str) -> float:
    if threshold == "mean":
        return float(map_.mean())
    low, high = float(map_.min()), float(map_.max())
    return (low + high) / 2 if threshold == "half" else otsu(map_.flatten().numpy())
