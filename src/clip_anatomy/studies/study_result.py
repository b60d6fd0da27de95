"""`Study`: what replacing parts did to the answers, as numbers, as a table, as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.studies.worst_group import worst_group
from clip_anatomy.studies.zero_shot_task import ZeroShotTask

__all__ = ["Effect", "Study", "effects_of"]

SCHEMA = "clip-anatomy/study/1"
SHOWN = 12  # heads in a table: those that cost most
BEST = 4  # and those whose loss helps most
PAGE = 100  # columns of a table
WIDE = 38  # and of a name in it


@dataclass(frozen=True)
class Effect:
    """One set of replaced parts. Accuracies are in 0–1.

    Attributes:
        description: the set in words.
        selection: the parts.
        accuracy: share of the asked images that are right.
        class_mean: mean over classes of the share of their images that are right.
        groups: accuracy of each group.
        lost: images that were right and are wrong now.
        won: images that were wrong and are right now.
        change: accuracy minus that of the whole model.
        error: half the width of the 95 % interval of `change`, from the images that changed: 1.96 √((lost + won − (won − lost)²/n))/n.
    """

    description: str
    selection: Selection
    accuracy: float
    class_mean: float
    groups: tuple[float, ...]
    lost: int
    won: int
    change: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **asdict(self),
            "selection": self.selection.to_dict(),
            "spec": self.selection.spec,
            "groups": list(self.groups),
        }


@public
@dataclass(frozen=True, repr=False)
class Study(Result):
    """A study: the whole model, and what is left of it with parts replaced.

    Attributes:
        name: "layers", "last", "heads", "mlps", "class-to-class" or "selected".
        title: what was done, in words.
        by: "mean", "zero", "texts" or "swap".
        baseline: what stands in place of the parts, in words.
        model: name of the model.
        digest: hash of its weights.
        store: the store.
        images: how many were asked.
        column: where the right answers are.
        classes: names of the classes.
        group_column: where the groups are, "" for none.
        groups: (name, images) of each.
        whole: the model as it is.
        effects: the sets, in the order of the study.
        notes: what a reader must know.
        seconds: that it took, without opening the model.
    """

    presenter: ClassVar[str] = "ablation_figure"
    name: str
    title: str
    by: str
    baseline: str
    model: str
    digest: str
    store: str
    images: int
    column: str
    classes: tuple[str, ...]
    group_column: str
    groups: tuple[tuple[str, int], ...]
    whole: Effect
    effects: tuple[Effect, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ranked(self) -> tuple[Effect, ...]:
        """The sets, the one that costs most first; of equal ones that which changes more answers."""
        return tuple(sorted(self.effects, key=lambda one: (one.change, -one.lost)))

    @property
    def shown(self) -> tuple[Effect, ...]:
        """The sets that a table has room for: of single heads the extremes, else all."""
        if self.name != "heads" or len(self.effects) <= SHOWN + BEST:
            return self.ranked if self.name == "heads" else self.effects
        return (*self.ranked[:SHOWN], *self.ranked[-BEST:])

    def worst(self, one: Effect) -> dict[str, Any] | None:
        """Return name, accuracy and images of the worst group; None without groups. See `worst_group`."""
        at = worst_group(one.groups, [images for _, images in self.groups])
        return (
            None
            if at is None
            else {"name": self.groups[at][0], "accuracy": one.groups[at], "images": self.groups[at][1]}
        )

    def summary(self) -> str:
        """Write the study as text, in percent.

        Returns:
            A line for each set (of many single heads the extremes); with groups a second table, a column a group.
        """
        head = ["replaced", "accuracy", "change", "± 95 %", "per class", "lost", "won"]
        head += ["worst group (images)"] if self.groups else []
        lines: list[list[str]] = []
        for one in (self.whole, *self.shown):
            first = one is self.whole
            line = [_cut(one.description), f"{100 * one.accuracy:.2f}"]
            line += ["", ""] if first else [f"{100 * one.change:+.2f}".replace("-", "−"), f"{100 * one.error:.2f}"]
            line += [f"{100 * one.class_mean:.2f}", *(["", ""] if first else [f"{one.lost:,}", f"{one.won:,}"])]
            worst = self.worst(one)
            worst_group = (
                "" if worst is None else f"{100 * worst['accuracy']:.1f} {worst['name']} ({worst['images']:,})"
            )
            lines.append([*line, worst_group] if self.groups else line)
        setting = f"{self.images:,} images, {len(self.classes):,} classes ({self.column}, {100 / len(self.classes):.2f} by chance)"
        heading = f"{self.title}: replaced by {self.baseline}. Accuracy in percent of {setting}."
        left = len(self.effects) - len(self.shown)
        rest = [f"({left} more, between these, are in the JSON)"] if left > 0 else []
        if rest:
            lines.insert(SHOWN + 1, ["…"] + [""] * (len(head) - 1))
        text = "\n".join([heading, *_aligned([head, *lines], left=(0, 7)), *rest])
        return text + ("\n\n" + self.group_table() if self.groups else "")

    def group_table(self) -> str:
        """Accuracy of every group in percent; of many groups those that were worst to begin with."""
        worst_first = sorted(range(len(self.groups)), key=lambda at: self.whole.groups[at])
        names = [_cut(one.description) for one in (self.whole, *self.shown)]
        room = PAGE - max(map(len, [*names, f"by {self.group_column}"]))
        some: list[int] = []
        for at in worst_first:  # as many as fit on a page beside each other
            room -= len(self.groups[at][0]) + 2
            if room < 0 and some:
                break
            some.append(at)
        some.sort()
        head = [f"by {self.group_column}", *(self.groups[at][0] for at in some)]
        lines = [["(images)", *(f"{self.groups[at][1]:,}" for at in some)]]
        for name, one in zip(names, (self.whole, *self.shown), strict=True):
            lines.append([name, *(f"{100 * one.groups[at]:.1f}" for at in some)])
        left = len(self.groups) - len(some)
        more = [f"(the {len(some)} groups that were worst; {left} more are in the JSON)"] if left > 0 else []
        return "\n".join([*_aligned([head, *lines], left=(0,)), *more])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain = asdict(self)
        return {
            "schema": SCHEMA,
            **{name: value for name, value in plain.items() if name not in ("whole", "effects", "groups")},
            "groups": [{"name": name, "images": images} for name, images in self.groups],
            "whole": {**self.whole.to_dict(), "worst_group": self.worst(self.whole)},
            "effects": [{**one.to_dict(), "worst_group": self.worst(one)} for one in self.effects],
            "table": self.summary(),
        }


def effects_of(
    picks: Int[Tensor, "set image"], task: ZeroShotTask, sets: Sequence[tuple[str, Selection]]
) -> tuple[Effect, ...]:
    """Compute accuracies of every set; the first one is what the others are compared with.

    Args:
        picks: the class that each image was given, for each set.
        task: the right answers.
        sets: what each was.
    """
    labels, images = task.labels, len(task.labels)
    each = torch.bincount(labels, minlength=len(task.classes)).double()
    members = None if task.groups is None else task.groups >= 0
    grouped = torch.zeros(0) if members is None or task.groups is None else task.groups[members]
    sizes = torch.bincount(grouped.long(), minlength=len(task.group_names)).double()
    effects: list[Effect] = []
    first = None
    for (description, selection), given in zip(sets, picks, strict=True):
        right = given == labels
        first = right if first is None else first
        lost, won = int((first & ~right).sum()), int((right & ~first).sum())
        classes = torch.bincount(labels, right.double(), minlength=len(task.classes))[each > 0] / each[each > 0]
        groups = (
            torch.zeros(0) if members is None else torch.bincount(grouped, right[members].double(), len(sizes)) / sizes
        )
        effects.append(
            Effect(
                description,
                selection,
                float(right.double().mean()),
                float(classes.mean()),
                tuple(groups.tolist()),
                lost,
                won,
                (won - lost) / images,
                1.96 * max(lost + won - (won - lost) ** 2 / images, 0.0) ** 0.5 / images,
            )
        )
    return tuple(effects)


def _cut(name: str) -> str:
    return name if len(name) <= WIDE else f"{name[: WIDE - 1].rstrip()}…"


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" if at in left else f"{cell:>{width}}" for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
