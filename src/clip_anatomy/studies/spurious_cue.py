"""Find the cue: rank heads and MLPs by how much they carry it and not the class, three ways side by side, and choose which to silence.

    by name             roles and texts of the heads (an atlas of the validation images)
    by variance         variance along the cue's texts minus variance along the class texts
    by group accuracy   what silencing the part does to the worst group and to the mean over groups

A part is silenced whole; or, of a head, only what it writes along the cue's texts, which leaves alone what else it says.

Rankings and choice see the validation split only: no label, group, embedding or head of a test image is read before the end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clip_anatomy.errors import BadInput, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.store.store import Store
from clip_anatomy.studies.ablated_answers import BYTES, Part, board_of, contributions, parts_of, texts_in
from clip_anatomy.studies.cue_result import Found, Suspect, ranked
from clip_anatomy.studies.cue_scores import COST, LEAST, MOST, Board, Score, alone, score, spread
from clip_anatomy.studies.cue_selection import Rules, along_way, best_of, whole_ways
from clip_anatomy.studies.head_names import name_heads_of, named_after, properties_of
from clip_anatomy.studies.repair_plan import Plan, plan_of
from clip_anatomy.studies.validation_split import Split, split_of

__all__ = ["find_cue"]

IMAGES = 20_000
FEW = 20  # validation images in a group: a choice that hangs on fewer is said to
MANY = 48  # candidates, where not all parts fit into memory
Report = Callable[[str, int, int], None]


def find_cue(
    store: Store,
    clip: Clip,
    *,
    label: str = "label",
    classes: Sequence[str] | str | None = None,
    group: str | None = None,
    cue: Sequence[str] | str | None = None,
    also: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    images: int = IMAGES,
    heads_only: bool = False,
    cost: float = COST,
    most: int = MOST,
    least: float = LEAST,
    atlas: "Atlas | str | Path | None" = None,
    report: Report | None = None,
) -> Found:
    """Find the parts that carry a cue, and choose which of them to silence.

    Args:
        store: a store with labels, and with groups or a cue in words.
        clip: its model.
        label: column of the right answers.
        classes: class names, "a, b", or a text file; by default the values of the column.
        group: column of the groups, or of the cue; by default "group".
        cue: what is suspected, in words: texts or "sky, water"; by default the words of the groups.
        also: columns of questions that must be kept; for the demo world, by default, all that it knows.
        templates: prompts to average.
        split: column of the splits; by default "split", else halves by id.
        seed: of those halves.
        images: images of each half, at most.
        heads_only: leave MLPs alone where the store holds them.
        cost: accuracy, 0–1, that the average and each other question may lose on the validation split.
        most: parts to silence, at most.
        least: what each part must earn of half the worst group plus half the mean of groups.
        atlas: names of the heads; by default made from the validation images alone.
        report: called with what is being done, how much is done, how much there is.

    Returns:
        Found. Nothing of the test split was read.

    Raises:
        BadInput: labels without classes, one class, empty groups, scores that are not numbers, settings that make no sense.
        StoreError: a store of another model, or one made with --convention official.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:300:test:balanced", folder + "/store")
        ...     found = find_cue(ca.Store.open(folder + "/store"), clip)
        >>> "7.3" in [part.name for part in found.best.parts]
        True
    """
    tell: Report = report or (lambda what, done, total: None)
    store.manifest.refuse_other(clip.name, clip.digest, store.path)
    if store.manifest.convention != "centered":
        raise StoreError(
            f"{store.path} was made with --convention {store.manifest.convention}; a repair needs one in which a part that writes nothing "
            "contributes nothing. Type: clip-anatomy index SOURCE NEW-STORE --convention centered"
        )
    if not 0 <= cost <= 1 or most < 1 or not 0 <= least <= 1 or images < 1:
        raise BadInput(
            f"cost={cost}, most={most}, least={least}, images={images}: type cost=0.02, most=10, least=0.005"
        )
    halves = split_of(store, split, seed, images)
    rows = halves.validation
    plan = plan_of(
        store, clip, rows, label=label, classes=classes, group=group, cue=cue, also=also, templates=templates
    )
    named = _atlas(store, clip, halves, atlas, tell)
    parts = tuple(part for part in parts_of(store) if part.head >= 0 or not heads_only)
    singles, board = _alone(store, plan, rows, parts, tell)
    cue_roles = properties_of(clip, plan.cue)
    suspects = _suspects(
        store, plan, rows, list(zip(parts, singles, strict=True)), named,
        cue_roles=cue_roles, class_roles=properties_of(clip, plan.main.classes), tell=tell,
    )  # fmt: skip
    if board is None:
        bare = board_of(store, plan, rows, ())
        kept = _candidates(suspects, plan, len(rows), score(bare, bare.base), cue_roles)
        board = board_of(store, plan, rows, kept)
    else:
        kept = parts
    before = score(board, board.base)
    rules = Rules(cost, most, least)
    choices = whole_ways(suspects, board, kept, before, cue_roles=cue_roles, rules=rules)
    more = _notes(store, plan, board, heads_only=heads_only)
    heads = tuple(part for part in kept if part.head >= 0)
    if len(plan.cue) > 1 and heads:
        del board  # the next one is as large
        choices = (*choices, along_way(board_of(store, plan, rows, heads, along=True), heads, before, rules))
    best = best_of(choices, before, rules)
    return Found(plan, halves, suspects, choices, best, before, cost, cue_roles, named, (*plan.notes, *more))


def _atlas(store: Store, clip: Clip, halves: Split, given: "Atlas | str | Path | None", tell: Report) -> Atlas:
    if given is None:
        return name_heads_of(store, clip, halves.validation, report=tell)
    named = given if isinstance(given, Atlas) else Atlas.load(given)
    if named.digest != store.manifest.digest:
        raise StoreError(
            f"this atlas is of {named.model}, {store.path} of {store.manifest.model}. Leave --atlas away, or make one: clip-anatomy atlas "
            f"{store.path}"
        )
    return named


def _alone(
    store: Store, plan: Plan, rows: np.ndarray, parts: tuple[Part, ...], tell: Report
) -> tuple[tuple[Score, ...], Board | None]:
    """Scores of every part alone; and the board of all parts, if it fits into memory."""
    fit = max(1, BYTES // max(4 * len(rows) * len(plan.texts), 1))
    if fit >= len(parts):
        board = board_of(store, plan, rows, parts, lambda at, n: tell("silencing each part", at, n))
        return alone(board), board
    found: list[Score] = []
    for start in range(0, len(parts), fit):
        found += alone(board_of(store, plan, rows, parts[start : start + fit]))
        tell("silencing each part", len(found), len(parts))
    return tuple(found), None


def _candidates(
    suspects: Sequence[Suspect], plan: Plan, images: int, before: Score, cue_roles: tuple[str, ...]
) -> tuple[Part, ...]:
    """Where not all parts fit into memory: those named after the cue, then the first of each ranking, as many as fit."""
    fit = max(1, BYTES // max(4 * images * len(plan.texts), 1))
    orders = [ranked(suspects, way, before) for way in ("group accuracy", "variance", "name")]
    mixed = [part for place in range(len(suspects)) for order in orders for part in order[place : place + 1]]
    called = [one.part for one in suspects if one.role and one.role in cue_roles]
    kept = list(dict.fromkeys([*called, *mixed]))[: min(fit, MANY)]
    return tuple(sorted(kept)) or (suspects[0].part,)


def _suspects(
    store: Store,
    plan: Plan,
    rows: np.ndarray,
    each: Sequence[tuple[Part, Score]],
    named: Atlas,
    *,
    cue_roles: tuple[str, ...],
    class_roles: tuple[str, ...],
    tell: Report,
) -> tuple[Suspect, ...]:
    by_pair = {(one.layer, one.head): one for one in named.heads}
    found: list[Suspect] = []
    for at, (part, told) in enumerate(each):
        x, frame = contributions(store, part, rows)
        along = spread(x, texts_in(frame, plan.cue_texts)) if len(plan.cue) > 1 else None
        of_class = spread(x, texts_in(frame, plan.main.texts))
        head = by_pair.get((part.layer, part.head))
        name = (
            None
            if head is None or not plan.cue
            else named_after(head, cue_roles, class_roles, plan.cue, plan.main.classes)
        )
        role, sure = ("", 0.0) if head is None else (head.role.name, head.role.confidence)
        texts = () if head is None else tuple(text.text for text in head.texts[:3])
        found.append(Suspect(part, role, sure, texts, name, along, of_class, told))
        tell("looking for the cue", at + 1, len(each))
    return tuple(found)


def _notes(store: Store, plan: Plan, board: Board, *, heads_only: bool) -> tuple[str, ...]:
    notes: list[str] = []
    counts = [int(((board.groups == at) & (board.labels[0] >= 0)).sum()) for at in range(len(plan.names))]
    if small := [f"{name} ({count})" for name, count in zip(plan.names, counts, strict=True) if 0 < count < FEW]:
        more = (
            " Type world:4000, which draws all groups as likely, for a sharper choice."
            if plan.world and len(store) < 4000
            else ""
        )
        notes.append(f"few validation images in {', '.join(small[:4])}: the choice hangs on them.{more}")
    if "mlps" not in store.manifest.keep and not heads_only:
        notes.append(
            "the store holds no MLPs, so only heads are looked at; index with --keep heads,mlps to see them too"
        )
    return tuple(notes)
