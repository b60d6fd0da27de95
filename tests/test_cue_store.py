"""Finding a cue in a store of the demo world, and the proof that the test split is never read in the choice."""

import numpy as np
import pytest
import torch
from worlds import BALANCED, balanced

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.store.store import Store
from clip_anatomy.studies.cue_scores import COST, Budget
from clip_anatomy.studies.example_images import changed_answers, cue_examples
from clip_anatomy.studies.find_cue import find_cue
from clip_anatomy.studies.image_split import halves_of
from clip_anatomy.studies.repair_ablations import (
    HeadOrMlp,
    PartAblation,
    answers,
    checked_parts,
    means_of,
    parts_of,
    selection_of,
)
from clip_anatomy.studies.repair_effect import measure_repair, repair_edit, validation_score
from clip_anatomy.studies.repair_task import TaskSettings, repair_task
from clip_anatomy.studies.store_columns import codes_in, matching_class


@pytest.fixture(scope="module")
def demo():
    torch.set_num_threads(1)
    return ca.load("demo")


@pytest.fixture(scope="module")
def store(demo, tmp_path_factory):
    return Store.open(balanced(tmp_path_factory), demo)


@pytest.fixture(scope="module")
def found(store, demo):
    return find_cue(store, demo)


def test_the_cue_of_the_demo_world_is_its_background(found):
    assert found.task.cue == ("sky", "water", "grass", "night")
    assert found.cue_roles == ("background",)
    for way in ("name", "variance", "group accuracy"):
        top = {part.name for part in found.ranked(way)[:4]}
        assert len(top & {"7.0", "7.3", "2.0"}) >= 2, (way, top)
    assert found.best.score.worst > found.before.worst + 0.2
    assert found.best.score.within_budget(found.before, COST, found.task.cue_task)


def test_the_edit_does_on_pictures_what_the_store_said(found, store, demo):
    """Brute force: the pictures again, through the edited model, against the answers from stored parts."""
    selection = selection_of(found.best.parts[:2]) | Selection(mlps=(2,))
    rows = found.split.test[:40]
    parts = checked_parts(store, selection)
    means = means_of(store, found.split.validation, parts)
    stored = answers(store, found.task, rows, parts, means)
    world = ca.Store.open(store.path).rows()
    source = open_dataset(BALANCED)
    model = EditedClip(demo, repair_edit(store, demo, found, selection))
    live = model.encode_image(demo.pixels([source.fetch(world[at].path) for at in rows.tolist()]))
    plain = demo.encode_image([source.fetch(world[at].path) for at in rows.tolist()])
    cosines = (live / plain.norm(dim=-1, keepdim=True)) @ found.task.texts.T
    assert torch.allclose(stored, cosines.detach(), atol=2e-3)
    assert (stored - (store.embeddings(rows, unit=True) @ found.task.texts.T)).abs().max() > 0.02


def test_the_report_is_on_test_images_only_and_equals_brute_force(found, store):
    selection = selection_of(found.best.parts)
    told = measure_repair(store, found, selection)
    rows = found.split.test
    labels, groups = store.column("shape"), store.column("group")
    two = store.column("shape2")
    after = answers(
        store,
        found.task,
        rows,
        checked_parts(store, selection),
        means_of(store, found.split.validation, checked_parts(store, selection)),
    )
    guess = [found.task.main.classes[at] for at in after[:, : len(found.task.main.classes)].argmax(1).tolist()]
    for move in told.groups:
        here = [k for k, at in enumerate(rows.tolist()) if groups[at] == move.name and two[at] is None]
        assert move.images == len(here)
        assert move.after == pytest.approx(np.mean([guess[k] == labels[rows[k]] for k in here]))
        assert move.after_interval[0] <= move.after <= move.after_interval[1]
    assert told.worst.change > 0.1
    assert told.cue_task == "background"
    assert validation_score(store, found, selection).worst == pytest.approx(found.best.score.worst)


