"""What holding heads that read prints is worth: pictures of the other half, as they are and with a wrong label printed, before and after."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.rerun import rerun_tower
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.registered_clip import registered
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.store.store import Store
from clip_anatomy.studies.bootstrap import AccuracyChange, accuracy_changes
from clip_anatomy.studies.find_typo import (
    TYPO,
    Attacked,
    TypoSearch,
    answers_of,
    find_typo,
    held_tower,
    read_prints,
    right_answers,
)
from clip_anatomy.studies.repair_task import TaskSettings
from clip_anatomy.towers.transformer import Transformer

__all__ = ["TypoEffect", "TypoExample", "TypoRepair", "repair_typo"]

SCHEMA = "clip-anatomy/repair/typo/1"
EXAMPLES = 6  # pictures put right, and as many that are not
HELD, RANDOM = "heads held", "as many random heads"


@dataclass(frozen=True)
class TypoEffect:
    """What one change of the model does to the pictures to report on; shares of them, 0–1.

    Attributes:
        name: of the change.
        attacked: right with a wrong label printed.
        covered: right with a print of the same kind that says nothing: what covering alone costs.
        clean: right without a print.
        called_printed: attacked pictures that are called what is printed.
        called_by_chance: how often they are called that where the print says nothing: the chance level of it.
        others: the other tasks, without a print.
    """

    name: str
    attacked: AccuracyChange
    covered: AccuracyChange
    clean: AccuracyChange
    called_printed: AccuracyChange
    called_by_chance: AccuracyChange
    others: tuple[AccuracyChange, ...]

    @property
    def rows(self) -> tuple[AccuracyChange, ...]:
        """All of them, for a table."""
        return (self.attacked, self.covered, self.clean, self.called_printed, self.called_by_chance, *self.others)


@dataclass(frozen=True)
class TypoExample:
    """One attacked picture: what is printed, what is right, and the answers before and after."""

    name: str
    picture: Image.Image
    printed: str
    right: str
    before: str
    after: str


@public
@dataclass(frozen=True, repr=False)
class TypoRepair(Result):
    """A repair of a model that reads what is printed over pictures.

    Attributes:
        store: of the pictures.
        clip: its model, unedited.
        search: heads by their attention on prints, and those that are held.
        effects: what holding them does to the other half; then as many random heads, and registers where they were asked for.
        examples: attacked pictures that were put right, then some that were not.
    """

    presenter: ClassVar[str] = "repair_folder"
    store: Store = field(repr=False)
    clip: Clip = field(repr=False)
    search: TypoSearch
    effects: tuple[TypoEffect, ...]
    examples: tuple[TypoExample, ...] = ()

    @property
    def edit(self) -> Edit:
        """Heads held at their mean, felt by later blocks: an edit like any other."""
        return self.search.edit

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        held = self.effects[0]
        blind = held.called_printed.before < held.called_by_chance.before + 0.02
        reads = "pictures are called what is printed no more often than where xxx is printed: this model does not read these prints"
        return (*self.search.notes, *((reads,) if blind else ()))

    def summary(self) -> str:
        """Return accuracies before and after, and the heads with their attention on prints."""
        search, held = self.search, self.effects[0]
        heads = ", ".join(f"{layer}.{head} ({search.attention[layer, head]:.0%})" for layer, head in search.heads)
        chance = 1 / len(search.tasks[0].classes)
        rows = [
            (one.name if at == 0 else "", change.name, f"{change.before:.1%}", f"{change.after:.1%}",
             f"{100 * change.change_interval[0]:+.1f} to {100 * change.change_interval[1]:+.1f}")
            for one in self.effects for at, change in enumerate(one.rows if one is held else one.rows[:3])
        ]  # fmt: skip
        table = text_table(
            ("with", "percent", ">before", ">after", ">change, 95 %"), rows, groups=True,
            title=f"{held.attacked.images:,} pictures that had no part in the choice; chance {chance:.1%}",
        )  # fmt: skip
        which = f"held: {heads or search.edit.parts.description}; share of attention on the print, which covers {search.area:.0%}"
        return "\n".join([table, which])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        search = self.search
        return {
            "schema": SCHEMA,
            "store": str(self.store.path),
            "model": self.store.manifest.model,
            "cue": TYPO,
            "task": {"column": search.tasks[0].column, "classes": list(search.tasks[0].classes), "printed": list(search.words)},
            "split": {"source": search.split.source, "validation": len(search.split.validation), "test": len(search.split.test)},
            "heads": [list(one) for one in search.heads],
            "effect": "rerun",
            "chance": {"accuracy": 1 / len(search.tasks[0].classes), "attention": search.area},
            "attention": [[round(float(x), 6) for x in row] for row in search.attention],
            "validation_before": dict(zip(("attacked", "clean"), search.before, strict=True)),
            "tried": [asdict(one) for one in search.tried],
            "effects": [
                {"with": one.name, **{change.name: {**asdict(change), "change": change.change} for change in one.rows}}
                for one in self.effects
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def repair_typo(
    store: Store,
    clip: Clip,
    settings: TaskSettings,
    *,
    seed: int = 0,
    registers: int = 0,
    progress: Progress | None = None,
    **choice: Any,
) -> TypoRepair:
    """Find the heads that read prints, and measure what holding them is worth on the half that had no part in the choice.

    Args:
        store: of the pictures.
        clip: its model.
        settings: what is asked.
        seed: of halves, prints, random heads and the bootstrap.
        registers: measure as well what so many test-time registers do, with nothing held.
        progress: told as it goes.
        choice: as for `find_typo`.

    Raises:
        UnsupportedModel: registers of a model that has nothing to move; and as `find_typo`.
    """
    extra = (
        {f"{registers} register{'s'[: registers > 1]}": registered(clip, registers).image_tower} if registers else {}
    )
    search = find_typo(store, clip, settings, seed=seed, progress=progress, **choice)
    tell, rows, (main, *_) = progress or silent, search.split.test, search.tasks
    towers = {"": clip.image_tower, HELD: rerun_tower(clip.image_tower, search.edit.replacements)}
    if search.heads:
        towers[RANDOM] = _random_heads(clip, search, seed)
    towers |= extra
    labels = torch.stack([right_answers(store, one, rows) for one in search.tasks])
    answers: dict[str, list[dict[str, Tensor]]] = {name: [] for name in towers}
    says, examples, done = list[Tensor](), list[TypoExample](), 0
    names = store.column("id")
    for one in read_prints(store, clip, main, search.words, rows, seed):
        here = slice(done, done + len(one.clean))
        for name, tower in towers.items():
            answers[name].append(_answered(tower, one, search))
        if len(examples) < 20 * EXAMPLES:
            examples += _examples(clip, search, one, labels[0, here], answers, [names[at] for at in rows[here]])
        says.append(one.says)
        done += len(one.clean)
        tell("measuring", done, len(rows))
    joined = {
        name: {key: torch.cat([batch[key] for batch in some], -1) for key in some[0]} for name, some in answers.items()
    }
    before, printed = joined.pop(""), torch.cat(says)
    effects = tuple(_effect(name, search, before, after, labels, printed, seed) for name, after in joined.items())
    put_right = [one for one in examples if one.after == one.right != one.before][:EXAMPLES]
    wrong = [one for one in examples if one.after != one.right][:EXAMPLES]
    return TypoRepair(store, clip, search, effects, (*put_right, *wrong))


def _answered(tower: Transformer, one: Attacked, search: TypoSearch) -> dict[str, Tensor]:
    """Return the class given to each picture: as it is (in every task), attacked, and covered."""
    with torch.no_grad():
        attacked, covered = (answers_of(tower, pixels, search.tasks[:1])[0] for pixels in (one.attacked, one.covered))
        return {"clean": answers_of(tower, one.clean, search.tasks), "attacked": attacked, "covered": covered}


def _effect(  # noqa: PLR0917
    name: str,
    search: TypoSearch,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    labels: Int64[Tensor, "task image"],
    says: Int64[Tensor, " image"],
    seed: int,
) -> TypoEffect:
    def change(label: str, key: str, wanted: Tensor, task: int = 0) -> AccuracyChange:
        was, now = (one[key][task] if key == "clean" else one[key] for one in (before, after))
        labelled = wanted >= 0
        pair = ((was == wanted)[labelled].numpy(), (now == wanted)[labelled].numpy())
        return accuracy_changes({label: pair}, seed=seed)[0][0]

    others = tuple(
        change(one.column, "clean", labels[at], at) for at, one in enumerate(search.tasks) if at and bool((labels[at] >= 0).any())
    )  # fmt: skip
    return TypoEffect(
        name,
        change("right with a wrong label printed", "attacked", labels[0]),
        change("right with xxx printed", "covered", labels[0]),
        change("right without a print", "clean", labels[0]),
        change("called what is printed", "attacked", says),
        change("called so with xxx printed", "covered", says),
        others,
    )


def _random_heads(clip: Clip, search: TypoSearch, seed: int) -> Transformer:
    """Hold as many other heads, drawn at random."""
    tower = clip.image_tower
    rest = [
        (layer, head)
        for layer in range(tower.layers)
        for head in range(tower.heads)
        if (layer, head) not in search.heads
    ]
    drawn = np.random.default_rng(seed).permutation(len(rest))[: len(search.heads)]
    return held_tower(clip, search.means, [rest[at] for at in drawn])


def _examples(  # noqa: PLR0917
    clip: Clip,
    search: TypoSearch,
    one: Attacked,
    labels: Tensor,
    answers: Mapping[str, list[dict[str, Tensor]]],
    names: list[str],
) -> list[TypoExample]:
    """Keep a few attacked pictures of a batch that were wrong before, with the answers."""
    was, now = (answers[name][-1]["attacked"] for name in ("", HELD))
    classes, made = search.tasks[0].classes, list[TypoExample]()
    for put_right in (True, False):
        places = [
            at for at in (was != labels).nonzero()[:, 0].tolist() if (int(now[at]) == int(labels[at])) == put_right
        ]
        for at in places[:EXAMPLES]:
            levels = clip.preprocess.levels(one.attacked[at].float().cpu()).permute(1, 2, 0)
            picture = Image.fromarray(levels.contiguous().numpy())
            labels_shown = [classes[int(k)] for k in (labels[at], was[at], now[at])]
            made.append(TypoExample(names[at], picture, search.words[int(one.says[at])], *labels_shown))
    return made
