"""Namings of classes: the table of synonyms, seeded draws, several namings in one run, vocabularies, calibration, intervals."""

import json
from pathlib import Path
from typing import Any

import minis
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.class_names import CITYSCAPES, COCO_STUFF, COCO_THINGS, CONTEXT_CLASSES, VOC_CLASSES
from clip_anatomy.data.masked_datasets import open_masked
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.calibrate import SCALES, THRESHOLDS, held_out
from clip_anatomy.evaluation.class_lists import ClassTexts, drawn, synonyms, text_lists
from clip_anatomy.evaluation.metrics import bootstrap_miou
from clip_anatomy.evaluation.run_protocol import run_protocol

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"side": 48, "window": 32, "stride": 16, "prompts": 1}


@pytest.fixture(scope="module")
def clip() -> Any:
    def tokenizer(texts: list[str]) -> Tensor:
        letters = [[ord(c) % 90 for c in text[-10:]] for text in texts]
        return torch.tensor([[1, *row, *[2] * (10 - len(row)), 99] for row in letters])

    return ca.load(tiny.open_clip_model(layers=2), tokenizer=tokenizer)


def test_every_class_of_every_data_set_has_a_synonym() -> None:
    table = synonyms()
    for names in (VOC_CLASSES, CONTEXT_CLASSES, CITYSCAPES.values(), COCO_THINGS.values(), COCO_STUFF.values()):
        assert [name for name in names if name not in table and not name.endswith(("ceiling", "solid"))] == []
    for name, words in table.items():
        assert name == name.lower()
        assert words
        assert len(set(words)) == len(words)
        assert all(word and word != name for word in words)


def test_draws_are_seeded_and_no_name_stands_twice() -> None:
    plain = ClassTexts(tuple((name,) for name in CONTEXT_CLASSES), "own")
    first, again, other = drawn(plain, 0), drawn(plain, 0), drawn(plain, 1)
    assert first == again
    assert first.words != other.words
    for one in (first, other):
        assert len(set(one.texts)) == len(CONTEXT_CLASSES)
        changed = [a for (a,), (b,) in zip(plain.words, one.words, strict=True) if a != b]
        assert len(changed) > 20
        assert all(b == a or b in synonyms()[a] for (a,), (b,) in zip(plain.words, one.words, strict=True))
    backed = ClassTexts((("background", "sky", "wall"), ("sofa",)), "own")
    assert all(drawn(backed, seed, 0).words[0] == ("background", "sky", "wall") for seed in range(9))
    assert {drawn(backed, seed, 0).words[1][0] for seed in range(30)} == {"sofa", "couch", "settee", "loveseat"}
    lists = text_lists(backed, backed, 2, (1, 2), 0)
    assert [(one.label, one.classes) for one in lists] == [("plain", 2), ("synonyms, seed 0", 2), ("synonyms, seed 1", 2), ("1 classes", 1)]  # fmt: skip


@pytest.mark.parametrize("method", ["naclip", "decomposition", "resclip"])
def test_one_run_measures_what_runs_with_each_list_would(method: str, clip: Any, tmp_path: Path) -> None:
    minis.MASKED["voc21"](tmp_path)
    data = open_masked("voc21", tmp_path)
    official = tmp_path / "names.txt"
    official.write_text("\n".join(["background, wall", *(f"{name}s, one {name}" for name in data.classes[1:])]))
    found = run_protocol(clip, "voc21", tmp_path, method=method, names=official, **SMALL)
    assert [one.names for one in found.names] == ["official", "plain", "worst of 5 synonym draws"]
    assert found.names[0].mean_iou == found.figures["mIoU"]
    plain = run_protocol(clip, "voc21", tmp_path, method=method, draws=0, **SMALL)
    assert [one.names for one in plain.names] == ["plain"]
    assert found.names[1].mean_iou == pytest.approx(plain.figures["mIoU"], abs=1e-12)
    single = []
    for seed in range(5):
        backed = drawn(ClassTexts((plain_background(), *((name,) for name in data.classes[1:])), ""), seed, 0).words
        file = tmp_path / f"{seed}.txt"
        file.write_text("\n".join(", ".join(one) for one in backed))
        single.append(
            run_protocol(clip, "voc21", tmp_path, method=method, names=file, draws=0, **SMALL).figures["mIoU"]
        )
    assert found.names[2].mean_iou == pytest.approx(min(single), abs=1e-12)
    assert found.names[2].source == f"synonyms drawn with seed {int(np.argmin(single))}"
    told = " ".join(found.summary().split())
    assert "worst of 5 synonym draws" in told
    assert "(logit scale 40.0, threshold 0.1; interval: 95 % of 1,000 resamples;" in told
    assert "(a paper's renamed list, to be given as names)" in " ".join(plain.summary().split())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["names"][1]["names"] == "plain"


