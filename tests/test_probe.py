"""Linear probes: against scikit-learn and plain linear algebra, on embeddings and on what heads wrote, and over the command line."""

import json
import sys

import miniatures as mini
import numpy as np
import pytest
import torch
from stores import clip

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture import Picture
from clip_anatomy.errors import BadInput, BadSpec, MissingExtra
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store
from clip_anatomy.studies.image_split import Split
from clip_anatomy.studies.linear_probe import METHODS, C, ClassSums, LinearProbe, fit_probe
from clip_anatomy.studies.probe import ProbeImages, _row, probe, probe_images

__all__ = ["clip"]  # fixture


def clouds(count=600, classes=4, embed=12, seed=0, flat=1.0):
    """Overlapping clouds, some directions of which are `flat` times as wide as others, in the order of their classes."""
    dice = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(classes, embed))
    y = np.sort(dice.integers(0, classes, count))
    x = (centres[y] + 0.9 * dice.normal(size=(count, embed))) * np.geomspace(1, flat, embed) + 3
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def batches(x, y, size=100):
    return lambda: [(x[at : at + size], y[at : at + size]) for at in range(0, len(x), size)]


def test_ridge_is_the_solution_of_the_normal_equations_and_sums_merge():
    x, y = clouds()
    shift = x.double().mean(0)
    whole = ClassSums.of_batches(batches(x, y)(), 4, shift)
    halves = ClassSums.of_batches([(x[:250], y[:250])], 4, shift).merge(
        ClassSums.of_batches(batches(x[250:], y[250:], 33)(), 4, shift)
    )
    assert torch.allclose(whole.square, halves.square, atol=1e-9)
    for strength in (1.0, 1e-4):
        (found,) = halves.ridge([strength])
        centred = x.double() - x.double().mean(0)
        target = torch.nn.functional.one_hot(y, 4).double()
        unit = centred.square().mean(0).mean()
        plain = torch.linalg.solve(
            centred.T @ centred / len(x) + strength * unit * torch.eye(12).double(),
            centred.T @ (target - target.mean(0)) / len(x),
        )
        assert torch.allclose(found.weight, plain.T, atol=1e-8)
        assert torch.allclose(found.bias, target.mean(0) - x.double().mean(0) @ plain, atol=1e-8)
    with pytest.raises(BadInput, match="different shifts"):
        whole.merge(ClassSums.of_batches([(x, y)], 4, shift + 1))


def test_logistic_is_scikit_learns_with_the_strength_that_does_best_on_held_out_images():
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (x, y), (z, t), (u, _) = clouds(300), clouds(150, seed=3), clouds(400, seed=4)
    found = fit_probe(batches(x, y), batches(z, t), 4, "logistic")

    def theirs(strength):
        return make_pipeline(PCA(whiten=True), LogisticRegression(C=strength, max_iter=2000)).fit(x.numpy(), y.numpy())

    scores = {c: theirs(c).score(z.numpy(), t.numpy()) for c in C}
    assert found.validation == pytest.approx(max(scores.values()), abs=0.01)
    assert scores[found.strength] == pytest.approx(max(scores.values()), abs=0.01)
    scaler = PCA(whiten=True).fit(x.numpy())
    both = LogisticRegression(C=found.strength, max_iter=2000).fit(
        scaler.transform(torch.cat([x, z]).numpy()), torch.cat([y, t]).numpy()
    )
    assert (found.predict(u).numpy() == both.predict(scaler.transform(u.numpy()))).mean() > 0.99
    assert found.converged


def test_sgd_sees_batches_only_and_comes_near_logistic_on_badly_conditioned_features():
    (x, y), held, (u, v) = clouds(2000, flat=1e-3), clouds(300, seed=3, flat=1e-3), clouds(2000, seed=4, flat=1e-3)
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    sizes = []

    def stream():
        for piece in mixed.split(128):
            sizes.append(len(piece))
            yield x[piece], y[piece]

    streamed = fit_probe(stream, batches(*held), 4, "sgd", epochs=5)
    assert max(sizes) == 128
    assert len(sizes) == 6 * 16  # one pass for the frame, five of training
    whole = fit_probe(batches(x, y), batches(*held), 4, "logistic")
    ridge = fit_probe(batches(x, y), batches(*held), 4, "ridge")
    accuracy = {p.method: p.accuracy(batches(u, v)()) for p in (streamed, whole, ridge)}
    assert accuracy["logistic"] > 0.85
    assert abs(accuracy["sgd"] - accuracy["logistic"]) < 0.02
    assert abs(accuracy["ridge"] - accuracy["logistic"]) < 0.05
    again = fit_probe(stream, batches(*held), 4, "sgd", epochs=5)
    assert torch.equal(again.weight, streamed.weight)


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_missing_classes_and_no_held_out_images(method):
    x, y = clouds(200, classes=2)
    found = fit_probe(batches(x, y * 2), batches(x[:0], y[:0]), 4, method)
    assert found.accuracy([(x, y * 2)]) > 0.9
    assert set(found.predict(x).tolist()) == {0, 2}
    assert found.bias[[1, 3]].tolist() == [-torch.inf] * 2
    with pytest.raises(BadInput, match="of 1 class: a probe tells two or more apart"):
        fit_probe(batches(x, y * 0), batches(x, y), 4, method)
    with pytest.raises(BadInput, match="not finite"):
        fit_probe(batches(x / 0, y), batches(x, y), 4, method)
    with pytest.raises(BadInput, match=r"labels 0..2 for 2 classes"):
        fit_probe(batches(x, y * 2), batches(x, y), 2, method)


