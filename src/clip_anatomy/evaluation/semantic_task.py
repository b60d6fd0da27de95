"""A class for every pixel of one picture after the other, under several namings of the classes at once.

Where a method draws each text's map by itself, all namings are scored by one pass over the windows; else each by its own.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.data.masked import IGNORED, LabelledPicture, MaskedPicture, check_sizes
from clip_anatomy.data.referring import ReferredPicture
from clip_anatomy.evaluation.class_lists import TextList
from clip_anatomy.evaluation.metrics import Confusion, bootstrap_miou
from clip_anatomy.evaluation.protocols import SemanticSettings
from clip_anatomy.evaluation.sliding_windows import Sliding, classes_of, scaled, sliding_scores
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.registry import as_published, method_of

__all__ = ["NamesScore", "SemanticTask"]

BATCH = 8  # windows


@dataclass(frozen=True)
class NamesScore:
    """What one naming of the classes gave.

    Attributes:
        names: which.
        mean_iou: over its classes.
        low: of the 95 % interval over resamples of the pictures; `high` likewise.
        lost: share of its classes that are there and whose IoU is 0.
        source: where the names come from.
    """

    names: str
    mean_iou: float
    low: float
    high: float
    lost: float
    source: str


@dataclass
class _Count:
    """Pixels under one naming, and of each picture [intersection, said, there] by class."""

    total: Confusion
    pictures: list[Int[Tensor, "_ class"]] = field(default_factory=list)

    def add(self, one: Confusion) -> None:
        self.total = self.total.merge(one)
        self.pictures.append(torch.stack([one.counts.diagonal(), one.counts.sum(0), one.counts.sum(1)]))


@dataclass
class _NamingCounts:
    """Under every naming."""

    each: tuple[_Count, ...]

    def merge(self, other: "_NamingCounts") -> "_NamingCounts":
        """Both together, the other's pictures behind."""
        pairs = zip(self.each, other.each, strict=True)
        return _NamingCounts(
            tuple(_Count(one.total.merge(two.total), [*one.pictures, *two.pictures]) for one, two in pairs)
        )


