"""Ways to choose what to silence: by role, down each of the rankings as far as it pays, part by part by group accuracy, along the cue."""

from collections.abc import Sequence
from dataclasses import dataclass

from clip_anatomy.studies.ablated_answers import Part
from clip_anatomy.studies.cue_result import Choice, Suspect, ranked
from clip_anatomy.studies.cue_scores import COST, LEAST, MOST, Board, Score, climb, first, score

__all__ = ["Rules", "along_way", "best_of", "whole_ways"]


@dataclass(frozen=True)
class Rules:
    """What a choice may cost, and must earn.

    Attributes:
        cost: accuracy, 0–1, that the average and each other question may lose.
        most: parts, at most.
        least: what each part must earn of `Score.goal`.
    """

    cost: float = COST
    most: int = MOST
    least: float = LEAST


def whole_ways(
    suspects: Sequence[Suspect],
    board: Board,
    kept: Sequence[Part],
    before: Score,
    *,
    cue_roles: tuple[str, ...],
    rules: Rules,
) -> tuple[Choice, ...]:
    """Choices of parts that are silenced whole, one for each way.

    Args:
        suspects: all parts.
        board: what silencing some of them does to the validation images.
        kept: these, in the order of the board.
        before: accuracies with nothing silenced.
        cue_roles: properties that the cue's texts are about.
        rules: what a choice may cost.
    """
    place = {part: at for at, part in enumerate(kept)}
    chosen: list[tuple[str, Sequence[int]]] = []
    called = [place[one.part] for one in suspects if one.role and one.role in cue_roles and one.part in place]
    if called:
        chosen.append((" + ".join(f"role={role}" for role in cue_roles), called))
    for way in ("name", "variance"):
        order = [place[part] for part in ranked(suspects, way, before) if part in place]
        if order:
            chosen.append((f"by {way}", first(board, order, cost=rules.cost, most=rules.most, least=rules.least)))
    chosen.append(("by group accuracy", climb(board, cost=rules.cost, most=rules.most, least=rules.least)))
    scores = [_score_of(board, places) for _, places in chosen]
    return tuple(
        Choice(how, tuple(kept[at] for at in places), told, told.bears(before, rules.cost, board.cue))
        for (how, places), told in zip(chosen, scores, strict=True)
    )


def along_way(board: Board, kept: Sequence[Part], before: Score, rules: Rules) -> Choice:
    """A choice of heads of which only what they write along the cue's texts is silenced, by group accuracy.

    Args:
        board: what that does to the validation images.
        kept: the heads, in the order of the board.
        before: accuracies with nothing silenced.
        rules: what a choice may cost.
    """
    taken = climb(board, cost=rules.cost, most=rules.most, least=rules.least)
    told = _score_of(board, taken)
    bears = told.bears(before, rules.cost, board.cue)
    return Choice("along the cue only", tuple(kept[at] for at in taken), told, bears, along=True)


def best_of(choices: Sequence[Choice], before: Score, rules: Rules) -> Choice:
    """The choice that pays best, of those that the rest bears; perhaps to silence nothing."""
    able = [Choice("nothing helps", (), before), *(one for one in choices if one.bears and one.parts)]
    return max(able, key=lambda one: (round(one.score.goal - rules.least * len(one.parts), 6), -len(one.parts)))


def _score_of(board: Board, places: Sequence[int]) -> Score:
    return score(board, board.base + board.deltas[list(places)].sum(0))
