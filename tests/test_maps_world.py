"""The bars on the demo world: where maps are right, and in which order."""

import dataclasses

import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.evaluation.known_objects import world_objects
from clip_anatomy.evaluation.map_table import VARIANTS, map_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows() -> dict:
    clip = ca.load("demo")
    names = ["decomposition", "surgery", "raw", *VARIANTS]
    return {row.method: row for row in map_table(clip, world_objects(clip, 80), names).rows}


def test_the_decomposition_localises_single_objects_and_raw_cosines_do_not(rows: dict) -> None:
    assert rows["decomposition"].mean_iou >= 0.70
    assert rows["decomposition"].pointing >= 0.95
    assert rows["raw"].mean_iou <= 0.30


def test_surgery_is_above_raw_and_far_above_it_through_all_blocks(rows: dict) -> None:
    for figure in ("mean_iou", "average_precision", "pointing"):
        raw, published, every = (getattr(rows[name], figure) for name in ("raw", "surgery", "surgery, all blocks"))
        assert raw + 0.02 < published < every - 0.1
    assert rows["kk, all blocks"].mean_iou >= 0.6


def test_a_method_without_contrast_draws_the_asked_text_alone_and_the_same_map(rows: dict) -> None:
    clip = ca.load("demo")
    (case,) = world_objects(clip, 6)
    few = dataclasses.replace(case, texts=case.texts[sorted({t for _, t, _ in case.targets})])
    renamed = {text: at for at, text in enumerate(sorted({t for _, t, _ in case.targets}))}
    few = dataclasses.replace(few, targets=tuple((i, renamed[t], m) for i, t, m in case.targets))
    (alone,), (among,) = map_table(clip, [few], ["chefer"]).rows, map_table(clip, [case], ["chefer"]).rows
    assert alone.mean_iou == among.mean_iou
    whole = ca.heatmap(clip, case.pixels, case.texts, method="chefer").values
    image, text, _ = case.targets[2]
    one = ca.heatmap(clip, case.pixels[image : image + 1], case.texts[text : text + 1], method="chefer").values[0, 0]
    torch.testing.assert_close(one, whole[image, text], atol=1e-6, rtol=1e-4)
