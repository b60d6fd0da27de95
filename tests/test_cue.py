"""What carries a cue, on planted answers: scores, greedy choice, prefixes, intervals, each against a slow and simple way."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_anatomy.errors import BadInput
from clip_anatomy.studies.bootstrap import accuracy_changes
from clip_anatomy.studies.cue_scores import (
    AblatedLogits,
    Budget,
    Score,
    best_prefix,
    greedy_selection,
    right,
    score,
    scores_alone,
    text_variance,
)


def planted(seed: int = 0, images: int = 400, parts: int = 6) -> AblatedLogits:
    """Two classes; part 2 shows the cue, which agrees with the class in the even group only; part 4 shows the class."""
    dice = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (images,), generator=dice)
    hard = torch.rand(images, generator=dice) < 0.3
    cue = torch.where(hard, 1 - label, label)
    x = 0.05 * torch.randn(parts, images, 2, generator=dice)
    x[2, torch.arange(images), cue] += 1.0
    x[4, torch.arange(images), label] += 0.6
    deltas = x.mean(1, keepdim=True) - x
    return AblatedLogits(x.sum(0), deltas, (2,), label[None], hard.long(), ("easy", "hard"))


# ---- pure parts


def test_scores_are_those_of_a_loop():
    ablated = planted()
    told = score(ablated, ablated.base)
    good = [int(row.argmax()) == int(label) for row, label in zip(ablated.base, ablated.labels[0], strict=True)]
    assert told.average == pytest.approx(np.mean(good))
    for at in (0, 1):
        assert told.groups[at] == pytest.approx(
            np.mean([g for g, group in zip(good, ablated.groups, strict=True) if group == at])
        )
    assert told.worst == min(told.groups)
    assert told.objective == pytest.approx((told.worst + np.mean(told.groups)) / 2)


def test_images_without_a_label_are_not_asked():
    ablated = planted()
    labels = ablated.labels.clone()
    labels[0, :100] = -1
    told = score(replace(ablated, labels=labels), ablated.base)
    good = right(ablated, ablated.base)[100:]
    assert told.average == pytest.approx(float(good.float().mean()))


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_cue_is_found_and_the_class_is_left(seed):
    ablated = planted(seed)
    assert greedy_selection(ablated)[0] == 2
    assert 4 not in greedy_selection(ablated)
    singles = scores_alone(ablated)
    assert max(range(6), key=lambda at: singles[at].objective) == 2


def test_greedy_selection_is_that_of_brute_force():
    ablated = planted(3)
    chosen = greedy_selection(ablated, Budget(least=0.0, most=2))
    assert chosen
    before = score(ablated, ablated.base)
    best = max(
        (score(ablated, ablated.base + ablated.deltas[at]).objective, -at)
        for at in range(6)
        if score(ablated, ablated.base + ablated.deltas[at]).within_budget(before, 0.02)
    )
    assert chosen[0] == -best[1]


def test_no_part_is_chosen_where_none_pays():
    ablated = planted()
    assert greedy_selection(replace(ablated, deltas=torch.zeros_like(ablated.deltas))) == ()
    assert greedy_selection(ablated, Budget(least=1.0)) == ()


def test_a_part_that_costs_too_much_elsewhere_is_left():
    ablated = planted()
    other = torch.zeros(len(ablated.base), 2)
    other[:, 0] = 1.0
    deltas = torch.cat([ablated.deltas, torch.zeros(6, len(ablated.base), 2)], 2)
    deltas[2, :, 2] = -2.0  # ablating the cue ruins the other question
    labels = torch.cat([ablated.labels, torch.zeros(1, len(ablated.base), dtype=torch.int64)])
    both = AblatedLogits(
        torch.cat([ablated.base, other], 1), deltas, (2, 4), labels, ablated.groups, ablated.group_names
    )
    assert 2 not in greedy_selection(both)
    assert 2 not in best_prefix(both, [2, 0, 1])
    assert greedy_selection(replace(both, cue_task=1))[0] == 2  # unless that question asks for the cue itself


@pytest.mark.parametrize("order", list(itertools.permutations([2, 4, 1])))
def test_the_prefix_of_a_ranking_is_the_best_of_all_prefixes(order):
    ablated = planted(1)
    before = score(ablated, ablated.base)
    worth = {0: before.objective}
    for k in range(1, len(order) + 1):
        told = score(ablated, ablated.base + ablated.deltas[list(order[:k])].sum(0))
        if told.within_budget(before, 0.02):
            worth[k] = told.objective - 0.01 * k
    assert len(best_prefix(ablated, order)) == max(worth, key=lambda k: worth[k])


def test_text_variance_is_the_variance_along_centred_texts():
    dice = torch.Generator().manual_seed(0)
    x, texts = torch.randn(50, 7, generator=dice), torch.randn(4, 7, generator=dice)
    along = (x @ (texts - texts.mean(0)).T).numpy()
    assert text_variance(x, texts) == pytest.approx(along.var(0).mean(), rel=1e-5)


def test_nan_scores_are_named():
    ablated = planted()
    base = ablated.base.clone()
    base[3] = float("nan")
    with pytest.raises(
        BadInput, match=r"scores of 1 of 400 images are NaN .* Find the damage with: clip-anatomy verify STORE"
    ):
        replace(ablated, base=base)


def test_a_score_bears_what_was_never_asked():
    before = Score(0.9, (0.5, float("nan")), (float("nan"), 0.8))
    assert before.worst == 0.5
    assert Score(0.9, (0.5, 0.5), (float("nan"), 0.8)).within_budget(before, 0.0)
    assert not Score(0.9, (0.5, 0.5), (float("nan"), 0.7)).within_budget(before, 0.02)
    assert not Score(0.8, (0.9, 0.9), (float("nan"), 0.8)).within_budget(before, 0.02)


# ---- intervals


def test_intervals_are_those_of_resampling_images_one_by_one():
    dice = np.random.default_rng(1)
    before, after = dice.random(80) < 0.3, dice.random(80) < 0.7
    (change,), _, _ = accuracy_changes({"a": (before, after)}, resamples=20_000)
    picks = dice.integers(0, 80, (20_000, 80))
    slow = after[picks].mean(1) - before[picks].mean(1)
    assert change.change_interval == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.02)
    assert change.before_interval == pytest.approx(np.percentile(before[picks].mean(1), [2.5, 97.5]), abs=0.02)
    assert change.change == pytest.approx(after.mean() - before.mean())


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    dice = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        before, after = dice.random(150) < 0.4, dice.random(150) < 0.6
        (change,), _, _ = accuracy_changes({"a": (before, after)}, seed=seed, resamples=500)
        hits += change.change_interval[0] <= 0.2 <= change.change_interval[1]
    assert 0.88 <= hits / 200 <= 0.99


def test_the_worst_group_may_be_another_one_after():
    yes, no = np.ones(20, bool), np.zeros(20, bool)
    each, worst, mean = accuracy_changes({"a": (no, yes), "b": (yes, np.arange(20) < 10)})
    assert (worst.before, worst.after) == (0.0, 0.5)
    assert (mean.before, mean.after) == (0.5, 0.75)
    with pytest.raises(BadInput, match="without a test image: b"):
        accuracy_changes({"a": (yes, yes), "b": (yes[:0], yes[:0])})
    assert each[0].images == 20