def test_an_unknown_method_and_no_images_are_refused():
    with pytest.raises(BadSpec, match="one of: logistic, sgd, ridge"):
        fit_probe(batches(*clouds(9)), batches(*clouds(9)), 4, "svm")
    with pytest.raises(BadInput, match="no images"):
        fit_probe(lambda: [], lambda: [], 2, "ridge")


def test_without_scikit_learn_the_install_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    x, y = clouds(50)
    with pytest.raises(MissingExtra, match=r"pip install 'clip-anatomy\[measure\]'"):
        fit_probe(batches(x, y), batches(x, y), 4, "logistic")
    assert fit_probe(batches(x, y), batches(x, y), 4, "ridge").method == "ridge"  # needs none


# ---- on a store


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("probe") / "world"
    index(ca.load("demo"), "world:400:test", folder)
    return Store.open(folder)


def test_probes_on_the_demo_world_tell_full_and_ablated_embeddings_apart(world):
    steps = []
    found = probe(world, label="background", last=[1, 2], without=["layer=0-1"], progress=lambda *s: steps.append(s))
    names = [row.name for row in found.rows]
    assert names == [
        "full embedding",
        "attention of the last layer only",
        "attention of the last 2 layers only",
        "without layer=0-1",
    ]
    assert found.rows[0].accuracy > 0.9
    assert found.train + found.test == 400
    assert steps[-1][1] == steps[-1][2]
    for row in found.rows:
        low, high = row.interval
        assert low <= row.accuracy <= high
        assert row.worst_interval[0] <= row.worst[1]
    table = found.table().splitlines()
    assert table[0].split()[:2] == ["percent", "right"]
    assert len(table) == 5
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["name"] == "full embedding"
    again = probe(world, label="background", last=[1, 2], without=["layer=0-1"])
    assert [(r.accuracy, r.interval) for r in again.rows] == [(r.accuracy, r.interval) for r in found.rows]


def test_what_a_probe_sees_is_what_the_heads_wrote(world):
    """Predictions of a probe on a store equal those of a probe on the parts of a fresh split, brute force."""
    demo = ca.load("demo")
    data = probe_images(world, label="background")
    parts = ca.decompose(demo, [picture.data for picture in open_dataset("world:400:test")])
    unit = parts.embedding.norm(dim=-1)[:, None]
    late = parts.heads[:, -2:].sum((1, 2)) / unit
    without = (parts.embedding - parts.heads[:, 0].sum(1)) / unit
    table = probe(world, label="background", last=[2], without=["layer=0"], method="ridge")
    for row, x in zip(table.rows, (parts.embedding / unit, late, without), strict=True):
        y = torch.from_numpy(data.labels)
        one = fit_probe(
            lambda x=x, y=y: [(x[data.split.train], y[data.split.train])],
            lambda x=x, y=y: [(x[data.split.validation], y[data.split.validation])],
            len(data.classes),
            "ridge",
        )
        assert row.accuracy == pytest.approx(one.accuracy([(x[data.split.test], y[data.split.test])]), abs=0.03), (
            row.name
        )


def test_heads_are_left_out_by_their_names(world):
    from clip_anatomy.retrieval.store_atlas import atlas_of

    named = atlas_of(world, lambda: ca.load("demo", parity=False))
    heads = ",".join(f"{layer}.{head}" for layer, head in named.select("role=background"))
    asked = {"label": "background", "last": [], "method": "ridge"}
    by_role, by_number = (
        probe(world, without=[spec], atlas=named, **asked).rows[1] for spec in ("role=background", heads)
    )
    assert by_role.name == "without role=background"
    assert (by_role.accuracy, by_role.groups) == (by_number.accuracy, by_number.groups)


def test_the_test_images_change_nothing_in_training(world, tmp_path, monkeypatch):
    """Labels of the test images poisoned: the same probes come out, only their figures change."""
    probes = []
    real = fit_probe

    def kept(*args, **more):
        probes.append(real(*args, **more))
        return probes[-1]

    monkeypatch.setattr("clip_anatomy.studies.probe.fit_probe", kept)
    probe(world, label="background", last=[2])
    data = probe_images(world, label="background")
    poisoned = data.labels.copy()
    poisoned[data.split.test] = (poisoned[data.split.test] + 1) % len(data.classes)
    monkeypatch.setattr("clip_anatomy.studies.probe._classes", lambda *_: (poisoned, data.classes))
    worse = probe(world, label="background", last=[2])
    assert [torch.equal(a.weight, b.weight) for a, b in zip(probes[:2], probes[2:], strict=True)] == [True, True]
    assert worse.rows[0].accuracy < 0.1


