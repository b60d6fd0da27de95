"""Finding a cue: brute force, planted cues, and the proof that the test split is never read in the choice."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.anatomy.cue import Board, Score, alone, climb, first, right, score, spread
from clip_anatomy.anatomy.edit import Edit
from clip_anatomy.anatomy.edited import EditedClip
from clip_anatomy.anatomy.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.library.store import Store
from clip_anatomy.measure.bootstrap import moves
from clip_anatomy.repairs.columns import class_named, codes_in
from clip_anatomy.repairs.cue import find_cue
from clip_anatomy.repairs.questions import plan_of
from clip_anatomy.repairs.repair import edit_of, examples, repair, try_out
from clip_anatomy.repairs.silenced import Part, answers, means_of, parts_of, selection_of, selects
from clip_anatomy.repairs.split import split_of

N = 600


@pytest.fixture(scope="module")
def demo():
    torch.set_num_threads(1)
    return ca.load("demo")


@pytest.fixture(scope="module")
def store(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "store"
    ca.index(demo, f"world:{N}:val:balanced", folder, keep="heads,mlps")
    return Store.open(folder, demo)


@pytest.fixture(scope="module")
def found(store, demo):
    return find_cue(store, demo)


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


# ---- on a store


def test_the_cue_of_the_demo_world_is_its_background(found):
    assert found.plan.cue == ("sky", "water", "grass", "night")
    assert found.cue_roles == ("background",)
    for way in ("name", "variance", "group accuracy"):
        top = {part.name for part in found.ranked(way)[:4]}
        assert len(top & {"7.0", "7.3", "2.0"}) >= 2, (way, top)
    assert found.best.score.worst > found.before.worst + 0.2
    assert found.best.score.bears(found.before, found.cost, found.plan.cue_question)


def test_the_edit_does_on_pictures_what_the_store_said(found, store, demo):
    """Brute force: the pictures again, through the edited model, against the answers from stored parts."""
    selection = selection_of(found.best.parts[:2]) | Selection(mlps=(2,))
    rows = found.split.test[:40]
    parts = selects(store, selection)
    means = means_of(store, found.split.validation, parts)
    stored = answers(store, found.plan, rows, parts, means)
    world = ca.Store.open(store.path).rows()
    from clip_anatomy.library.sources.opening import open_source

    source = open_source(f"world:{N}:val:balanced")
    model = EditedClip(demo, edit_of(store, demo, found, selection))
    live = model.encode_image(demo.pixels([source.fetch(world[at].path) for at in rows.tolist()]))
    plain = demo.encode_image([source.fetch(world[at].path) for at in rows.tolist()])
    cosines = (live / plain.norm(dim=-1, keepdim=True)) @ found.plan.texts.T
    assert torch.allclose(stored, cosines.detach(), atol=2e-3)
    assert (stored - (store.embeddings(rows, unit=True) @ found.plan.texts.T)).abs().max() > 0.02


def test_the_report_is_on_test_images_only_and_equals_brute_force(found, store):
    selection = selection_of(found.best.parts)
    told = repair(store, found, selection)
    rows = found.split.test
    labels, groups = store.column("shape"), store.column("group")
    two = store.column("shape2")
    after = answers(
        store,
        found.plan,
        rows,
        selects(store, selection),
        means_of(store, found.split.validation, selects(store, selection)),
    )
    guess = [found.plan.main.classes[at] for at in after[:, : len(found.plan.main.classes)].argmax(1).tolist()]
    for move in told.groups:
        here = [k for k, at in enumerate(rows.tolist()) if groups[at] == move.name and two[at] is None]
        assert move.images == len(here)
        assert move.after == pytest.approx(np.mean([guess[k] == labels[rows[k]] for k in here]))
        assert move.after_within[0] <= move.after <= move.after_within[1]
    assert told.worst.change > 0.1
    assert told.cue == "background"
    assert try_out(store, found, selection).worst == pytest.approx(found.best.score.worst)


class Poisoned(Store):
    """A store whose test images hold NaN, wrong labels and wrong groups."""

    def _mask(self) -> np.ndarray:
        if "mask" not in self.__dict__:
            self.__dict__["mask"] = np.zeros(len(self), bool)
            self.__dict__["mask"][split_of(Store.open(self.path)).test] = True
        return self.__dict__["mask"]

    def _gather(self, read, rows, shape, dtype):
        kept = super()._gather(read, rows, shape, dtype).clone()
        places = np.arange(len(self)) if rows is None else np.asarray(rows)
        kept[torch.from_numpy(self._mask()[places])] = float("nan")
        return kept

    def batches(self, size=1024, layers=None):
        for start, heads in super().batches(size, layers):
            heads[torch.from_numpy(self._mask()[start : start + len(heads)])] = float("nan")
            yield start, heads

    def scan(self, pairs, size=65_536):
        raise AssertionError("a scan reads test images")

    def moments(self, groups=None, chunks=None):
        raise AssertionError("the kept moments are of test images too")

    def column(self, name):
        values = super().column(name)
        wrong = {"shape": "bird", "label": "bird", "group": "fish on sky", "background": "snow", "shape2": None}
        if name in ("id", "split"):
            return values
        return [wrong.get(name, "rubbish") if bad else value for value, bad in zip(values, self._mask(), strict=True)]


def test_the_test_split_is_never_read_in_the_choice(found, store, demo):
    poisoned = Poisoned(store.path, store.about, store.blocks, store.epoch)
    again = find_cue(poisoned, demo)
    assert again.choices == found.choices
    assert again.suspects == found.suspects
    assert again.best == found.best
    assert again.plan.names == found.plan.names
    with pytest.raises(BadInput, match=r"NaN|match no class"):
        repair(poisoned, again, selection_of(again.best.parts))  # the poison is real: the report does read it


def test_the_choice_depends_on_the_validation_split(found, store, demo):
    other = find_cue(store, demo, seed=5)
    assert other.before != found.before
    assert set(other.split.validation) != set(found.split.validation)


def test_halves_do_not_depend_on_labels_or_order(store):
    halves = split_of(store)
    assert sorted([*halves.validation, *halves.test]) == list(range(N))
    assert not set(halves.validation) & set(halves.test)
    assert abs(len(halves.test) - N / 2) < 4 * np.sqrt(N / 4)
    few = split_of(store, most=50)
    assert len(few.validation) == len(few.test) == 50
    assert set(few.test) <= set(halves.test)


def test_examples_are_the_pictures_that_a_part_speaks_up_for(found, store):
    shown = examples(store, found, (Part(7, 3),))
    assert [len(one.rows) for one in shown] == [3, 3]
    for one in shown:
        assert all(row.meta["background"] == one.text for row in one.rows)
        assert all(row.index in set(found.split.validation.tolist()) for row in one.rows)


def test_groups_are_told_in_four_ways(store, demo):
    rows = split_of(store).validation
    assert plan_of(store, demo, rows).rule == "as they are"
    counted = plan_of(store, demo, rows, label="count")
    assert (counted.rule, counted.names) == ("agrees", ("digit agrees", "digit disagrees", "no digit"))
    labels = counted.labels(store, rows)[0]
    groups = counted.groups(store, rows, labels)
    count, digit = store.column("count"), store.column("digit")
    words = {"one": "1", "two": "2", "three": "3", "four": "4"}
    for k, at in enumerate(rows.tolist()):
        if labels[k] >= 0:
            told = (
                "no digit"
                if digit[at] is None
                else f"digit {'agrees' if words[count[at]] == digit[at] else 'disagrees'}"
            )
            assert counted.names[groups[k]] == told
    assert plan_of(store, demo, rows, group="background").rule == "crossed"
    assert plan_of(store, demo, rows, label="count", group="size", cue="red, blue").cue == ("red", "blue")


def test_without_groups_a_cue_in_words_is_enough(store, demo):
    class Groupless(Store):
        def column(self, name):
            return [""] * len(self) if name == "group" else super().column(name)

    bare = Groupless(store.path, store.about, store.blocks, store.epoch)
    with pytest.raises(BadInput, match=r"in no groups, and no cue is suspected. Type --group COLUMN"):
        find_cue(bare, demo)
    told = find_cue(bare, demo, cue="sky, water, night, grass")
    assert told.plan.rule == "guessed"
    assert "bird, water" in told.plan.names
    assert {part.name for part in told.best.parts} & {"7.0", "7.3", "2.0"}


def test_heads_only_leaves_mlps_alone(store, demo):
    told = find_cue(store, demo, label="count", heads_only=True)
    assert all(one.part.head >= 0 for one in told.suspects)
    assert len(parts_of(store)) == len(told.suspects) + len(store.about.layers)


def test_a_store_too_large_to_hold_is_gone_through_in_pieces(found, store, demo, monkeypatch):
    each = 4 * len(found.split.validation) * len(found.plan.texts)
    monkeypatch.setattr("clip_anatomy.repairs.cue.BYTES", 20 * each)  # 20 of 56 parts at a time
    again = find_cue(store, demo)
    assert again.suspects == found.suspects
    assert again.choices[:3] == found.choices[:3]  # by name and by variance: their heads are all there
    assert again.best.score.goal == pytest.approx(found.best.score.goal, abs=0.03)
    monkeypatch.setattr("clip_anatomy.repairs.silenced.BYTES", 2 * each)
    with pytest.raises(BadInput, match=r"parts × .* would take .* GB.*type fewer --images"):
        find_cue(store, demo)


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": "nothing"}, r"column 'nothing' is empty.* Type one of: label, group, shape"),
        ({"label": "bad'name\""}, r"is no column"),
        ({"classes": "bird, fish"}, r"match no class name: .* Type --classes"),
        ({"classes": "bird"}, r"two or more are needed"),
        ({"classes": "bird, Bird"}, r"one stands twice"),
        ({"group": "nothing"}, r"in no groups, and no cue"),
        ({"also": ["nothing"]}, r"column 'nothing' is empty"),
        ({"split": "nothing"}, r"'nothing' is empty or not there. Type one of"),
        ({"split": "colour"}, r"'test' for the images to report on"),
        ({"cost": 3.0}, r"type cost=0.02"),
        ({"images": 3}, r"10 or more of each are needed"),
        ({"templates": ["no place"]}, r"must hold exactly one"),
    ],
)
def test_bad_settings_are_named(store, demo, settings, said):
    with pytest.raises(BadInput, match=said):
        find_cue(store, demo, **settings)


def test_one_class_only_is_named(store, demo):
    class Birds(Store):
        def column(self, name):
            values = super().column(name)
            return ["bird"] * len(values) if name == "shape" else values

    with pytest.raises(BadInput, match=r"one class only \(bird\); two or more are needed"):
        find_cue(Birds(store.path, store.about, store.blocks, store.epoch), demo)


def test_one_group_only_is_named(store, demo):
    class Same(Store):
        def column(self, name):
            values = super().column(name)
            return ["everything"] * len(values) if name == "group" else values

    # Crossed with the classes, one value gives a group a class: still something to compare.
    assert find_cue(Same(store.path, store.about, store.blocks, store.epoch), demo).plan.rule == "crossed"

    class Alone(Store):
        def column(self, name):
            values = super().column(name)
            shapes = super().column("shape")
            return ["birds" if shape == "bird" else "" for shape in shapes] if name == "group" else values

    with pytest.raises(BadInput, match=r"only one is not .*Type --group COLUMN"):
        find_cue(Alone(store.path, store.about, store.blocks, store.epoch), demo)


def test_parts_that_are_not_there_are_named(found, store, demo, tmp_path):
    with pytest.raises(BadSpec, match=r"heads that do not exist: 9.0"):
        repair(store, found, Selection(heads=((9, 0),)))
    with pytest.raises(BadSpec, match=r"a repair silences heads and MLPs"):
        repair(store, found, Selection(class_to_class=(1,)))
    ca.index(demo, "world:60:val:balanced", tmp_path / "small")
    small = Store.open(tmp_path / "small")
    with pytest.raises(StoreError, match=r"holds no MLPs.*--keep heads,mlps"):
        selects(small, Selection(mlps=(1,)))


def test_a_store_of_the_other_convention_is_refused(demo, tmp_path):
    ca.index(demo, "world:40:val:balanced", tmp_path / "even", convention="even")
    with pytest.raises(StoreError, match=r"--convention even; a repair needs .*--convention own"):
        find_cue(Store.open(tmp_path / "even"), demo)


def test_labels_match_names_without_regard_to_case_and_hyphens():
    assert codes_in(["Land-Bird", "", "water bird"], ["land bird", "water_bird"], "y").tolist() == [0, -1, 1]
    assert class_named("3", ("one", "two", "three")) == 2
    assert class_named("11", ("one", "two")) == -1


def test_an_edit_of_nothing_is_the_model(found, store, demo):
    assert not edit_of(store, demo, found, Selection()).changes
    assert isinstance(edit_of(store, demo, found, Selection()), Edit)