def test_every_protocol_of_miou_asks_for_three_namings() -> None:
    from clip_anatomy.evaluation.protocols import PROTOCOLS, SemanticSettings

    settings = {name: one.settings for name, one in PROTOCOLS.items() if isinstance(one.settings, SemanticSettings)}
    assert len(settings) == 11
    assert {name for name, one in settings.items() if one.draws != 5} == set()


def test_a_comparison_of_methods_prints_all_namings_of_each_with_intervals(clip: Any, tmp_path: Path) -> None:
    minis.MASKED["voc21"](tmp_path)
    data = open_masked("voc21", tmp_path)
    official = tmp_path / "names.txt"
    official.write_text("\n".join(["background, wall", *(f"{name}s" for name in data.classes[1:])]))
    methods = ["naclip", "sclip"]
    found = ca.bench(clip, "voc21", tmp_path, method=methods, names=official, **SMALL)
    told = [" ".join(line.split()) for line in found.summary().splitlines()]
    assert "mIoU in % official plain of 5 synonym draws" in told
    assert told[told.index("mIoU in % official plain of 5 synonym draws") - 1] == "worst"
    for outcome in found.outcomes:
        cells = [f"{100 * n.mean_iou:.2f} ({100 * n.low:.2f} to {100 * n.high:.2f})" for n in outcome.names]
        assert f"{outcome.configuration['method']} {' '.join(cells)}" in told
    assert "(in brackets: 95 % of 1,000 resamples)" in told
    assert any(line.startswith("logit_scale 40.0") for line in told)
    assert max(map(len, found.summary().splitlines())) <= 104
    chosen = ca.bench(clip, "voc21", tmp_path, method=methods, calibrate=1, **SMALL)
    told = [" ".join(line.split()) for line in chosen.summary().splitlines()]
    assert "(official: a paper's renamed list, to be given as names; in brackets: 95 % of 1,000 resamples)" in told
    for outcome in chosen.outcomes:  # what was chosen for each method stands in its row, or above where it was the same
        for name in ("logit_scale", "threshold"):
            same = len({one.configuration[name] for one in chosen.outcomes}) == 1
            value = str(outcome.configuration[name])
            rows = [line for line in told if line.startswith(name if same else outcome.configuration["method"])]
            assert value in rows[0].split()


def test_real_photographs_run_through_a_protocol_with_models_that_know_nothing(clip: Any, shared: Path) -> None:
    """The demo model knows a drawn world, the other one nothing: what this proves is that real files, masks and names go through."""
    for model, method in ((clip, "naclip"), (ca.load("demo"), "decomposition")):
        found = ca.bench(
            model, "coco-sample", shared / "data" / "coco", method=method, pictures=3, draws=2, **SMALL | {"side": 64}
        )
        assert found.pictures == 3
        assert found.skipped == ()
        assert [one.names for one in found.names] == ["plain", "worst of 2 synonym draws"]
        for one in found.names:
            assert 0 <= one.low <= one.mean_iou + 0.2
            assert one.mean_iou < 0.3


def plain_background() -> tuple[str, ...]:
    from clip_anatomy.evaluation.protocols import PROTOCOLS, SemanticSettings

    settings = PROTOCOLS["voc21"].settings
    assert isinstance(settings, SemanticSettings)
    return settings.background


def test_the_vocabulary_of_context_grows(clip: Any, tmp_path: Path) -> None:
    truth = minis.context_every(tmp_path)
    data = open_masked("context459", tmp_path)
    assert len(set(data.classes)) == len(data.classes) == 459
    for entry in data.entries:
        np.testing.assert_array_equal(entry.mask(), truth[entry.id])
    found = run_protocol(clip, "context459", tmp_path, **SMALL)
    assert [one.names for one in found.names] == [
        "plain", "worst of 5 synonym draws", "59 classes", "100 classes", "200 classes", "300 classes",
    ]  # fmt: skip
    few = run_protocol(clip, "context59", tmp_path, draws=0, **SMALL)  # the same 59 classes, the others left out
    assert found.names[2].mean_iou == pytest.approx(few.figures["mIoU"], abs=1e-12)
    (tmp_path / "trainval").rename(tmp_path / "59_context_labels")
    with pytest.raises(BadInput, match="only they hold all 459 labels"):
        open_masked("context459", tmp_path)


