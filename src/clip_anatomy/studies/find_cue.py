"""Find a spurious cue: rank heads and MLPs by how much they carry it, and choose by several strategies which to ablate.

    role            all heads whose role is the cue's
    name, variance  down each of these rankings, as far as it pays
    group accuracy  greedy selection, part by part, by the worst group and the mean over groups
    along the cue   greedy selection of heads of which only what they write along the cue's texts is ablated

Rankings and selections see the validation split only: no label, group, embedding or head of a test image is read before the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clip_anatomy.errors import StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.ground_truth import is_world
from clip_anatomy.progress import Progress, silent
from clip_anatomy.store.store import Store
from clip_anatomy.studies.cue_scores import (
    BUDGET,
    AblatedLogits,
    Budget,
    Score,
    best_prefix,
    greedy_selection,
    score,
    scores_alone,
)
from clip_anatomy.studies.cue_suspects import (
    RANKINGS,
    RankedBy,
    Suspect,
    atlas_of_rows,
    properties_of,
    ranked,
    suspects_of,
)
from clip_anatomy.studies.image_split import Split, halves_of
from clip_anatomy.studies.repair_ablations import (
    BYTES,
    HeadOrMlp,
    PartAblation,
    ablated_logits,
    parts_of,
    selection_of,
)
from clip_anatomy.studies.repair_task import DEFAULTS, RepairTask, TaskSettings, repair_task

__all__ = ["Candidate", "CueSearch", "find_cue"]

FEW = 20  # validation images in a group: a choice that hangs on fewer is said to
MANY = 48  # candidates, where not all parts fit into memory


@dataclass(frozen=True)
class Candidate:
    """Parts that a strategy selects, and what ablating them does on the validation split.

    Attributes:
        strategy: how they were selected, in words.
        parts: in the order in which they were selected.
        score: accuracies with them ablated.
        within_budget: whether the average and the other tasks lost no more than they may.
        along_cue: only what the heads write along the cue's texts is ablated, not all that they write.
    """

    strategy: str
    parts: tuple[HeadOrMlp, ...]
    score: Score
    within_budget: bool = True
    along_cue: bool = False

    @property
    def spec(self) -> str:
        """The parts in their order."""
        return " ".join(part.name for part in self.parts) or "none"

    @property
    def ablation(self) -> PartAblation:
        """What is ablated."""
        return PartAblation(selection_of(self.parts), "cue" if self.along_cue else "")


@dataclass(frozen=True)
class CueSearch:
    """What `find_cue` found.

    Attributes:
        task: what was asked.
        split: validation and test images.
        suspects: every part of the store.
        candidates: sets of parts, one a strategy.
        best: the one to suggest: the best on the validation split of those within the budget; perhaps no part at all.
        before: accuracies of the validation split with nothing ablated.
        cue_roles: properties that the cue's texts are about.
        atlas: names of the heads.
        notes: what a reader must know.
    """

    task: RepairTask
    split: Split
    suspects: tuple[Suspect, ...]
    candidates: tuple[Candidate, ...]
    best: Candidate
    before: Score
    cue_roles: tuple[str, ...]
    atlas: Atlas = field(repr=False)
    notes: tuple[str, ...] = ()

    def suspected(self, k: int = 8) -> tuple[Suspect, ...]:
        """Return the parts to show: those of the suggestion, then those that stand first in any of the rankings."""
        suspect = {one.part: one for one in self.suspects}
        shown = list(dict.fromkeys([*self.best.parts, *_interleaved(self.suspects, self.before, k)]))
        return tuple(suspect[part] for part in shown[: max(k, len(self.best.parts))])

    def ranked(self, by: RankedBy) -> list[HeadOrMlp]:
        """Rank the parts that speak of the cue, the most suspected first."""
        return ranked(self.suspects, by, self.before)


def find_cue(
    store: Store,
    clip: Clip,
    settings: TaskSettings = DEFAULTS,
    halves: Split | None = None,
    *,
    budget: Budget = BUDGET,
    heads_only: bool = False,
    atlas: "Atlas | str | Path | None" = None,
    progress: Progress | None = None,
) -> CueSearch:
    """Find the parts that carry a cue, and select which of them to ablate.

    Args:
        store: a store with labels, and with groups or a cue in words.
        clip: its model.
        settings: what is asked, and which columns hold it.
        halves: images to choose on and to report on; by default halves by id.
        budget: what ablating may cost on the validation split.
        heads_only: leave MLPs alone where the store holds them.
        atlas: names of the heads; by default made from the validation images alone.
        progress: told as it goes.

    Returns:
        CueSearch. Nothing of the test split was read.

    Raises:
        BadInput: labels without classes, one class, empty groups, scores that are not numbers.
        StoreError: a store of another model, or one made with --convention official.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:300:test:balanced", folder + "/store")
        ...     result = find_cue(ca.Store.open(folder + "/store"), clip)
        >>> "7.3" in [part.name for part in result.best.parts]
        True
    """
    tell = progress or silent
    store.manifest.refuse_other(clip.name, clip.digest, store.path)
    if store.manifest.convention != "centered":
        raise StoreError(
            f"{store.path} was made with convention={store.manifest.convention!r}; a repair needs one in which a part that writes nothing "
            "contributes nothing. Type: clip-anatomy index SOURCE NEW-STORE --convention centered"
        )
    halves = halves or halves_of(store)
    rows = halves.validation
    task = repair_task(store, clip, rows, settings)
    named_heads = _atlas(store, clip, rows, atlas, tell)
    parts = tuple(part for part in parts_of(store) if part.head >= 0 or not heads_only)
    alone, ablated = _each_alone(store, task, rows, parts, tell)
    suspects = suspects_of(
        store, task, rows, list(zip(parts, alone, strict=True)), atlas=named_heads, clip=clip, progress=tell
    )
    cue_roles = properties_of(clip, task.cue)
    if ablated is None:  # not all parts fit into memory
        bare = ablated_logits(store, task, rows, ())
        parts = _most_suspected(suspects, score(bare, bare.base), cue_roles, _fitting(task, rows))
        ablated = ablated_logits(store, task, rows, parts)
    before = score(ablated, ablated.base)
    candidates = _candidates(suspects, ablated, parts, cue_roles, budget)
    notes = (*task.notes, *_notes(store, task, ablated, heads_only=heads_only))
    heads = tuple(part for part in parts if part.head >= 0)
    if len(task.cue) > 1 and heads:
        del ablated  # the next one is as large
        along = ablated_logits(store, task, rows, heads, along_cue=True)
        selected = greedy_selection(along, budget)
        candidates += (_candidate("along the cue only", along, heads, selected, budget.cost, along_cue=True),)
    able = [Candidate("nothing helps", (), before), *(one for one in candidates if one.within_budget and one.parts)]
    best = max(able, key=lambda one: (round(one.score.objective - budget.least * len(one.parts), 6), -len(one.parts)))
    return CueSearch(task, halves, suspects, candidates, best, before, cue_roles, named_heads, notes)


def _candidates(
    suspects: Sequence[Suspect],
    ablated: AblatedLogits,
    parts: Sequence[HeadOrMlp],
    cue_roles: tuple[str, ...],
    budget: Budget,
) -> tuple[Candidate, ...]:
    """Whole parts, selected by each strategy."""
    place, before = {part: at for at, part in enumerate(parts)}, score(ablated, ablated.base)
    selected: dict[str, Sequence[int]] = {}
    if of_role := [place[part] for part in _of_role(suspects, cue_roles) if part in place]:
        selected[" + ".join(f"role={role}" for role in cue_roles)] = of_role
    for by in ("name", "variance"):
        if order := [place[part] for part in ranked(suspects, by, before) if part in place]:
            selected[f"by {by}"] = best_prefix(ablated, order, budget)
    selected["by group accuracy"] = greedy_selection(ablated, budget)
    return tuple(_candidate(strategy, ablated, parts, at, budget.cost) for strategy, at in selected.items())


def _candidate(
    strategy: str,
    ablated: AblatedLogits,
    parts: Sequence[HeadOrMlp],
    selected: Sequence[int],
    cost: float,
    *,
    along_cue: bool = False,
) -> Candidate:
    after = score(ablated, ablated.base + ablated.deltas[list(selected)].sum(0))
    able = after.within_budget(score(ablated, ablated.base), cost, ablated.cue_task)
    return Candidate(strategy, tuple(parts[at] for at in selected), after, able, along_cue)


def _atlas(store: Store, clip: Clip, rows: np.ndarray, given: "Atlas | str | Path | None", progress: Progress) -> Atlas:
    if given is None:
        return atlas_of_rows(store, clip, rows, progress)
    opened = given if isinstance(given, Atlas) else Atlas.load(given)
    if opened.digest != store.manifest.digest:
        raise StoreError(
            f"this atlas is of {opened.model}, {store.path} of {store.manifest.model}. Leave atlas= away, or make one: clip-anatomy atlas "
            f"{store.path}"
        )
    return opened


def _each_alone(
    store: Store, task: RepairTask, rows: np.ndarray, parts: tuple[HeadOrMlp, ...], progress: Progress
) -> tuple[list[Score], AblatedLogits | None]:
    """Score the model with each part ablated alone; give the logits of all parts, if they fit into memory."""
    fit = _fitting(task, rows)
    if fit >= len(parts):
        ablated = ablated_logits(store, task, rows, parts, progress=progress)
        return list(scores_alone(ablated)), ablated
    scores: list[Score] = []
    for start in range(0, len(parts), fit):
        scores += scores_alone(ablated_logits(store, task, rows, parts[start : start + fit]))
        progress("ablating each part", len(scores), len(parts))
    return scores, None


def _fitting(task: RepairTask, rows: np.ndarray) -> int:
    """Count the parts that fit into memory."""
    return max(1, BYTES // max(4 * len(rows) * len(task.texts), 1))


def _most_suspected(
    suspects: Sequence[Suspect], before: Score, cue_roles: tuple[str, ...], fit: int
) -> tuple[HeadOrMlp, ...]:
    """Those named after the cue, then the first of each ranking, as many as fit."""
    order = [*_of_role(suspects, cue_roles), *_interleaved(suspects, before, len(suspects))]
    return tuple(sorted(list(dict.fromkeys(order))[: min(fit, MANY)])) or (suspects[0].part,)


def _of_role(suspects: Sequence[Suspect], cue_roles: tuple[str, ...]) -> list[HeadOrMlp]:
    return [one.part for one in suspects if one.role and one.role in cue_roles]


def _interleaved(suspects: Sequence[Suspect], before: Score, k: int) -> list[HeadOrMlp]:
    """Take the first k of every ranking, in turn."""
    orders = [ranked(suspects, by, before) for by in RANKINGS]
    return [part for place in range(k) for order in orders for part in order[place : place + 1]]


def _notes(store: Store, task: RepairTask, ablated: AblatedLogits, *, heads_only: bool) -> list[str]:
    notes: list[str] = []
    counts = [int(((ablated.groups == at) & (ablated.labels[0] >= 0)).sum()) for at in range(len(task.group_names))]
    small = [f"{name} ({count})" for name, count in zip(task.group_names, counts, strict=True) if 0 < count < FEW]
    if small:
        world = is_world(store) and len(store) < 4000
        more = " Type world:4000, which draws all groups as likely, for a sharper choice." if world else ""
        notes.append(f"few validation images in {', '.join(small[:4])}: the choice hangs on them.{more}")
    if "mlps" not in store.manifest.keep and not heads_only:
        notes.append(
            "the store holds no MLPs, so only heads are looked at; index with keep='heads,mlps' to see them too"
        )
    return notes