@dataclass
class SemanticTask:
    """A class for every pixel.

    Attributes:
        clip: the model.
        classes: names.
        texts: of all namings, each once.
        embeddings: theirs, unit rows.
        lists: namings; the first decides the headline figures.
        settings: windows, scale, thresholds, and a method of `heatmap`.
        background: class number of the background.
    """

    clip: Clip
    classes: tuple[str, ...]
    texts: tuple[str, ...]
    embeddings: Float[Tensor, "text embed"]
    lists: tuple[TextList, ...]
    settings: SemanticSettings
    background: int | None
    measured: _NamingCounts = field(init=False)

    def __post_init__(self) -> None:
        """Start counting."""
        self.measured = _NamingCounts(tuple(_Count(Confusion.empty(one.classes)) for one in self.lists))
        self.embeddings = self.embeddings.to(self.clip.device)
        self._rows = [torch.tensor([self.texts.index(t) for t in one.words.texts]) for one in self.lists]

    def blank(self) -> "SemanticTask":
        """Return the same task with nothing measured."""
        return replace(self)

    def measure(self, entry: MaskedPicture | LabelledPicture | ReferredPicture) -> None:
        """Score windows, decide per original pixel under each naming, count."""
        assert not isinstance(entry, ReferredPicture)
        scores, truth = self.scored(entry, len(self.lists))
        settings, size = self.settings, (truth.shape[0], truth.shape[1])
        for one, own, counted in zip(self.lists, scores, self.measured.each, strict=True):
            predicted = classes_of(
                own, size, one.words.owner, logit_scale=settings.logit_scale, threshold=settings.threshold, area=settings.area,
                background=self.background,
            )  # fmt: skip
            known = truth.masked_fill(truth >= one.classes, IGNORED)
            counted.add(Confusion.empty(one.classes).add(predicted, known))

    def scored(
        self, entry: MaskedPicture | LabelledPicture, lists: int = 1
    ) -> tuple[list[Float[Tensor, "_ _ _"]], Int[Tensor, "_ _"]]:
        """Score a picture under the first namings [text, row, col] at its scaled size, and read its mask at its own.

        Raises:
            BadInput: it cannot be measured.
        """
        assert isinstance(entry, MaskedPicture)
        image, mask = entry.picture(), entry.mask()
        check_sizes(image, mask)
        pixels = scaled(image, self.settings.side, self.clip.preprocess)
        truth = torch.from_numpy(mask)
        rows = self._rows[:lists]
        if self._each_alone:
            used = torch.cat(rows).unique()
            scores = self._windows(pixels, self.embeddings[used])
            return [scores[torch.searchsorted(used, some)] for some in rows], truth
        return [self._windows(pixels, self.embeddings[some]) for some in rows], truth

    @property
    def _each_alone(self) -> bool:
        """Whether a text's map does not depend on the other texts."""
        method = method_of(self.clip, self.settings.method)
        return not (method.contrasts or method.together)

    def _windows(self, pixels: Float[Tensor, "3 row col"], texts: Tensor) -> Float[Tensor, "text row col"]:
        settings = self.settings
        method, options = settings.method, dict(settings.options) | as_published(self.clip, settings.method)

        def score(windows: Tensor) -> Tensor:
            windows = windows.to(self.clip.device, self.clip.vision.dtype)
            values = heatmap(self.clip, windows, texts, method, **options).values
            # Shares of a cosine are a patch's part of the whole: times the number of patches they are on the cosine's scale.
            return values * (values.shape[2] * values.shape[3] if method == "decomposition" else 1)

        if settings.window:
            return sliding_scores(pixels, Sliding(settings.side, settings.window, settings.stride), score, BATCH)
        rows, cols = (-size % patch for size, patch in zip(pixels.shape[1:], self.clip.patch, strict=True))
        padded = F.pad(pixels, (0, cols, 0, rows))  # with the mean colour
        whole = F.interpolate(score(padded[None]).float().cpu(), tuple(padded.shape[1:]), mode="bilinear")[0]
        return whole[:, : pixels.shape[1], : pixels.shape[2]]

    def figures(self) -> dict[str, float]:
        """Return mean IoU over classes, pixel accuracy, mean class accuracy."""
        total = self.measured.each[0].total
        return {
            "mIoU": total.mean_iou,
            "pixel accuracy": total.pixel_accuracy,
            "class accuracy": float(total.class_accuracy.nanmean()),
        }

    def per_class(self) -> dict[str, float]:
        """IoU of each class."""
        return dict(zip(self.classes, self.measured.each[0].total.iou.tolist(), strict=True))

    def names(self) -> tuple[NamesScore, ...]:
        """Return what each naming gave: as asked, plain, the worst draw of synonyms, and the smaller vocabularies."""
        scores = [_score(one, counted) for one, counted in zip(self.lists, self.measured.each, strict=True)]
        draws = [one for one in scores if one.names.startswith("synonyms")]
        if draws:
            worst = min(draws, key=lambda one: one.mean_iou)
            worst_score = NamesScore(f"worst of {len(draws)} synonym draws", *_fields(worst))
            scores = [worst_score if one is draws[0] else one for one in scores if one is draws[0] or one not in draws]
        return tuple(scores)


def _fields(one: NamesScore) -> tuple[Any, ...]:
    return one.mean_iou, one.low, one.high, one.lost, one.source


def _score(one: TextList, counted: _Count) -> NamesScore:
    pictures = torch.stack(counted.pictures) if counted.pictures else torch.zeros(0, 3, one.classes)
    low, high = bootstrap_miou(pictures)
    there = counted.total.counts.sum(1) > 0
    lost = float((counted.total.iou[there] == 0).float().mean()) if there.any() else float("nan")
    return NamesScore(one.label, counted.total.mean_iou, low, high, lost, one.words.source)