def test_intervals_come_from_resampled_pictures() -> None:
    rng = np.random.default_rng(0)
    both = rng.integers(0, 50, (40, 3))
    counts = np.stack([both, both + rng.integers(0, 50, (40, 3)), both + rng.integers(0, 50, (40, 3))], 1)
    low, high = bootstrap_miou(torch.from_numpy(counts), draws=2000)

    def miou(rows: np.ndarray) -> float:
        i, said, there = counts[rows].sum(0)
        return float((i / (said + there - i)).mean())

    theirs = [miou(rng.integers(0, 40, 40)) for _ in range(4000)]
    assert low == pytest.approx(np.quantile(theirs, 0.025), abs=0.01)
    assert high == pytest.approx(np.quantile(theirs, 0.975), abs=0.01)
    assert low < miou(np.arange(40)) < high
    assert all(np.isnan(bootstrap_miou(torch.from_numpy(counts[:1]))))
    assert bootstrap_miou(torch.from_numpy(counts)) == bootstrap_miou(torch.from_numpy(counts))


def test_calibration_chooses_on_pictures_that_are_not_measured(clip: Any, tmp_path: Path) -> None:
    minis.MASKED["voc21"](tmp_path)
    data = open_masked("voc21", tmp_path)
    held, rest = held_out(data.entries, 1)
    assert {one.id for one in held} | {one.id for one in rest} == {one.id for one in data.entries}
    assert not {one.id for one in held} & {one.id for one in rest}
    found = run_protocol(clip, "voc21", tmp_path, calibrate=1, draws=0, **SMALL)
    assert found.pictures == len(data) - 1
    assert "on 1 held-out pictures, 84 pairs" in found.configuration["calibrated"]
    assert {"threshold", "logit_scale"} & set(found.configuration["changed from the preset"])
    # By brute force: the pair that was told is the best of all on the held-out picture, measured alone.
    listed = (tmp_path / "ImageSets" / "Segmentation" / "val.txt") if (tmp_path / "ImageSets").is_dir() else next(tmp_path.rglob("val.txt"))  # fmt: skip
    listed.write_text(held[0].id + "\n")
    scores = {
        (scale, least): run_protocol(clip, "voc21", tmp_path, draws=0, logit_scale=scale, threshold=least, **SMALL).figures["mIoU"]
        for scale in SCALES[::3]
        for least in THRESHOLDS[::4]
    }  # fmt: skip
    told = float(found.configuration["calibrated"].split("mIoU there ")[1].split(" ")[0]) / 100
    assert told >= max(scores.values()) - 1e-4
    own = run_protocol(clip, "voc21", tmp_path, draws=0, logit_scale=found.configuration["logit_scale"], threshold=found.configuration["threshold"], **SMALL)  # fmt: skip
    assert own.figures["mIoU"] == pytest.approx(told, abs=1e-4)


def test_what_cannot_be_calibrated_says_why(clip: Any, tmp_path: Path) -> None:
    minis.MASKED["voc20"](tmp_path)
    for wrong, told in ((1, "Leave calibrate out"), (0, "Type: calibrate=1"), (10**6, "Type: calibrate=1")):
        with pytest.raises(BadSpec, match=told):
            run_protocol(clip, "voc20", tmp_path, calibrate=wrong, **SMALL)
    with pytest.raises(BadSpec, match="Type: draws=5"):
        run_protocol(clip, "voc20", tmp_path, draws=-1, **SMALL)
    minis.cod10k(tmp_path / "cod")
    with pytest.raises(BadSpec, match="cod10k has no threshold to choose"):
        run_protocol(clip, "cod10k", tmp_path / "cod", calibrate=1)


def test_a_picture_can_be_looked_at_whole(clip: Any, tmp_path: Path) -> None:
    minis.MASKED["voc20"](tmp_path)
    whole = run_protocol(clip, "voc20", tmp_path, draws=0, **{**SMALL, "window": 0})
    large = run_protocol(clip, "voc20", tmp_path, draws=0, **{**SMALL, "window": 48})
    assert 0 <= whole.figures["mIoU"] <= 1
    assert whole.configuration["window"] == 0
    assert whole.figures != large.figures or whole.pictures == large.pictures