class Poisoned(Store):
    """A store whose test images hold NaN, wrong labels and wrong groups."""

    def _mask(self) -> np.ndarray:
        if "mask" not in self.__dict__:
            self.__dict__["mask"] = np.zeros(len(self), bool)
            self.__dict__["mask"][halves_of(Store.open(self.path)).test] = True
        return self.__dict__["mask"]

    def gather(self, read, rows, shape, dtype):
        kept = super().gather(read, rows, shape, dtype).clone()
        places = np.arange(len(self)) if rows is None else np.asarray(rows)
        hidden = torch.from_numpy(self._mask()[places])
        kept[hidden] = float("nan") if kept.is_floating_point() else torch.iinfo(kept.dtype).max
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
    poisoned = Poisoned(store.path, store.manifest, store.blocks, store.epoch)
    again = find_cue(poisoned, demo)
    assert again.candidates == found.candidates
    assert again.suspects == found.suspects
    assert again.best == found.best
    assert again.task.group_names == found.task.group_names
    with pytest.raises(BadInput, match=r"scores of \d+ of \d+ images are NaN"):
        measure_repair(poisoned, again, selection_of(again.best.parts))  # the poison is real: the report does read it


def test_the_choice_depends_on_the_validation_split(found, store, demo):
    other = find_cue(store, demo, halves=halves_of(store, seed=5))
    assert other.before != found.before
    assert set(other.split.validation) != set(found.split.validation)


def test_halves_do_not_depend_on_labels_or_order(store):
    halves = halves_of(store)
    assert sorted([*halves.validation, *halves.test]) == list(range(len(store)))
    assert not set(halves.validation) & set(halves.test)
    assert abs(len(halves.test) - len(store) / 2) < 4 * np.sqrt(len(store) / 4)
    few = halves_of(store, most=50)
    assert len(few.validation) == len(few.test) == 50
    assert set(few.test) <= set(halves.test)


def test_along_the_cue_only_what_a_head_says_of_it_is_ablated(found, store, demo):
    """Against the definition, in the joint space: x − (x − mean) FᵀF; and on pictures, through the saved kind of edit."""
    way = found.candidates[-1]
    assert (way.strategy, way.along_cue) == ("along the cue only", True)
    assert way.score.worst > found.before.worst + 0.2
    frame = found.task.cue_frame.double()
    assert torch.allclose(frame @ frame.T, torch.eye(3).double(), atol=1e-6)  # four texts, less their mean
    gone = (found.task.cue_texts - found.task.cue_texts.mean(0)).double()
    assert torch.allclose(gone @ frame.T @ frame, gone, atol=1e-5)

    rows, heads = found.split.test[:40], ((7, 0), (7, 3))
    ablation = PartAblation(Selection(heads), "cue")
    slow = store.embeddings(rows, unit=True).double()
    for layer, head in heads:
        row = store.basis.rows[store.layer_at(layer), head]
        mean = store.heads(layer, head, found.split.validation).double().mean(0)
        slow -= (store.heads(layer, head, rows).double() - mean) @ row @ frame.T @ frame
    parts = checked_parts(store, ablation)
    means = means_of(store, found.split.validation, parts)
    stored = answers(store, found.task, rows, parts, means, along_cue=True)
    assert torch.allclose(stored.double(), slow @ found.task.texts.double().T, atol=1e-5)

    source, known = open_dataset(BALANCED), store.rows()
    pixels = demo.pixels([source.fetch(known[at].path) for at in rows.tolist()])
    live = EditedClip(demo, repair_edit(store, demo, found, ablation)).encode_image(pixels)
    cosines = (live / demo.encode_image(pixels).norm(dim=-1, keepdim=True)) @ found.task.texts.T
    assert torch.allclose(stored, cosines.detach(), atol=2e-3)
    with pytest.raises(BadSpec, match=r"7.0\+mlp=2 along cue: .* Type 7.0\+mlp=2"):
        measure_repair(store, found, PartAblation(Selection(((7, 0),), mlps=(2,)), "cue"))


def test_pictures_whose_answer_changed_are_shown_from_the_worst_groups(found, store):
    told = measure_repair(store, found, found.best.ablation)
    seen = changed_answers(store, found, told, won=5, lost=2)
    assert seen.won - seen.lost == round((told.average.after - told.average.before) * told.average.images)
    assert [one.corrected for one in seen.shown].count(True) == 5
    for one in seen.shown:
        assert one.truth == one.row.meta["shape"]
        assert one.before != one.after
        assert one.truth in (one.before, one.after)
        assert one.row.index in set(found.split.test.tolist())
    assert seen.shown[0].group == told.worst_before.name


