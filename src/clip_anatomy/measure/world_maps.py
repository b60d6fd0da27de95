"""All methods of `heatmap` in one table, on pictures whose objects are known: the demo world, or photographs with masks.

In the world each picture shows one object, and the map of "a red circle" is asked for, with every other colour and shape as
contrast. In photographs every class of a mask is asked for, with the other classes of the folder as contrast. Everything is
measured at patch resolution: a patch belongs to the object when at least half of it does. mIoU is the mean of background and
foreground over all pictures, accumulated, as ImageNet-Segmentation has it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadSpec, ClipAnatomyError, UnsupportedModel
from clip_anatomy.maps.dense import Recipe
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.methods import METHODS, method_of, methods_of
from clip_anatomy.measure.datasets.masked import Masked, check_sizes
from clip_anatomy.measure.foreground import aligned_mask
from clip_anatomy.measure.pointing import Pointing, points_at
from clip_anatomy.measure.segmentation import IGNORED, Confusion, Mean, average_precision
from clip_anatomy.model.clip import Clip
from clip_anatomy.model.text_cache import embed_texts
from clip_anatomy.model.zero_shot import imagenet_templates
from clip_anatomy.world.dataset import World
from clip_anatomy.world.evaluate import TEST_FRAMES, article, classifier, pixels
from clip_anatomy.world.names import COLOURS, SHAPES

__all__ = ["THRESHOLDS", "VARIANTS", "Case", "MapScore", "cases_of_masks", "cases_of_world", "map_table", "patch_mask"]

Asked = Literal["object", "shape"]
THRESHOLDS = ("mean", "half", "otsu")
BATCH = 50
VARIANTS: dict[str, tuple[str | Recipe, dict[str, Any]]] = {
    "surgery, all blocks": ("surgery", {"depth": 99}),
    "kk, all blocks": (Recipe(("kk",), residual=False, ffn=False, depth=99, minus_mean=True), {}),
}
"""Rows beside METHODS: what the second path does when it runs through every block, not the published few."""


@dataclass(frozen=True)
class Case:
    """Some pictures at once, and what is asked of each.

    Attributes:
        pixels: preprocessed.
        texts: all texts, unit rows; contrast for each other.
        asked: (picture of the batch, text, mask at patch resolution: 1, 0, IGNORED).
    """

    pixels: Float[Tensor, "image 3 row col"]
    texts: Float[Tensor, "text embed"]
    asked: tuple[tuple[int, int, Tensor], ...]


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
        seconds: for all pictures.
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


def patch_mask(mask: Bool[Tensor, "row col"], grid: tuple[int, int]) -> Bool[Tensor, "_row _col"]:
    """Which patches lie at least half on the object.

    Example:
        >>> patch_mask(torch.tensor([[True, True, False, False], [False, True, False, False]]), (1, 2)).tolist()
        [[True, False]]
    """
    return F.adaptive_avg_pool2d(mask[None].float(), grid)[0] >= 0.5


def cases_of_world(
    clip: Clip, pictures: int = 500, *, seed: int = 0, split: str = "test", asked_for: Asked = "object"
) -> Iterator[Case]:
    """Unseen pictures of one object, and texts, each the mean of five prompts that were not trained on.

    Args:
        clip: a model whose input is 64 × 64, as the demo's; another size is drawn at that size.
        pictures: how many.
        seed: of the world.
        split: of the world.
        asked_for: "object": 96 texts, a colour and a shape each ("a red circle"); "shape": the twelve shapes alone.

    Yields:
        Batches.
    """
    size = clip.preprocess.size[0]
    world = World(seed=seed, size=size, split=split, length=12 * pictures + 200)
    facts = world.facts(np.arange(len(world)))
    single = np.flatnonzero(facts.count == 1)[:pictures]
    if asked_for == "shape":
        texts = classifier(clip.encode_text, "shape")
    else:
        names = [article(f"{colour} {shape}") for colour in COLOURS for shape in SHAPES]
        texts = clip.encode_text(names, templates=TEST_FRAMES)
    row, col = clip.patch
    grid = (size // row, size // col)
    for first in range(0, len(single), BATCH):
        scenes = world.batch(single[first : first + BATCH])
        masks = torch.from_numpy(scenes.masks[:, 0])
        wanted = scenes.facts.shape[:, 0] + (len(SHAPES) * scenes.facts.colour[:, 0] if asked_for == "object" else 0)
        asked = [
            (at, int(text), patch_mask(mask, grid).long())
            for at, (text, mask) in enumerate(zip(wanted, masks, strict=True))
        ]
        yield Case(pixels(scenes.images), texts, tuple(asked))


def cases_of_masks(
    clip: Clip,
    data: Masked,
    *,
    prompts: int = 80,
    limit: int | None = None,
    skipped: list[tuple[str, str]] | None = None,
) -> Iterator[Case]:
    """Every class of every mask, through the model's own scaling and crop. Classes of less than one patch are left out.

    Args:
        clip: an opened model.
        data: pictures with masks.
        prompts: 80 or 1.
        limit: take only the first pictures.
        skipped: where id and reason of what cannot be used is put.

    Yields:
        One picture each.
    """
    if prompts == 80:
        texts = embed_texts(clip, data.classes, imagenet_templates())
    else:
        texts = F.normalize(embed_texts(clip, [f"a photo of a {name}." for name in data.classes]), dim=-1)
    for entry in data.entries[:limit]:
        try:
            image, mask = entry.picture(), entry.mask()
            check_sizes(image, mask)
        except ClipAnatomyError as error:
            if skipped is not None:
                skipped.append((entry.id, str(error)))
            continue
        where = clip.preprocess.geometry(*image.size)
        seen = aligned_mask(mask, where)
        grid = (where.size[0] // clip.patch[0], where.size[1] // clip.patch[1])
        unknown = patch_mask(seen == IGNORED, grid)
        asked: list[tuple[int, int, Tensor]] = []
        for number in torch.unique(seen[seen != IGNORED]).tolist():
            there = patch_mask(seen == number, grid) & ~unknown
            if number != data.background and bool(there.any()):
                asked.append((0, int(number), there.long().masked_fill(unknown, IGNORED)))
        yield Case(clip.preprocess(image)[None], texts, tuple(asked))


def map_table(
    clip: Clip,
    cases: Callable[[], Iterator[Case]] | Sequence[Case],
    methods: Sequence[str] | None = None,
    *,
    threshold: str = "mean",
    report: Callable[[str, int, int], None] | None = None,
) -> tuple[MapScore, ...]:
    """Measure methods on the same pictures.

    Args:
        clip: an opened model.
        cases: the pictures.
        methods: names of methods or of VARIANTS; by default all that have a meaning on this model and need nothing else.
        threshold: above it a patch is foreground: "mean" of the map (the papers'), "half" of its range, or "otsu".
        report: called with the method, how many of them are done, how many there are.

    Returns:
        One row per method, in the given order. A method that refuses this model has NaN and says why.

    Raises:
        BadSpec: an unknown method or threshold.
        UnsupportedModel: a method that has no meaning on it.
    """
    known = methods_of(clip)
    further = VARIANTS if known is METHODS else {}
    every = (*(name for name in known if not known[name].needs), *further)
    chosen = every if methods is None else tuple(methods)
    for name in chosen:
        if name not in further:
            method_of(clip, name)
    if threshold not in THRESHOLDS:
        raise BadSpec(f"threshold {threshold!r} is not known. Type one of: {', '.join(THRESHOLDS)}")
    kept = list(cases() if callable(cases) else cases)
    rows: list[MapScore] = []
    for at, name in enumerate(chosen):
        if report is not None:
            report(f"maps by {name}", at, len(chosen))
        rows.append(_measured(clip, kept, name, threshold))
    return tuple(rows)


def _measured(clip: Clip, cases: Sequence[Case], name: str, threshold: str) -> MapScore:
    confusion, precision, pointing, seconds, maps = Confusion.empty(2), Mean(), Pointing(), 0.0, 0
    method, options = VARIANTS.get(name, (name, {}))
    nan = float("nan")
    none = MapScore(name, nan, nan, nan, nan, nan, nan, 0)
    for case in cases:
        start = perf_counter()
        try:
            found = _asked_maps(clip, case, method, options)
        except UnsupportedModel as error:
            return replace(none, why=str(error))
        seconds += perf_counter() - start
        for map_, (_, _, mask) in zip(found, case.asked, strict=True):
            said = map_ > _level(map_, threshold)
            confusion = confusion.add(said.long(), mask)
            counted = mask != IGNORED
            precision = precision.add(average_precision(map_[counted], mask[counted] == 1))
            pointing = pointing.add(points_at(map_, mask))
            maps += 1
    return MapScore(
        name,
        confusion.mean_iou,
        float(confusion.iou[1]),
        confusion.pixel_accuracy,
        precision.value,
        pointing.rate,
        seconds,
        maps,
    )


def _asked_maps(clip: Clip, case: Case, method: str | Recipe, options: dict[str, Any]) -> list[Tensor]:
    """The map of each question, with all texts as contrast; of methods that have no use for a contrast, no other text is drawn."""
    if isinstance(method, Recipe) or not method_of(clip, method).alone:
        values = heatmap(clip, case.pixels, case.texts, method, **options).values.cpu()
        return [values[image, text] for image, text, _ in case.asked]
    maps: dict[tuple[int, int], Tensor] = {}
    for text in sorted({text for _, text, _ in case.asked}):
        images = [image for image, asked, _ in case.asked if asked == text]
        values = heatmap(clip, case.pixels[images], case.texts[text : text + 1], method, **options).values.cpu()
        maps |= {(image, text): one[0] for image, one in zip(images, values, strict=True)}
    return [maps[image, text] for image, text, _ in case.asked]


def _level(map_: Float[Tensor, "row col"], threshold: str) -> float:
    if threshold == "mean":
        return float(map_.mean())
    low, high = float(map_.min()), float(map_.max())
    return (low + high) / 2 if threshold == "half" else _otsu(map_)


def _otsu(map_: Float[Tensor, "row col"]) -> float:
    """The value between two neighbours in order that separates the two groups best (Otsu 1979): most variance between them."""
    ordered = map_.flatten().double().sort().values
    n = len(ordered)
    below = ordered.cumsum(0)[:-1]
    count = torch.arange(1, n, dtype=torch.float64)
    between = (below / count - (ordered.sum() - below) / (n - count)) ** 2 * count * (n - count)
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)
