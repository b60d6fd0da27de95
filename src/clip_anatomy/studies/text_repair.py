"""`repair --tower text`: heads of the text tower that put a cue into the class texts ("a bird in the sky"), found, ablated, measured.

A class's embedding is a sum over the parts of the text tower (`class_parts`), so what ablating a head changes of every image's answer is known without
running anything:  x·(μ_head − head(c))  for an image x and the class c. Heads are chosen greedily on one half, whole or along the cue's texts only;
the edit is an ordinary one (`Edit` with tower="text"), and the other half is answered with the edited encoder's own class texts.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.text_explanation import text_moments
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.studies.bootstrap import AccuracyChange
from clip_anatomy.studies.cue_scores import AblatedLogits, Budget, Score, greedy_selection, score, scores_alone
from clip_anatomy.studies.image_split import Split
from clip_anatomy.studies.repair_ablations import PartAblation
from clip_anatomy.studies.repair_effect import RepairEffect, effect_of
from clip_anatomy.studies.repair_task import RepairTask, TaskSettings, repair_task
from clip_anatomy.studies.text_ablation import class_parts
from clip_anatomy.towers.transformer import as_transformer

__all__ = ["TextHead", "TextRepair", "repair_text"]

SCHEMA = "clip-anatomy/repair/text/1"
SHOWN = 8


@dataclass(frozen=True)
class TextHead:
    """A head of the text tower: accuracies of the images to choose on with it alone at its mean, and whether it is ablated."""

    head: tuple[int, int]
    alone: Score
    ablated: bool


@public
@dataclass(frozen=True, repr=False)
class TextRepair(Result):
    """A repair of the text tower.

    Attributes:
        store: of the images.
        clip: its model, unedited.
        task: what is asked, with its groups.
        split: images to choose on and to report on.
        heads: all of the text tower, those that help most alone first.
        before: accuracies of the images to choose on.
        effect: accuracies of the others before and after.
        edit: heads of the text tower at their mean, whole or along the cue: an edit like any other.
        notes: what a reader must know.
    """

    presenter: ClassVar[str] = "repair_folder"
    store: Store = field(repr=False)
    clip: Clip = field(repr=False)
    task: RepairTask = field(repr=False)
    split: Split = field(repr=False)
    heads: tuple[TextHead, ...]
    before: Score
    effect: RepairEffect
    edit: Edit = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[AccuracyChange, ...]:
        """Every accuracy that was measured, before and after."""
        effect = self.effect
        named = replace(effect.worst, name="worst group"), replace(effect.mean, name="mean over groups")
        return (
            *effect.groups,
            *named,
            replace(effect.average, name=f"average ({self.task.main.column})"),
            *effect.others,
        )

    def summary(self) -> str:
        """Return the heads that are ablated, and accuracies before and after."""
        rows = [
            (one.name, f"{one.before:.1%}", f"{one.after:.1%}", f"{100 * one.change_interval[0]:+.1f} to {100 * one.change_interval[1]:+.1f}")
            for one in self.rows
        ]  # fmt: skip
        spec, images = self.effect.ablation.spec, len(self.split.test)
        title = (
            f"Which {self.task.main.column}? Heads of the text tower at their mean: {spec}; {images:,} other pictures"
        )
        alone = ", ".join(f"{one.head[0]}.{one.head[1]} {one.alone.worst:.1%}" for one in self.heads[:SHOWN])
        table = text_table(("", ">before", ">after", ">95 % of the change"), rows, title=title)
        return f"{table}\nworst group with one head alone at its mean ({self.before.worst:.1%} with none): {alone}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        task = self.task
        return {
            "schema": SCHEMA,
            **self.effect.to_dict(),
            "tower": "text",
            "store": str(self.store.path),
            "model": self.store.manifest.model,
            "task": {"column": task.main.column, "classes": list(task.main.classes)},
            "cue": list(task.cue),
            "groups_by": task.rule,
            "split": {
                "source": self.split.source, "validation": len(self.split.validation), "test": len(self.split.test)
            },
            "heads": [
                {
                    "head": list(one.head), "ablated": one.ablated,
                    "alone": {"average": one.alone.average, "worst_group": one.alone.worst, "mean_over_groups": one.alone.mean},
                }
                for one in self.heads
            ],
            "all_notes": list(self.notes),
        }  # fmt: skip


def repair_text(
    store: Store,
    clip: Clip,
    settings: TaskSettings,
    halves: Split,
    *,
    budget: Budget,
    select: str | None = None,
    progress: Progress | None = None,
) -> TextRepair:
    """Find the heads of the text tower that put a cue into the class texts, and measure what ablating them is worth.

    Args:
        store: of the pictures.
        clip: its model.
        settings: what is asked.
        halves: pictures to choose on, and to report on.
        budget: what may be lost, and how many heads.
        select: these heads instead of a choice: "2.0,3.1", "2.0 along cue".
        progress: told class texts.

    Raises:
        UnsupportedModel: a text tower that its own library runs as one part.
        BadSpec: heads that do not exist.
        BadInput: no cue in words, where heads are to be ablated along it; as `repair` besides.
    """
    tower = as_transformer(clip.text_tower)
    if not tower.layers:
        raise UnsupportedModel(
            "this model's library runs its text tower as one part: it has no heads to ablate. Type tower='image'"
        )
    task = repair_task(store, clip, halves.validation, settings)
    prompts = [some for one in task.tasks for some in one.prompts]
    moments = text_moments(clip, [text for some in prompts for text in some], progress=progress)
    parts = class_parts(clip, prompts, progress=progress)
    rows = halves.validation
    labels = task.labels(store, rows)
    images = store.embeddings(rows, unit=True)
    heads = [(layer, head) for layer in range(tower.layers) for head in range(tower.heads)]
    frame = task.cue_frame
    whole = _ablated(store, task, rows, images, labels, [parts.heads[:, layer, head] for layer, head in heads])
    before = score(whole, whole.base)
    ablation = _typed(select, tower.layers, tower.heads, task) if select is not None else None
    if ablation is None:
        choices = [PartAblation(_selection(heads, greedy_selection(whole, budget)))]
        gains = [_worth(whole, choices[0], heads, budget)]
        if len(frame):
            along = [parts.heads[:, layer, head] @ frame.T @ frame for layer, head in heads]
            projected = _ablated(store, task, rows, images, labels, along)
            choices.append(PartAblation(_selection(heads, greedy_selection(projected, budget)), "cue"))
            gains.append(_worth(projected, choices[1], heads, budget))
        ablation = choices[gains.index(max(gains))]
    edit = _edit(clip, ablation, moments, frame, len(prompts), task)
    with torch.no_grad():
        after = EditedClip(clip, edit).embed_prompts(prompts).cpu()
    test = halves.test
    of_test = store.embeddings(test, unit=True)
    base, labels = of_test @ task.texts.T, task.labels(store, test)
    compared = AblatedLogits(
        base, (of_test @ after.T - base)[None], task.ends, labels, task.groups(store, test, labels[0]), task.group_names, task.cue_task
    )  # fmt: skip
    effect = effect_of(store, task, ablation, test, (compared, of_test @ after.T))
    scores = sorted(zip(heads, scores_alone(whole), strict=True), key=lambda one: -one[1].objective)
    told = tuple(TextHead(head, alone, head in ablation.selection.heads) for head, alone in scores)
    notes = (*task.notes, *effect.notes)
    if not ablation.selection:
        notes = (
            *notes,
            "no head of the text tower helps: class texts do not mislead here, or their heads cannot be told apart",
        )
    return TextRepair(store, clip, task, halves, told, before, effect, edit, tuple(dict.fromkeys(notes)))


def _ablated(  # noqa: PLR0917
    store: Store,
    task: RepairTask,
    rows: np.ndarray,
    images: Float[Tensor, "image embed"],
    labels: Tensor,
    wrote: list[Float[Tensor, "text embed"]],
) -> AblatedLogits:
    """Compute cosines as they are, and what holding each head at its mean over the class texts adds."""
    deltas = torch.stack([images @ (one.mean(0) - one).T for one in wrote])
    groups = task.groups(store, rows, labels[0])
    return AblatedLogits(images @ task.texts.T, deltas, task.ends, labels, groups, task.group_names, task.cue_task)


def _selection(heads: list[tuple[int, int]], chosen: tuple[int, ...]) -> Selection:
    return Selection(tuple(sorted(heads[at] for at in chosen)))


def _worth(ablated: AblatedLogits, ablation: PartAblation, heads: list[tuple[int, int]], budget: Budget) -> float:
    chosen = [heads.index(one) for one in ablation.selection.heads]
    return score(ablated, ablated.base + ablated.deltas[chosen].sum(0)).objective - budget.least * len(chosen)


def _typed(select: str, layers: int, heads: int, task: RepairTask) -> PartAblation:
    """Read what was typed: heads, perhaps along the cue."""
    spec, along, _ = " ".join(select.split()).partition(" along cue")
    if along and len(task.cue) < 2:
        raise BadInput(f"{select}: the cue is not known in words. Type cue='sky, water', or leave ' along cue' away")
    where: Literal["", "cue"] = "cue" if along else ""
    return PartAblation(Selection.parse(spec, layers, heads), where)


def _edit(  # noqa: PLR0917
    clip: Clip,
    ablation: PartAblation,
    moments: Moments,
    frame: Float[Tensor, "direction embed"],
    texts: int,
    task: RepairTask,
) -> Edit:
    return Edit.of(
        clip,
        ablation.selection,
        moments,
        directions=dict.fromkeys(ablation.selection.heads, frame) if ablation.along_cue else None,
        tower="text",
        measured_on=f"the prompts of {texts:,} class texts",
        notes=f"{task.main.column}, cue: {', '.join(task.cue)}",
    )
