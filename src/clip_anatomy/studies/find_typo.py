"""Typographic attacks: which heads read what is printed over a picture, and an edit that holds them.

    printed        a wrong class's name over each picture, seeded
    T[layer, head] mean share of the class token's attention (to patches) that falls on the print
    choice         by descending T: a head stays held if more attacked pictures are right, and what the clean ones lose is within the budget
                   with 95 % confidence: mean of (right before − right now) + 1.645 standard errors, over the same pictures

Source: Dyslexify (ICLR 2026). There heads are set to zero, the label stands at the bottom, and the choice ends at the first head over the budget;
here heads are held at their mean over clean pictures, labels stand anywhere, and such a head is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.data.printed_labels import printed
from clip_anatomy.data.world.render import print_label
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.rerun import rerun_replacements, rerun_tower
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.files import random_number
from clip_anatomy.loading.clip import BATCH, Clip
from clip_anatomy.naming.ground_truth import is_world
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.means import Means
from clip_anatomy.store.store import Store
from clip_anatomy.studies.cue_scores import Budget
from clip_anatomy.studies.image_split import LEAST, Split, halves_of
from clip_anatomy.studies.repair_task import TaskSettings
from clip_anatomy.studies.rerun_embeddings import read_again, written_means
from clip_anatomy.studies.store_columns import classes_of, few, listed, text_column
from clip_anatomy.studies.zero_shot_task import DIGITS, WORLD, ZeroShotTask, class_texts, zero_shot_task
from clip_anatomy.towers.ablated_writes import check_rerun
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.forward import readout_attention, walk
from clip_anatomy.towers.readout import readout_of
from clip_anatomy.towers.transformer import Transformer

__all__ = [
    "TYPO",
    "Attacked",
    "Tried",
    "TypoSearch",
    "answers_of",
    "find_typo",
    "held_tower",
    "loss_bound",
    "read_prints",
    "right_answers",
]

TYPO = "typo"
CHOSEN_ON = 300  # pictures, at most: every head that is tried takes a forward of each, and where it helps two
PATIENCE = 10  # heads in a row that do not help
CONFIDENT = 1.645  # standard errors to the one-sided 95 % bound


@dataclass(frozen=True)
class Tried:
    """One head that was tried, with all that were kept before it held.

    Attributes:
        head: (layer, head).
        attention: T.
        attacked: share of attacked pictures that are right then, 0–1.
        clean: share of clean ones; None where attacked ones do not gain, so that it was not asked.
        lost: of clean ones, in the task that loses most: the upper 95 % bound; None likewise.
        kept: whether it stays held.
    """

    head: tuple[int, int]
    attention: float
    attacked: float
    clean: float | None
    lost: float | None
    kept: bool


@dataclass(frozen=True)
class TypoSearch:
    """What was found on the pictures to choose on.

    Attributes:
        tasks: what is asked; the first is attacked, the others must be kept.
        words: what is printed for each class of the first.
        attention: T of every head; chance is `area`.
        area: mean share of the patches that prints touch.
        tried: heads in the order in which they were tried.
        before: shares right with nothing held: attacked, clean.
        split: pictures to choose on and to report on.
        edit: heads held at their mean, felt by later blocks.
        means: of all heads.
        notes: what a reader must know.
    """

    tasks: tuple[ZeroShotTask, ...]
    words: tuple[str, ...]
    attention: Float[Tensor, "layer head"]
    area: float
    tried: tuple[Tried, ...]
    before: tuple[float, float]
    split: Split
    edit: Edit = field(repr=False)
    means: Means = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """The heads that are held."""
        return self.edit.parts.heads


@dataclass(frozen=True)
class Attacked:
    """Some pictures as they are, with a wrong class printed over them, and with a print of the same kind that says nothing.

    Attributes:
        clean: pixels.
        attacked: pixels with the print.
        covered: pixels with a print of as many x.
        where: patches that the print touches.
        says: class whose name is printed.
    """

    clean: Float[Tensor, "image 3 row col"]
    attacked: Float[Tensor, "image 3 row col"]
    covered: Float[Tensor, "image 3 row col"]
    where: Bool[Tensor, "image patch"]
    says: Int64[Tensor, " image"]


def find_typo(
    store: Store,
    clip: Clip,
    settings: TaskSettings,
    *,
    select: str | None = None,
    split: str | None = None,
    seed: int = 0,
    images: int | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> TypoSearch:
    """Find the heads that read prints, on the validation half of a store.

    Args:
        store: of the pictures; they are read again.
        clip: its model.
        settings: what is asked: `label`, `classes`, `also`, `templates`.
        select: these heads instead of a search.
        split: column of the split, as for `halves_of`.
        seed: of halves and prints.
        images: of each half, at most.
        budget: what clean pictures may lose, and heads at most.
        progress: told as it goes.

    Raises:
        UnsupportedModel: see `check_rerun`.
        BadInput: one class, no labels and no classes, too few pictures.
        BadSpec: heads that do not exist.
        StoreError: a picture is gone.
    """
    tower = check_rerun(clip.vision, "repair(store), without cue='typo', which runs nothing again")
    given = None if select is None else Selection.parse(select, tower.layers, tower.heads)
    whole = halves_of(store, split, seed, images)
    tasks, words, notes = _asked(store, clip, settings, whole.validation)
    validation, test = (_askable(store, tasks[0], rows) for rows in (whole.validation, whole.test))
    some = validation[np.linspace(0, len(validation) - 1, min(CHOSEN_ON, len(validation))).astype(int)]
    means = written_means(store, clip, some, progress)
    labels = torch.stack([right_answers(store, one, some) for one in tasks])
    probe = _Probe(clip, tasks, means, labels, list(read_prints(store, clip, tasks[0], words, some, seed=seed)))
    attention, area = probe.attention()
    before = probe.attacked(()), probe.clean(())
    tried = () if given is not None else _chosen(probe, attention, before, budget or Budget(), progress or silent)
    chosen = Selection(tuple(one.head for one in tried if one.kept)) if given is None else given
    edit = Edit.of(
        clip, chosen, means, effect="rerun", measured_on=f"{len(some):,} clean images of {store.path.name}, the validation half",
        notes=f"{tasks[0].column}, cue: {TYPO}",
    )  # fmt: skip
    return TypoSearch(
        tasks,
        words,
        attention,
        area,
        tried,
        (before[0], _share(before[1], labels)),
        Split(whole.train, validation, test, whole.source),
        edit,
        means,
        notes,
    )


def right_answers(store: Store, task: ZeroShotTask, rows: np.ndarray) -> Int64[Tensor, " image"]:
    """Read the right answers of some images: their labels, or where there are none what the model itself says of the clean picture."""
    if task.column:
        return task.labels_of(store, rows)
    return (store.embeddings(rows, unit=True) @ task.texts.T).argmax(1)


def _asked(
    store: Store, clip: Clip, settings: TaskSettings, rows: np.ndarray
) -> tuple[tuple[ZeroShotTask, ...], tuple[str, ...], tuple[str, ...]]:
    """Work out what is asked, what else must be kept, and what is printed for each class."""
    world, notes = is_world(store), tuple[str, ...]()
    if settings.label == "label" and not any(text_column(store, "label", rows)):
        if settings.classes is None:
            raise BadInput(f"no picture of {store.path} has a label, and no classes are named. Type classes='a, b, c'")
        names = classes_of(settings.classes)
        texts = normalize(class_texts(clip, names, settings.templates).float(), dim=-1)
        main = ZeroShotTask("", names, texts, rows, torch.full((len(rows),), -1))
        notes = ("the pictures have no labels: right is what the model itself says without the print",)
    else:
        main = zero_shot_task(
            store, lambda: clip, settings.label, rows, classes=settings.classes, templates=settings.templates
        )
    if len(main.classes) < 2:
        raise BadInput(f"one class only ({few(main.classes)}): no wrong label can be printed. Type classes='a, b, c'")
    others = [name for name in WORLD if name not in (main.column, "digit")] if world and settings.also is None else []
    others = others or [name for name in listed(settings.also) if name != main.column]
    kept = [zero_shot_task(store, lambda: clip, name, rows, templates=settings.templates) for name in others]
    words = DIGITS if _of_digits(store, main) else tuple(name.replace("_", " ") for name in main.classes)
    return (main, *kept), words, (*notes, *main.notes)


def _of_digits(store: Store, task: ZeroShotTask) -> bool:
    """Tell whether these are counts of the demo world, over which it prints digits."""
    return is_world(store) and task.column == "count"


def _askable(store: Store, task: ZeroShotTask, rows: np.ndarray) -> np.ndarray:
    """Keep the pictures that have a right answer, and (of the demo world's counts) no digit yet."""
    labelled = (right_answers(store, task, rows) >= 0).numpy()
    if _of_digits(store, task):
        labelled &= np.array([not value for value in text_column(store, "digit", rows)])
    if int(labelled.sum()) < LEAST:
        raise BadInput(
            f"{int(labelled.sum())} pictures of a half of {store.path} have a right answer; {LEAST} or more are needed. Index more pictures"
        )
    return rows[labelled]


def read_prints(  # noqa: PLR0917
    store: Store, clip: Clip, task: ZeroShotTask, words: Sequence[str], rows: np.ndarray, seed: int = 0
) -> Iterator[Attacked]:
    """Read pictures again, in batches, and print over each the name of a wrong class: the same one whatever else is in the store."""
    labels, at = right_answers(store, task, rows).tolist(), 0
    draw = print_label if _of_digits(store, task) else None  # the only writing that the demo model reads
    for some, pixels in read_again(store, clip, rows):
        names = [row.id for row in some]
        says = [
            int(label + 1 + random_number(seed, f"{name} says") % (len(words) - 1)) % len(words)
            for name, label in zip(names, labels[at : at + len(some)], strict=True)
        ]
        wrong = [words[one] for one in says]
        attacked, where = printed(clip, pixels, wrong, names, seed, draw=draw)
        covered, _ = printed(clip, pixels, ["x" * len(word) for word in wrong], names, seed, draw=draw)
        yield Attacked(pixels, attacked, covered, where, torch.tensor(says))
        at += len(some)


@dataclass(frozen=True)
class _Probe:
    """Pictures to choose on, in batches, with what is right in every task."""

    clip: Clip
    tasks: tuple[ZeroShotTask, ...]
    means: Means
    labels: Int64[Tensor, "task image"]
    batches: list[Attacked]

    @torch.no_grad()
    def attention(self) -> tuple[Float[Tensor, "layer head"], float]:
        """Compute T of every head, and the share of the patches that prints touch."""
        tower = self.clip.image_tower
        total = torch.zeros(tower.layers, tower.heads, dtype=torch.float64)
        for one in self.batches:
            x = embed_image(tower, one.attacked)
            readout = readout_of(tower, one.attacked, x.shape[1])
            for step in walk(tower, x, readout):
                patches = readout_attention(tower, step, readout)[:, :, tower.own :].double().cpu()
                total[step.layer] += ((patches * one.where[:, None]).sum(-1) / patches.sum(-1)).sum(0)
        where = torch.cat([one.where for one in self.batches])
        return (total / len(where)).float(), float(where.double().mean())

    @torch.no_grad()
    def attacked(self, heads: Sequence[tuple[int, int]]) -> float:
        """Measure the share of attacked pictures that is right with some heads held."""
        held = held_tower(self.clip, self.means, heads)
        said = torch.cat([answers_of(held, one.attacked, self.tasks[:1])[0] for one in self.batches])
        return float((said == self.labels[0]).double().mean())

    @torch.no_grad()
    def clean(self, heads: Sequence[tuple[int, int]]) -> Bool[Tensor, "task image"]:
        """Say which clean pictures are right in every task with some heads held."""
        held = held_tower(self.clip, self.means, heads)
        return torch.cat([answers_of(held, one.clean, self.tasks) for one in self.batches], 1) == self.labels


def _share(right: Bool[Tensor, "task image"], labels: Int64[Tensor, "task image"]) -> float:
    """Return the share of the first task that is right."""
    return float(right[0][labels[0] >= 0].double().mean())


def loss_bound(
    labels: Int64[Tensor, "task image"], before: Bool[Tensor, "task image"], now: Bool[Tensor, "task image"]
) -> float:
    """Bound what clean pictures lose, in the task that loses most: one-sided, 95 %, over the same pictures; 0–1."""
    bounds: list[float] = []
    for asked, was, right in zip(labels >= 0, before, now, strict=True):
        if int(asked.sum()) > 1:
            change = was[asked].double() - right[asked].double()
            bounds.append(float(change.mean() + CONFIDENT * change.std() / len(change) ** 0.5))
    return max(bounds)


def _chosen(
    probe: _Probe,
    attention: Float[Tensor, "layer head"],
    before: tuple[float, Bool[Tensor, "task image"]],
    limits: Budget,
    tell: Progress,
) -> tuple[Tried, ...]:
    """Hold one head after the other, by descending T, while that helps and costs little (asked only where it helps)."""
    best, kept, tried, idle = before[0], list[tuple[int, int]](), list[Tried](), 0
    for flat in attention.flatten().argsort(descending=True).tolist():
        if idle == PATIENCE or len(kept) == limits.most:
            break
        head = divmod(flat, attention.shape[1])
        attacked, right, lost, keep = probe.attacked([*kept, head]), None, None, False
        if attacked > best:
            clean = probe.clean([*kept, head])
            right, lost = _share(clean, probe.labels), loss_bound(probe.labels, before[1], clean)
            keep = lost <= limits.cost + 1e-9
        idle = 0 if keep else idle + 1
        if keep:
            kept.append(head)
            best = attacked
        tried.append(Tried(head, float(attention[head]), attacked, right, lost, keep))
        tell("trying heads", len(tried), attention.numel())
    return tuple(tried)


def held_tower(clip: Clip, means: Means, heads: Sequence[tuple[int, int]]) -> Transformer:
    """Return the tower with some heads at their means."""
    return rerun_tower(clip.image_tower, rerun_replacements(clip, Selection(tuple(heads)), means, "mean"))


def answers_of(tower: Transformer, pixels: Tensor, tasks: Sequence[ZeroShotTask]) -> Int64[Tensor, "task image"]:
    """Answer every task about some pictures."""
    unit = normalize(torch.cat([tower.encode(some).float().cpu() for some in pixels.split(BATCH)]), dim=-1)
    return torch.stack([(unit @ one.texts.T).argmax(1) for one in tasks])