class Stranger(Store):
    """A store in which only test images are of one more class, and of one more group."""

    def column(self, name):
        values = super().column(name)
        if name not in ("shape", "group"):
            return values
        test = set(halves_of(Store.open(self.path)).test.tolist())
        rare = {"shape": ("fish", "cod"), "group": ("bird on water", "bird on the moon")}[name]
        return [rare[1] if at in test and value == rare[0] else value for at, value in enumerate(values)]


def test_a_class_or_a_group_of_test_images_alone_is_said_not_refused(demo, store):
    rare = Stranger(store.path, store.manifest, store.blocks, store.epoch)
    found = find_cue(rare, demo, TaskSettings(templates=["a {}"], also=[]))
    told = measure_repair(rare, found, Selection(((7, 3),)))
    assert "cod" not in found.task.main.classes
    assert any("not asked of test images that are cod" in one for one in told.notes)
    assert any("test images are in groups that too few validation images are in" in one for one in told.notes)
    asked = sum(label not in ("cod", None) and two is None for label, two in zip(
        np.array(rare.column("shape"), dtype=object)[found.split.test],
        np.array(rare.column("shape2"), dtype=object)[found.split.test],
        strict=True,
    ))  # fmt: skip
    assert told.average.images == asked


def test_examples_are_the_pictures_that_a_part_speaks_up_for(found, store):
    shown = cue_examples(store, found, (HeadOrMlp(7, 3),))
    assert [len(one.rows) for one in shown] == [3, 3]
    for one in shown:
        assert all(row.meta["background"] == one.text for row in one.rows)
        assert all(row.index in set(found.split.validation.tolist()) for row in one.rows)


def test_groups_are_told_in_four_ways(store, demo):
    rows = halves_of(store).validation
    assert repair_task(store, demo, rows).rule == "as they are"
    counted = repair_task(store, demo, rows, TaskSettings("count"))
    assert (counted.rule, counted.group_names) == ("agrees", ("digit agrees", "digit disagrees", "no digit"))
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
            assert counted.group_names[groups[k]] == told
    assert repair_task(store, demo, rows, TaskSettings(group="background")).rule == "crossed"
    assert repair_task(store, demo, rows, TaskSettings("count", group="size", cue="red, blue")).cue == ("red", "blue")


def test_without_groups_a_cue_in_words_is_enough(store, demo):
    class Groupless(Store):
        def column(self, name):
            return [""] * len(self) if name == "group" else super().column(name)

    bare = Groupless(store.path, store.manifest, store.blocks, store.epoch)
    with pytest.raises(BadInput, match=r"in no groups, and no cue is suspected. Type group=COLUMN"):
        find_cue(bare, demo)
    told = find_cue(bare, demo, TaskSettings(cue="sky, water, night, grass"))
    assert told.task.rule == "guessed"
    assert {"bird, sky", "star, grass", "flower, night"} <= set(told.task.group_names)
    assert {part.name for part in told.best.parts} & {"7.0", "7.3", "2.0"}


def test_heads_only_leaves_mlps_alone(store, demo):
    told = find_cue(store, demo, TaskSettings("count"), heads_only=True)
    assert all(one.part.head >= 0 for one in told.suspects)
    assert len(parts_of(store)) == len(told.suspects) + len(store.manifest.layers)


