"""All map methods in one table: longhand on the demo world, on photographs with masks, the command."""

from pathlib import Path
from typing import Any

import minis
import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.masked_datasets import open_masked
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.evaluation import map_table as map_table_module
from clip_anatomy.evaluation.known_objects import ObjectBatch, masked_objects, patch_mask, world_objects
from clip_anatomy.evaluation.map_table import THRESHOLDS, VARIANTS, map_table
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.registry import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_patches_lie_on_the_object_when_half_of_them_does() -> None:
    mask = torch.rand(24, 16) < 0.5
    for row in range(3):
        for col in range(2):
            share = mask[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].float().mean()
            assert bool(patch_mask(mask, (3, 2))[row, col]) == bool(share >= 0.5)


def test_the_table_of_methods_equals_the_longhand_on_the_demo_world() -> None:
    demo = ca.load("demo")
    world = World(split="test", length=12 * 12 + 200)
    cases = list(world_objects(demo, 12, target="shape"))
    single = [i for i in range(len(world)) if world.facts(np.array([i])).count[0] == 1][:12]
    for threshold in THRESHOLDS:
        (row,) = map_table(demo, cases, ["decomposition"], threshold=threshold).rows
        assert row.maps == 12
        assert row.method == "decomposition"
    (row,) = map_table(demo, cases, ["raw"]).rows
    truth, said, precision, hits = [], [], [], 0
    for at, index in enumerate(single):
        scene = world[index]
        _, text, mask = cases[0].targets[at]
        assert text == scene.facts.shape[0, 0]
        share = scene.masks[0, 0].reshape(8, 8, 8, 8).mean((1, 3))
        np.testing.assert_array_equal(mask.numpy(), share >= 0.5)
        map_ = heatmap(demo, cases[0].pixels[at : at + 1], cases[0].texts, method="raw").values[0, text].numpy()
        truth.append(share >= 0.5)
        said.append(map_ > map_.mean())
        if truth[-1].any():
            precision.append(average_precision_score(truth[-1].ravel(), map_.ravel()))
            hits += truth[-1].ravel()[map_.argmax()]
    a, b = np.stack(truth).ravel(), np.stack(said).ravel()
    assert row.mean_iou == pytest.approx((jaccard_score(a, b) + jaccard_score(~a, ~b)) / 2)
    assert row.pixel_accuracy == pytest.approx((a == b).mean())
    assert row.average_precision == pytest.approx(np.mean(precision), abs=1e-4)
    assert row.pointing == pytest.approx(hits / len(precision))


def test_objects_are_asked_for_by_colour_and_shape() -> None:
    demo = ca.load("demo")
    (case,) = world_objects(demo, 3)
    facts = World(split="test", length=236).facts(np.arange(236))
    rows = np.flatnonzero(facts.count == 1)[:3]
    names = [f"{COLOURS[text // 12]} {SHAPES[text % 12]}" for _, text, _ in case.targets]
    assert names == [f"{COLOURS[facts.colour[row, 0]]} {SHAPES[facts.shape[row, 0]]}" for row in rows]
    alone = demo.encode_text([f"here we see a {names[0]}"]) @ case.texts.T
    assert int(alone.argmax()) == case.targets[0][1]


def test_the_table_of_methods_on_photographs(tmp_path: Path) -> None:
    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([[1, *[ord(c) % 90 for c in text[-9:].rjust(9)], 99] for text in texts])

    clip, place = ca.load(tiny.open_clip_model(layers=2), tokenizer=tokenizer), tmp_path
    minis.sample(place)
    (place / "masks" / "1.png").write_bytes(b"")
    data, skipped = open_masked("sample", place), []
    cases = list(masked_objects(clip, data, prompts=1, skipped=skipped))
    assert [name for name, _ in skipped] == ["1"]
    rows = map_table(clip, iter(cases)).rows
    assert [row.method for row in rows] == [*(name for name, m in METHODS.items() if not m.needs), *VARIANTS]
    assert all(row.maps == sum(len(case.targets) for case in cases) > 0 for row in rows)
    assert all(0 <= row.mean_iou <= 1 for row in rows)
    with pytest.raises(ca.errors.BadSpec, match="Type one of: mean, half, otsu"):
        map_table(clip, cases, threshold="high")


def test_a_stopped_table_has_the_same_pictures_for_every_method() -> None:
    demo = ca.load("demo")
    cases, read = list(world_objects(demo, 3)), []
    one_by_one = [ObjectBatch(cases[0].pixels[i : i + 1], cases[0].texts, ((0, t, m),)) for i, t, m in cases[0].targets]

    def stream() -> Any:
        for case in one_by_one:
            read.append(case)
            yield case

    def report(what: str, done: int, total: int) -> None:
        assert (what, total) == ("drawing maps", 6)
        assert len(read) == done // 2 + 1  # nothing is read ahead, nothing is kept
        if done == 5:  # the second method of the last picture
            raise KeyboardInterrupt

    table = map_table(demo, stream(), ["raw", "maskclip"], total=3, progress=report)
    assert (table.partial, table.pictures) == (True, 2)
    assert [row.maps for row in table.rows] == [2, 2]
    whole = map_table(demo, one_by_one[:2], ["raw", "maskclip"])
    assert not whole.partial
    assert [row.mean_iou for row in whole.rows] == [row.mean_iou for row in table.rows]
    with pytest.raises(KeyboardInterrupt):
        map_table(demo, stream(), ["raw"], total=3, progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))


@pytest.mark.parametrize("pictures", [1, 5])
def test_methods_that_see_a_text_alone_take_as_few_forwards_as_there_can_be(
    pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each map is that of its picture and text alone, however they are grouped: one forward for one photograph, one a text for many."""
    demo = ca.load("demo")
    (drawn,) = world_objects(demo, 5)
    asked = [(image, text, mask) for image in range(pictures) for _, text, mask in drawn.targets[:3]]
    case = ObjectBatch(drawn.pixels[:pictures], drawn.texts, tuple(asked))
    calls: list[int] = []

    def counted(*words: Any, **options: Any) -> Any:
        calls.append(1)
        return heatmap(*words, **options)

    monkeypatch.setattr("clip_anatomy.evaluation.map_table.heatmap", counted)
    found = map_table_module._target_maps(demo, case, "legrad", {})
    texts = sorted({text for _, text, _ in asked})
    assert len(calls) == min(pictures, len(texts))
    for map_, (image, text, _) in zip(found, asked, strict=True):
        alone = heatmap(demo, case.pixels[image : image + 1], case.texts[text : text + 1], "legrad").values[0, 0]
        torch.testing.assert_close(map_, alone, atol=1e-5, rtol=1e-4)


def test_a_method_that_refuses_the_model_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ca.errors.UnsupportedModel("no such attention")

    demo = ca.load("demo")
    monkeypatch.setattr("clip_anatomy.evaluation.map_table._target_maps", refuse)
    (row,) = map_table(demo, world_objects(demo, 2), ["raw"]).rows
    assert (row.why, row.maps) == ("no such attention", 0)
    assert np.isnan(row.mean_iou)
