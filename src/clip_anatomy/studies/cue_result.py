"""What the search for a cue found: `Suspect`s, three ways to rank them, `Choice`s of which to silence, and all of it as `Found`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.studies.ablated_answers import Part, Silence, selection_of
from clip_anatomy.studies.cue_scores import Score
from clip_anatomy.studies.repair_plan import Plan
from clip_anatomy.studies.validation_split import Split

__all__ = ["Choice", "Found", "Suspect", "ranked"]


@dataclass(frozen=True)
class Suspect:
    """One part, seen three ways. Figures are of the validation split.

    Attributes:
        part: the head or MLP.
        role: what the head is about, "" for an MLP.
        sure: confidence of the role, 0–1.
        texts: its first texts.
        name: −1 … 1: how much its name speaks of the cue and not of the classes; None for an MLP, or without a cue in words.
        cue: variance along the cue's texts, in squared parts of a cosine; None without a cue in words.
        of_class: variance along the class texts.
        alone: accuracies when it alone is silenced.
    """

    part: Part
    role: str
    sure: float
    texts: tuple[str, ...]
    name: float | None
    cue: float | None
    of_class: float
    alone: Score

    @property
    def variance(self) -> float | None:
        """Variance along the cue's texts minus that along the class texts."""
        return None if self.cue is None else self.cue - self.of_class


@dataclass(frozen=True)
class Choice:
    """Some parts to silence, how they were chosen, and what that does on the validation split.

    Attributes:
        how: in words.
        parts: which.
        score: accuracies with them silenced.
        bears: whether the average and the other questions bear it.
        along: only what the heads write along the cue's texts is silenced, not all that they write.
    """

    how: str
    parts: tuple[Part, ...]
    score: Score
    bears: bool = True
    along: bool = False

    @property
    def told(self) -> str:
        """The parts, in the order in which they were chosen."""
        return " ".join(part.name for part in self.parts) or "none"

    @property
    def silence(self) -> Silence:
        """As it is done."""
        return Silence(selection_of(self.parts), self.along)


@dataclass(frozen=True)
class Found:
    """What `find_cue` found.

    Attributes:
        plan: what was asked.
        split: the halves.
        suspects: every part of the store.
        choices: sets of parts, one a way of choosing.
        best: the one to suggest: the best on the validation split of those that the rest bears; perhaps no part at all.
        before: accuracies of the validation split with nothing silenced.
        cost: accuracy that the average and each other question may lose.
        cue_roles: properties that the cue's texts are about.
        atlas: names of the heads.
        notes: what a reader must know.
    """

    plan: Plan
    split: Split
    suspects: tuple[Suspect, ...]
    choices: tuple[Choice, ...]
    best: Choice
    before: Score
    cost: float
    cue_roles: tuple[str, ...]
    atlas: Atlas = field(repr=False)
    notes: tuple[str, ...] = ()

    def suspect(self, part: Part) -> Suspect:
        """What is known of a part."""
        return next(one for one in self.suspects if one.part == part)

    def suspected(self, k: int = 8) -> tuple[Suspect, ...]:
        """The parts to show: those of the suggestion, then those that stand first in any of the three rankings."""
        orders = [self.ranked("group accuracy"), self.ranked("variance"), self.ranked("name")]
        mixed = [part for place in range(k) for order in orders for part in order[place : place + 1]]
        shown = list(dict.fromkeys([*self.best.parts, *mixed]))
        return tuple(self.suspect(part) for part in shown[: max(k, len(self.best.parts))])

    def ranked(self, way: str) -> list[Part]:
        """Parts that speak of the cue, the most suspected first; `way` is "name", "variance" or "group accuracy"."""
        return ranked(self.suspects, way, self.before)


def ranked(suspects: Sequence[Suspect], way: str, before: Score) -> list[Part]:
    """Parts that speak of the cue, the most suspected first.

    Args:
        suspects: all parts.
        way: "name", "variance" or "group accuracy".
        before: accuracies with nothing silenced.
    """
    values = {
        one.part: {"name": one.name, "variance": one.variance, "group accuracy": one.alone.goal - before.goal}[way]
        for one in suspects
    }
    speaking = [part for part, value in values.items() if value is not None and value > 0]
    return sorted(speaking, key=lambda part: (-(values[part] or 0.0), part))