def test_waterbirds_are_probed_on_their_official_split_with_the_four_groups(clip, tmp_path):
    index(clip, f"waterbirds:{mini.waterbirds(tmp_path / 'w', each=5)}:partial", tmp_path / "s")
    store = Store.open(tmp_path / "s")
    data = probe_images(store)
    splits = np.array(store.column("split"))
    assert [set(splits[p]) for p in (data.split.train, data.split.validation, data.split.test)] == [
        {"train"},
        {"val"},
        {"test"},
    ]
    found = probe(store, last=[1], group="place")
    assert found.split == "column 'split'"
    assert (found.train, found.test) == (40, 20)
    assert found.images == {"land": 10, "water": 10}
    assert set(probe(store, last=[1], method="ridge").images) == set(store.column("group"))
    # Without test images the validation images are the test, and this is said.
    index(clip, f"cub:{mini.cub(tmp_path / 'c')}:partial", tmp_path / "cub")
    species = probe(Store.open(tmp_path / "cub"), last=[1], method="ridge")
    assert set(species.images) == set(species.classes)


def stored(clip, tmp_path, notes):
    pictures = [
        Picture(f"{at:03d}", np.asarray(mini.bird(at % 2, at)), None, label, "", (), {"split": split} if split else {})
        for at, (label, split) in enumerate(notes)
    ]
    index(clip, pictures, tmp_path / "s")
    return Store.open(tmp_path / "s")


def test_what_cannot_be_probed_is_named(clip, tmp_path):
    notes = [(("a", "b")[at % 2], ("train", "test")[at % 3 == 0]) for at in range(30)]
    store = stored(clip, tmp_path, [*notes, ("", "train"), ("c", "test")])
    found = probe(store, last=[1], method="ridge")
    assert "1 images without a label were left out." in found.notes
    assert "Classes without a training image, always wrong: c." in found.notes
    for more, says in (
        ({"label": "colour"}, "column 'colour' .* no labels. Type label= with one of: label, group, split"),
        ({"group": "place"}, "column 'place' .* is empty or not there"),
        ({"split": "label"}, "does not say train and test; it holds: .*a, b"),
        ({"label": 'x"y'}, "is no column"),
    ):
        with pytest.raises(BadInput, match=says):
            probe(store, last=[1], **more)
    with pytest.raises(BadSpec, match="last=3: the store holds layers .* Type a number of 1 to 2"):
        probe(store, last=[3])
    with pytest.raises(BadSpec, match="heads that do not exist: 7.7"):
        probe(store, without=["7.7"])
    with pytest.raises(BadSpec, match="a probe without heads was expected"):
        probe(store, last=[1], without=["mlp=0"])
    with pytest.raises(BadSpec, match="one of: logistic, sgd, ridge"):
        probe(store, last=[1], method="svm")
    (tmp_path / "one").mkdir()
    with pytest.raises(BadInput, match="holds one class: a"):
        probe(stored(clip, tmp_path / "one", [("a", "")] * 9), last=[1])
    (tmp_path / "no").mkdir()
    with pytest.raises(BadInput, match="2 labelled images to train on and 0 to test on"):
        probe(stored(clip, tmp_path / "no", [("a", "train"), ("b", "train"), ("", "test")]), last=[1])


def test_the_command_prints_a_table_and_json(world, tmp_path, capsys):
    words = ["probe", str(world.path), "--last", "1", "--label", "background", "--method", "ridge"]
    assert main([*words, "--out", str(tmp_path / "p" / "probe.json")]) == 0
    out = capsys.readouterr().out
    assert "linear probes of 'background' (8 classes), ridge" in out
    assert "attention of the last layer only" in out
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "clip-anatomy/probe/1"
    kept = json.loads((tmp_path / "p" / "probe.json").read_text())
    assert [row["accuracy"] for row in said["rows"]] == [row["accuracy"] for row in kept["rows"]]
    assert main([*words[:3], "many"]) == 2
    assert "Type --last 1,4 or --last none" in capsys.readouterr().err
    assert main([*words[:2], "--last", "none", "--label", "shape", "--method", "ridge"]) == 0
    assert "full embedding" in capsys.readouterr().out


def test_a_group_of_one_image_is_not_the_worst():
    images = ProbeImages(
        np.zeros(31, np.int64), ("a", "b"), np.array([0] * 20 + [1] + [2] * 10), ("land", "mars", "sea"),
        Split(np.arange(0), np.arange(0), np.arange(31), "as given"),
    )  # fmt: skip
    right = np.ones(31, dtype=bool)
    right[[0, 20, 21]] = False  # land 19 of 20, mars 0 of 1, sea 9 of 10
    row = _row("x", images, right, LinearProbe(torch.zeros(2, 3).double(), torch.zeros(2).double(), "ridge", 1.0), 0)
    assert row.worst == ("sea", 0.9)
    assert row.worst_interval[0] > 0.5
