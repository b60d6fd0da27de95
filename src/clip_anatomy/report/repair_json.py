"""A repair as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clip_anatomy.store.store import Store
from clip_anatomy.studies.cue_result import Found
from clip_anatomy.studies.cue_scores import Score
from clip_anatomy.studies.repair import Repaired

__all__ = ["result_of"]


def result_of(
    opened: Store, found: Found, told: Repaired, others: Sequence[tuple[str, Repaired]], select: str | None
) -> dict[str, Any]:
    """Everything that the screen says, and more.

    Args:
        opened: the store.
        found: what was found.
        told: what silencing did on the test half.
        others: the same for the other ways to choose.
        select: what was asked for with --select.
    """
    plan = found.plan
    suspects = [
        {**asdict(one), "part": one.part.name, "variance": one.variance, "silenced_alone": _scored(one.alone)}
        for one in found.suspects
    ]
    for one in suspects:
        del one["alone"]
    return {
        **told.to_dict(),
        "store": str(opened.path),
        "model": opened.manifest.model,
        "question": {"column": plan.main.column, "classes": list(plan.main.classes)},
        "cue": list(plan.cue),
        "groups_by": plan.rule,
        "split": {"told": found.split.told, "validation": len(found.split.validation), "test": len(found.split.test)},
        "asked_for": select,
        "validation_before": _scored(found.before),
        "choices": [
            {"how": one.how, "silence": [part.name for part in one.parts], "along_cue": one.along, "validation": _scored(one.score), "suggested": one is found.best}
            for one in found.choices
        ],
        "other_ways": [{"how": how, **one.to_dict()} for how, one in others],
        "suspects": suspects,
        "all_notes": [*found.notes, *told.notes],
    }  # fmt: skip


def _scored(told: Score) -> dict[str, Any]:
    groups = [None if value != value else value for value in told.groups]  # noqa: PLR0124
    others = [None if value != value else value for value in told.others]  # noqa: PLR0124
    return {"average": told.average, "worst": told.worst, "mean": told.mean, "groups": groups, "others": others}
