"""Threshold and logit scale of a protocol with background, chosen on pictures that are held out and not measured."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch

from clip_anatomy.data.masked import MaskedPicture, spread
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.metrics import Confusion
from clip_anatomy.evaluation.semantic_task import SemanticTask
from clip_anatomy.evaluation.sliding_windows import likeliest_classes
from clip_anatomy.progress import Progress, silent

__all__ = ["SCALES", "THRESHOLDS", "calibrated", "held_out"]

SCALES = (20.0, 30.0, 40.0, 50.0, 65.0, 80.0, 100.0)
THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)


def held_out(
    entries: Sequence[MaskedPicture], count: int
) -> tuple[tuple[MaskedPicture, ...], tuple[MaskedPicture, ...]]:
    """Part pictures: so many to choose on, evenly spread over the data set, and the rest to measure.

    Raises:
        BadSpec: nothing would be left to measure, or to choose on.
    """
    if not 1 <= count < len(entries):
        raise BadSpec(
            f"calibrate={count} of {len(entries)} pictures: some to choose on and some to measure were expected. "
            f"Type: calibrate={max(1, len(entries) // 10)}"
        )
    chosen = tuple(spread(tuple(entries), count))
    ids = {one.id for one in chosen}
    return chosen, tuple(one for one in entries if one.id not in ids)


def calibrated(
    task: SemanticTask, entries: Sequence[MaskedPicture], progress: Progress | None = None
) -> tuple[SemanticTask, str]:
    """Choose the logit scale and threshold with the highest mIoU on some pictures.

    Args:
        task: whose settings are changed; nothing has been measured by it.
        entries: held out.
        progress: told how many are done.

    Returns:
        The task with the settings that were found, and how they were found.

    Raises:
        BadSpec: the protocol has no background, so that neither decides anything.
        BadInput: none of the pictures can be read.
    """
    if task.background is None:
        raise BadSpec("without a background neither threshold nor logit scale decides anything. Leave calibrate out")
    owner, settings, tell = task.lists[0].words.owner, task.settings, progress or silent
    grid = list(product(SCALES, THRESHOLDS))
    counts = {point: Confusion.empty(len(task.classes)) for point in grid}
    failed: list[str] = []
    for done, entry in enumerate(entries):
        tell("calibrating", done, len(entries))
        try:
            (scores, *_), truth = task.scored(entry)
        except BadInput as error:
            failed.append(f"{entry.id}: {error}")
            continue
        for scale in SCALES:
            predicted, chance = likeliest_classes(
                scores,
                (truth.shape[0], truth.shape[1]),
                owner,
                logit_scale=scale,
                area=settings.area,
                background=task.background,
            )
            for least in THRESHOLDS:
                cut = torch.where(chance < least, task.background, predicted)
                counts[scale, least] = counts[scale, least].add(cut, truth)
    if len(failed) == len(entries):
        raise BadInput(f"none of the {len(entries)} held-out pictures could be read. The first, {failed[0]}")
    best = max(grid, key=lambda point: counts[point].mean_iou)
    note = (
        f"logit scale and threshold chosen on {len(entries) - len(failed)} held-out pictures, {len(grid)} pairs "
        f"(mIoU there {100 * counts[best].mean_iou:.2f} %)"
    )
    return replace(task, settings=replace(settings, logit_scale=best[0], threshold=best[1])), note
