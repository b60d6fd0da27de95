"""Metrics against scikit-learn, torchmetrics, numpy loops and worked examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex, MultilabelAveragePrecision

from clip_anatomy.errors import BadInput
from clip_anatomy.evaluation.metrics import (
    IGNORED,
    Confusion,
    Mean,
    MultiLabel,
    Pointing,
    average_precision,
    pair_average_precision,
    points_at,
)
from clip_anatomy.evaluation.saliency import Saliency, saliency_measures

seeds = st.integers(0, 2**31)


@given(seed=seeds, classes=st.integers(2, 6), ignored=st.booleans())
@settings(max_examples=30, deadline=None)
def test_confusion_equals_scikit_learn_and_torchmetrics(seed: int, classes: int, ignored: bool) -> None:
    torch.manual_seed(seed)
    truth, said = torch.randint(0, classes, (3, 9, 7)), torch.randint(0, classes, (3, 9, 7))
    if ignored:
        truth[torch.rand(truth.shape) < 0.3] = IGNORED
    seen = Confusion.empty(classes)
    for one, other in zip(said, truth, strict=True):  # in a stream
        seen = seen.add(one, other)
    known = truth != IGNORED
    a, b = truth[known].numpy(), said[known].numpy()
    labels = list(range(classes))
    assert np.array_equal(seen.counts.numpy(), confusion_matrix(a, b, labels=labels))
    there = [c for c in labels if (a == c).any() or (b == c).any()]
    theirs = jaccard_score(a, b, labels=there, average=None)
    np.testing.assert_allclose(seen.iou[there].numpy(), theirs, atol=1e-12)
    assert seen.mean_iou == pytest.approx(float(np.mean(theirs)), abs=1e-12)
    assert seen.pixel_accuracy == pytest.approx(accuracy_score(a, b))
    jaccard = MulticlassJaccardIndex(classes, average=None, ignore_index=IGNORED)
    np.testing.assert_allclose(seen.iou[there].numpy(), jaccard(said, truth)[there].numpy(), atol=1e-6)


def test_confusion_merges_and_says_nan_of_nothing() -> None:
    a, b = torch.randint(0, 3, (40,)), torch.randint(0, 3, (40,))
    apart = Confusion.empty(3).add(a[:11], b[:11]).merge(Confusion.empty(3).add(a[11:], b[11:]))
    assert torch.equal(apart.counts, Confusion.empty(3).add(a, b).counts)
    nothing = Confusion.empty(3).add(a, torch.full((40,), IGNORED))
    assert nothing.mean_iou != nothing.mean_iou
    assert nothing.pixel_accuracy != nothing.pixel_accuracy
    # A class that is neither there nor predicted does not count as zero.
    assert Confusion.empty(3).add(torch.tensor([0, 1]), torch.tensor([0, 1])).mean_iou == 1.0


def test_confusion_refuses_other_sizes_and_unknown_classes() -> None:
    seen = Confusion.empty(2)
    with pytest.raises(BadInput, match="differ in size"):
        seen.add(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(BadInput, match=r"truth run from 0 to 7: 0\.\.1"):
        seen.add(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 7]))


@given(seed=seeds, levels=st.sampled_from([2, 5, 10_000]))
@settings(max_examples=40, deadline=None)
def test_average_precision_equals_scikit_learn_with_ties(seed: int, levels: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randint(0, levels, (60,)).float() / levels
    truth = torch.rand(60) < 0.3
    truth[0] = True
    theirs = average_precision_score(truth.numpy(), scores.numpy())
    assert average_precision(scores, truth) == pytest.approx(theirs, abs=1e-12)
    assert average_precision(scores, torch.zeros(60, dtype=torch.bool)) != 0  # NaN: nothing to find


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_pair_average_precision_is_the_protocols(seed: int) -> None:
    torch.manual_seed(seed)
    map_, mask = torch.rand(6, 5), torch.randint(-1, 2, (6, 5))
    if not (mask >= 0).any():
        mask[0, 0] = 1
    kept = (mask >= 0).numpy().ravel()
    pair = np.stack([1 - map_.numpy(), map_.numpy()]).reshape(2, -1)[:, kept]
    one_hot = np.stack([mask.numpy().ravel() == 0, mask.numpy().ravel() == 1])[:, kept]
    theirs = average_precision_score(one_hot.ravel(), pair.ravel())
    assert pair_average_precision(map_, mask) == pytest.approx(theirs, abs=1e-12)


@given(seed=seeds, classes=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_multilabel_map_equals_scikit_learn_and_torchmetrics(seed: int, classes: int) -> None:
    torch.manual_seed(seed)
    scores, labels = torch.rand(25, classes), torch.rand(25, classes) < 0.3
    labels[0] = True
    seen = MultiLabel()
    for row, truth in zip(scores, labels, strict=True):
        seen = seen.add(row, truth)
    theirs = average_precision_score(labels.numpy(), scores.numpy(), average="macro")
    assert seen.mean_ap == pytest.approx(theirs, abs=1e-6)
    if classes > 1:
        metric = MultilabelAveragePrecision(classes, average=None)
        np.testing.assert_allclose(seen.class_ap.numpy(), metric(scores, labels.int()).numpy(), atol=1e-5)


def test_a_class_that_no_picture_has_is_left_out_of_the_mean() -> None:
    seen = MultiLabel().add(torch.tensor([0.9, 0.5]), torch.tensor([True, False]))
    assert seen.class_ap[1] != seen.class_ap[1]
    assert seen.mean_ap == 1.0
    with pytest.raises(BadInput, match="do not match"):
        seen.add(torch.zeros(3), torch.zeros(3, dtype=torch.bool))


def test_pointing_game() -> None:
    map_ = torch.zeros(5, 6)
    map_[1, 4] = 1
    mask = torch.zeros(5, 6, dtype=torch.int64)
    assert points_at(map_, mask) is None
    mask[4, 4] = 1
    assert points_at(map_, mask) is False
    assert points_at(map_, mask, tolerance=3) is True
    assert points_at(map_, mask, tolerance=2.9) is False
    mask[1, 4] = 1
    assert points_at(map_, mask) is True
    mask[1, 4] = IGNORED  # the highest pixel does not count: the next one is asked
    map_[4, 4] = 0.5
    assert points_at(map_, mask) is True
    assert points_at(map_.masked_fill(map_ == 0.5, torch.nan), mask) is False
    assert Pointing().add(True).add(None).add(False).rate == 0.5
    assert Pointing().rate != Pointing().rate
    with pytest.raises(BadInput, match="differ in size"):
        points_at(map_, torch.zeros(6, 5))


MEASURES = (
    "S-measure", "E-measure (mean)", "E-measure (adaptive)", "F-measure (mean)", "F-measure (adaptive)",
    "F-measure (weighted)", "MAE",
)  # fmt: skip
NAN = float("nan")
# Of pysodmetrics 1.6.2 (its defaults, β² = 0.3), computed once; its S-measure is NaN where the object's centroid leaves a quadrant
# of the picture empty.
LIBRARY = {
    "random": (0.326607904, 0.401948926, 0.252212338, 0.381927112, 0.013612565, 0.521676696, 0.500876411),
    "soft": (0.771990881, 0.638815881, 0.930394763, 0.591490962, 0.820076796, 0.523239145, 0.199019608),
    "soft and noise": (0.622504357, 0.485434781, 0.577178679, 0.443515030, 0.633802817, 0.386226521, 0.321532839),
    "inverted": (0.000000000, 0.151866606, 0.255222287, 0.075620785, 0.000000000, 0.095717403, 0.800980392),
    "exact": (1.000000000, 0.998330831, 1.001264223, 0.997009547, 1.000000000, 1.000000000, 0.000000000),
    "opposite": (0.000000000, 0.000977797, 0.000000000, 0.000915797, 0.000000000, 0.000000000, 1.000000000),
    "flat map": (0.399414999, 0.250316056, 0.250316056, 0.118137820, 0.000000000, 0.209484672, 0.501213112),
    "black map": (0.404671717, 0.250316056, 0.250316056, 0.000915797, 0.234444046, 0.000000000, 0.190656566),
    "white map": (0.095328283, 0.250316056, 0.250316056, 0.234444046, 0.234444046, 0.233780037, 0.809343434),
    "empty mask": (0.723653199, 0.721737713, 0.828065740, 0.000000000, 0.000000000, 0.000000000, 0.276346801),
    "full mask": (0.276346801, 0.279526509, 0.173198483, 0.516155764, 0.475440470, 0.565820235, 0.723653199),
    "one pixel": (NAN, 0.272894641, 0.255953970, 0.000019326, 0.000000000, 0.003182838, 0.277589622),
    "first pixel": (0.405247511, 0.272892925, 0.255953970, 0.000012827, 0.000000000, 0.003156624, 0.277599525),
    "all but one": (0.208510647, 0.238347982, 0.244838536, 0.516317230, 0.475821534, 0.566095943, 0.722648049),
    "two objects": (0.725800758, 0.624497398, 0.902400238, 0.575812373, 0.800321199, 0.527078846, 0.217721331),
    "one row": (NAN, 0.479421871, 0.293794637, 0.493968776, 0.236363636, 0.722887648, 0.435284014),
    "one column": (NAN, 0.476955232, 0.296459769, 0.525024157, 0.282608696, 0.752188364, 0.435606061),
    "faint": (0.751642174, 0.581832232, 0.913130722, 0.475912626, 0.838709677, 0.529195476, 0.181818182),
}  # fmt: skip


def saliency_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    row, col = np.mgrid[:24, :33]
    blob = ((row - 9) ** 2 / 40 + (col - 20) ** 2 / 60) < 1
    soft = np.exp(-((row - 10) ** 2 / 60 + (col - 18) ** 2 / 90)).astype(np.float32)
    noise = rng.random((24, 33), dtype=np.float32)
    masks = rng.random((24, 33)) < 0.4
    cases = {
        "random": (noise, masks),
        "soft": (soft, blob),
        "soft and noise": (0.6 * soft + 0.4 * noise, blob),
        "inverted": (1 - soft, blob),
        "exact": (blob, blob),
        "opposite": (~blob, blob),
        "flat map": (np.full((24, 33), 0.5), blob),
        "black map": (np.zeros((24, 33)), blob),
        "white map": (np.ones((24, 33)), blob),
        "empty mask": (soft, np.zeros_like(blob)),
        "full mask": (soft, np.ones_like(blob)),
        "one pixel": (soft, (row == 23) & (col == 32)),
        "first pixel": (soft, (row == 0) & (col == 0)),
        "all but one": (soft, ~((row == 5) & (col == 5))),
        "two objects": (soft, blob | ((row > 20) & (col < 5))),
        "one row": (noise[:1], noise[1:2] > 0.6),
        "one column": (noise[:, :1], noise[:, 1:2] > 0.6),
        "faint": (soft * 0.01, blob),
    }
    return {name: (map_.astype(np.float32), mask) for name, (map_, mask) in cases.items()}


@pytest.mark.parametrize("name", LIBRARY)
def test_saliency_measures_are_those_of_the_library(name: str) -> None:
    measured = saliency_measures(*saliency_cases()[name])
    expected = dict(zip(MEASURES, LIBRARY[name], strict=True))
    assert list(measured) == list(MEASURES)
    assert all(np.isfinite(value) for value in measured.values())
    for measure, value in expected.items():
        assert np.isnan(value) or measured[measure] == pytest.approx(value, abs=2e-9), measure


def test_saliency_of_one_pixel_is_finite() -> None:
    measured = saliency_measures(np.full((1, 1), 0.9, np.float32), np.ones((1, 1), bool))
    assert measured["F-measure (weighted)"] > 0.99
    assert all(0 <= value <= 1 for value in measured.values())


def test_saliency_measures() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((4, 20, 30), dtype=np.float32), rng.random((4, 20, 30)) < 0.4
    seen = Saliency()
    for map_, mask in zip(maps, masks, strict=True):
        seen = seen.add(map_, mask)
    figures = seen.figures()
    levels = np.rint(maps * 255)
    low, high = levels.min((1, 2), keepdims=True), levels.max((1, 2), keepdims=True)
    assert figures["MAE"] == pytest.approx(np.abs((levels - low) / (high - low) - masks).mean(), abs=1e-6)
    # The mean F-measure longhand: 256 thresholds, β² = 0.3.
    scaled, total = (levels - low) / (high - low), []
    for one, mask in zip(scaled, masks, strict=True):
        for level in range(256):
            said = np.floor(one * 255) >= level
            hit = (said & mask).sum()
            precision, recall = hit / max(1, said.sum()), hit / mask.sum()
            total.append(1.3 * precision * recall / (0.3 * precision + recall) if hit else 0.0)
    assert figures["F-measure (mean)"] == pytest.approx(np.mean(total), abs=5e-3)
    assert all(0 <= value <= 1 for value in figures.values())
    with pytest.raises(BadInput, match="differ in size"):
        seen.add(maps[0], masks[0][:, :7])


def test_mean_leaves_nan_out() -> None:
    assert Mean().add(1.0).add(float("nan")).add(2.0).value == 1.5
    assert Mean().value != Mean().value