def test_a_store_too_large_to_hold_is_gone_through_in_pieces(found, store, demo, monkeypatch):
    each = 4 * len(found.split.validation) * len(found.task.texts)
    monkeypatch.setattr("clip_anatomy.studies.find_cue.BYTES", 20 * each)  # 20 of 56 parts at a time
    again = find_cue(store, demo)
    assert again.suspects == found.suspects
    assert again.candidates[:3] == found.candidates[:3]  # by name and by variance: their heads are all there
    assert again.best.score.objective == pytest.approx(found.best.score.objective, abs=0.03)
    monkeypatch.setattr("clip_anatomy.studies.repair_ablations.BYTES", 2 * each)
    with pytest.raises(BadInput, match=r"parts × .* would take .* GB.*type fewer images="):
        find_cue(store, demo)


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": "nothing"}, r"column 'nothing' is empty.* Type label=COLUMN with one of: label, group, shape"),
        ({"label": "bad'name\""}, r"is no column"),
        ({"classes": "bird, fish"}, r"match no class name: .* Type classes="),
        ({"classes": "bird"}, r"two or more are needed"),
        ({"classes": "bird, Bird"}, r"one stands twice"),
        ({"group": "nothing"}, r"in no groups, and no cue"),
        ({"also": ["nothing"]}, r"column 'nothing' is empty"),
        ({"templates": ["no place"]}, r"must hold exactly one"),
    ],
)
def test_bad_settings_are_named(store, demo, settings, said):
    with pytest.raises(BadInput, match=said):
        find_cue(store, demo, TaskSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("nothing",), r"'nothing' is empty or not there. Type one of"),
        (("colour",), r"'test' for the images to report on"),
        ((None, 0, 3), r"10 or more of each are needed"),
    ],
)
def test_halves_that_cannot_be_made_are_named(store, settings, said):
    with pytest.raises(BadInput, match=said):
        halves_of(store, *settings)


def test_a_budget_of_more_than_all_is_refused():
    with pytest.raises(BadInput, match=r"cost=300.*type cost=2"):
        Budget(3.0)


def test_one_class_only_is_named(store, demo):
    class Birds(Store):
        def column(self, name):
            values = super().column(name)
            return ["bird"] * len(values) if name == "shape" else values

    with pytest.raises(BadInput, match=r"one class only \(bird\); two or more are needed"):
        find_cue(Birds(store.path, store.manifest, store.blocks, store.epoch), demo)


def test_one_group_only_is_named(store, demo):
    class Same(Store):
        def column(self, name):
            values = super().column(name)
            return ["everything"] * len(values) if name == "group" else values

    # Crossed with the classes, one value gives a group a class: still something to compare.
    assert find_cue(Same(store.path, store.manifest, store.blocks, store.epoch), demo).task.rule == "crossed"

    class Alone(Store):
        def column(self, name):
            values = super().column(name)
            shapes = super().column("shape")
            return ["birds" if shape == "bird" else "" for shape in shapes] if name == "group" else values

    with pytest.raises(BadInput, match=r"only one is not .*Type group=COLUMN"):
        find_cue(Alone(store.path, store.manifest, store.blocks, store.epoch), demo)


def test_parts_that_are_not_there_are_named(found, store, demo, tmp_path):
    with pytest.raises(BadSpec, match=r"heads that do not exist: 9.0"):
        measure_repair(store, found, Selection(heads=((9, 0),)))
    with pytest.raises(BadSpec, match=r"a repair ablates heads and MLPs"):
        measure_repair(store, found, Selection(class_to_class=(1,)))
    ca.index(demo, "world:60:val:balanced", tmp_path / "small")
    small = Store.open(tmp_path / "small")
    with pytest.raises(StoreError, match=r"holds no MLPs.*--keep heads,mlps"):
        checked_parts(small, Selection(mlps=(1,)))


def test_a_store_of_the_other_convention_is_refused(demo, tmp_path):
    ca.index(demo, "world:40:val:balanced", tmp_path / "official", convention="official")
    with pytest.raises(StoreError, match=r"convention='official'; a repair needs .*--convention centered"):
        find_cue(Store.open(tmp_path / "official"), demo)


def test_labels_match_names_without_regard_to_case_and_hyphens():
    assert codes_in(["Land-Bird", "", "water bird"], ["land bird", "water_bird"], "y").tolist() == [0, -1, 1]
    assert matching_class("3", ("one", "two", "three")) == 2
    assert matching_class("11", ("one", "two")) == -1


def test_an_edit_of_nothing_is_the_model(found, store, demo):
    assert not repair_edit(store, demo, found, Selection()).replacements
    assert isinstance(repair_edit(store, demo, found, Selection()), Edit)
