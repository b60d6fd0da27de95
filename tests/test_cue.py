"""What carries a cue, on planted boards: scores, greedy choice, prefixes, intervals, each against a slow and simple way."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_anatomy.errors import BadInput
from clip_anatomy.studies.bootstrap import moves
from clip_anatomy.studies.cue_scores import Board, Score, alone, climb, first, right, score, spread


def planted(seed: int = 0, images: int = 400, parts: int = 6) -> Board:
    """Two classes; part 2 shows the cue, which agrees with the class in the even group only; part 4 shows the class."""
    dice = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (images,), generator=dice)
    hard = torch.rand(images, generator=dice) < 0.3
    cue = torch.where(hard, 1 - label, label)
    x = 0.05 * torch.randn(parts, images, 2, generator=dice)
    x[2, torch.arange(images), cue] += 1.0
    x[4, torch.arange(images), label] += 0.6
    deltas = x.mean(1, keepdim=True) - x
    return Board(x.sum(0), deltas, (2,), label[None], hard.long(), ("easy", "hard"))


# ---- pure parts


def test_scores_are_those_of_a_loop():
    board = planted()
    told = score(board, board.base)
    good = [int(row.argmax()) == int(label) for row, label in zip(board.base, board.labels[0], strict=True)]
    assert told.average == pytest.approx(np.mean(good))
    for at in (0, 1):
        assert told.groups[at] == pytest.approx(
            np.mean([g for g, group in zip(good, board.groups, strict=True) if group == at])
        )
    assert told.worst == min(told.groups)
    assert told.goal == pytest.approx((told.worst + np.mean(told.groups)) / 2)


def test_images_without_a_label_are_not_asked():
    board = planted()
    labels = board.labels.clone()
    labels[0, :100] = -1
    told = score(replace(board, labels=labels), board.base)
    good = right(board, board.base)[100:]
    assert told.average == pytest.approx(float(good.float().mean()))


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_cue_is_found_and_the_class_is_left(seed):
    board = planted(seed)
    assert climb(board)[0] == 2
    assert 4 not in climb(board)
    singles = alone(board)
    assert max(range(6), key=lambda at: singles[at].goal) == 2


def test_climbing_is_greedy_search_by_brute_force():
    board = planted(3)
    chosen = climb(board, least=0.0, most=2)
    assert chosen
    before = score(board, board.base)
    best = max(
        (score(board, board.base + board.deltas[at]).goal, -at)
        for at in range(6)
        if score(board, board.base + board.deltas[at]).bears(before, 0.02)
    )
    assert chosen[0] == -best[1]


def test_no_part_is_chosen_where_none_pays():
    board = planted()
    assert climb(replace(board, deltas=torch.zeros_like(board.deltas))) == ()
    assert climb(board, least=1.0) == ()


def test_a_part_that_costs_too_much_elsewhere_is_left():
    board = planted()
    other = torch.zeros(len(board.base), 2)
    other[:, 0] = 1.0
    deltas = torch.cat([board.deltas, torch.zeros(6, len(board.base), 2)], 2)
    deltas[2, :, 2] = -2.0  # silencing the cue ruins the other question
    labels = torch.cat([board.labels, torch.zeros(1, len(board.base), dtype=torch.int64)])
    both = Board(torch.cat([board.base, other], 1), deltas, (2, 4), labels, board.groups, board.names)
    assert 2 not in climb(both)
    assert 2 not in first(both, [2, 0, 1])
    assert climb(replace(both, cue=1))[0] == 2  # unless that question asks for the cue itself


@pytest.mark.parametrize("order", list(itertools.permutations([2, 4, 1])))
def test_the_prefix_of_a_ranking_is_the_best_of_all_prefixes(order):
    board = planted(1)
    before = score(board, board.base)
    worth = {0: before.goal}
    for k in range(1, len(order) + 1):
        told = score(board, board.base + board.deltas[list(order[:k])].sum(0))
        if told.bears(before, 0.02):
            worth[k] = told.goal - 0.01 * k
    assert len(first(board, order)) == max(worth, key=lambda k: worth[k])


def test_spread_is_the_variance_along_centred_texts():
    dice = torch.Generator().manual_seed(0)
    x, texts = torch.randn(50, 7, generator=dice), torch.randn(4, 7, generator=dice)
    along = (x @ (texts - texts.mean(0)).T).numpy()
    assert spread(x, texts) == pytest.approx(along.var(0).mean(), rel=1e-5)


def test_nan_scores_are_named():
    board = planted()
    base = board.base.clone()
    base[3] = float("nan")
    with pytest.raises(
        BadInput, match=r"scores of 1 of 400 images are NaN .* Find the damage with: clip-anatomy verify STORE"
    ):
        replace(board, base=base)


def test_a_score_bears_what_was_never_asked():
    before = Score(0.9, (0.5, float("nan")), (float("nan"), 0.8))
    assert before.worst == 0.5
    assert Score(0.9, (0.5, 0.5), (float("nan"), 0.8)).bears(before, 0.0)
    assert not Score(0.9, (0.5, 0.5), (float("nan"), 0.7)).bears(before, 0.02)
    assert not Score(0.8, (0.9, 0.9), (float("nan"), 0.8)).bears(before, 0.02)


# ---- intervals


def test_intervals_are_those_of_resampling_images_one_by_one():
    dice = np.random.default_rng(1)
    before, after = dice.random(80) < 0.3, dice.random(80) < 0.7
    (move,), _, _ = moves({"a": (before, after)}, resamples=20_000)
    picks = dice.integers(0, 80, (20_000, 80))
    slow = after[picks].mean(1) - before[picks].mean(1)
    assert move.change_within == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.02)
    assert move.before_within == pytest.approx(np.percentile(before[picks].mean(1), [2.5, 97.5]), abs=0.02)
    assert move.change == pytest.approx(after.mean() - before.mean())


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    dice = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        before, after = dice.random(150) < 0.4, dice.random(150) < 0.6
        (move,), _, _ = moves({"a": (before, after)}, seed=seed, resamples=500)
        hits += move.change_within[0] <= 0.2 <= move.change_within[1]
    assert 0.88 <= hits / 200 <= 0.99


def test_the_worst_group_may_be_another_one_after():
    yes, no = np.ones(20, bool), np.zeros(20, bool)
    each, worst, mean = moves({"a": (no, yes), "b": (yes, np.arange(20) < 10)})
    assert (worst.before, worst.after) == (0.0, 0.5)
    assert (mean.before, mean.after) == (0.5, 0.75)
    with pytest.raises(BadInput, match="without a test image: b"):
        moves({"a": (yes, yes), "b": (yes[:0], yes[:0])})
    assert each[0].images == 20
