"""Points and boxes: regions against scipy, combinations, the coordinates of the original picture, the official points."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from scipy import ndimage

import clip_anatomy as ca
from clip_anatomy.errors import BadInput
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.maps import clip_surgery as surgery
from clip_anatomy.maps.point_prompts import boxes, combined_points, components, points, prompts

pytestmark = pytest.mark.usefixtures("one_thread")

masks = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans())


@given(masks)
@settings(max_examples=200, deadline=None)
def test_regions_and_boxes_equal_scipys(mask: np.ndarray) -> None:
    theirs, count = ndimage.label(mask, np.ones((3, 3)))
    ours = components(mask)
    assert ours.max() == count
    # The same partition under the same numbers: both count regions by their first pixel.
    assert np.array_equal(ours, theirs)
    found = boxes(mask, smallest=0.0, most=1000)
    expected = [(float(c.start), float(r.start), float(c.stop), float(r.stop)) for r, c in ndimage.find_objects(theirs)]
    assert sorted(found) == sorted(expected)
    areas = ndimage.sum_labels(mask, theirs, np.arange(1, count + 1)).astype(int).tolist()
    assert boxes(mask, smallest=0.0, most=1)[:1] == tuple(
        expected[k] for k in np.argsort(-np.array(areas), kind="stable")[:1]
    )


def test_crumbs_are_no_boxes_and_an_empty_mask_has_none() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:60, 10:60] = True
    mask[90, 90] = True
    assert boxes(mask) == ((10.0, 10.0, 60.0, 60.0),)
    assert len(boxes(mask, smallest=0.0)) == 2
    assert boxes(np.zeros((5, 5), dtype=bool)) == ()


def test_points_are_where_surgery_had_them() -> None:
    assert surgery.points is points


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_points_keep_their_promises(rows: int, cols: int, threshold: float, seed: int) -> None:
    map_ = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed))
    yes, no = points(map_, (90, 130), threshold=threshold)
    cells = max(1, rows // 2) * max(1, cols // 2)
    assert len(yes) == len(no) <= cells // 2
    assert not set(map(tuple, yes.tolist())) & set(map(tuple, no.tolist()))
    for x, y in [*yes.tolist(), *no.tolist()]:
        assert 0 < x < 130
        assert 0 < y < 90


def test_a_combination_has_the_positives_of_each_and_the_negatives_of_the_mean() -> None:
    maps = torch.zeros(2, 8, 8)
    maps[0, :2, :2], maps[1, 6:, 6:] = 5.0, 0.1  # the second is quiet, and counts as much
    maps[0, :2, 6:], maps[1, :2, 6:] = -2.5, -0.05
    yes, no = combined_points(maps, (80, 80))
    assert sorted(map(tuple, yes.tolist())) == [(10.0, 10.0), (70.0, 70.0)]
    assert (70.0, 10.0) in set(map(tuple, no.tolist()))
    alone = combined_points(maps[:1], (80, 80))
    for ours, one in zip(alone, points(maps[0], (80, 80)), strict=True):
        assert ours.tolist() == one.tolist()


def test_points_lie_in_the_original_picture_through_resize_and_crop() -> None:
    # 200 × 300 pixels, scaled to 64 × 96, the middle 64 columns seen: model column x is original column (x + 16) / 0.32.
    seen = Geometry(picture=(200, 300), resized=(64, 96), offset=(0, 16), size=(64, 64))
    map_ = torch.zeros(8, 8)
    map_[2:4, 6:8] = 1
    found = prompts(map_[None], ["a"], seen)
    assert found.points[0] == pytest.approx(((56 + 16) * 300 / 96, 24 * 200 / 64))
    assert found.labels[0] == 1
    assert found.labels.count(0) == 1
    padded = Geometry(picture=(100, 50), resized=(64, 32), offset=(0, -16), size=(64, 64))
    inside = prompts(torch.rand(1, 8, 8), ["a"], padded, threshold=0.0).points
    assert inside
    assert all(0 <= x <= 50 and 0 <= y <= 100 for x, y in inside)


def test_prompts_are_json_in_sams_words() -> None:
    whole = Geometry((64, 64), (64, 64), (0, 0), (64, 64))
    mask = np.zeros((64, 64), dtype=bool)
    mask[8:24, 16:48] = True
    found = prompts(torch.rand(2, 8, 8), ["a", "b"], whole, mask)
    held = json.loads(json.dumps(found.to_dict()))
    assert held["text"] == "a + b"
    assert held["boxes"] == [[16.0, 8.0, 48.0, 24.0]]
    assert len(held["point_coords"]) == len(held["point_labels"])
    with pytest.raises(BadInput, match="2 maps for 1 texts"):
        prompts(torch.rand(2, 8, 8), ["a"], whole)


def test_points_of_the_official_code_through_prompts(shared: Path) -> None:
    import open_clip

    folder = shared / "oracles" / "vit-a"
    config = json.loads((folder / "oracle-vit.json").read_text())
    known = {k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    model = open_clip.CLIP(**known)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    read = np.load(folder / "inputs.npz")
    images, classes = torch.tensor(read["images"]).float()[:4], torch.tensor(read["classifier"]).float()
    maps = ca.heatmap(ca.load(model.eval()), images, classes, method="surgery", against="each other")
    size = (images.shape[2], images.shape[3])
    squash = Geometry((48, 80), size, (0, 0), size)
    for i, official in enumerate(json.loads((folder / "results.json").read_text())["surgery_points_48x80_class0"]):
        found = prompts(maps.values[i, :1], ["class 0"], squash)
        for label in (1, 0):
            ours = [[int(x), int(y)] for (x, y), yes in zip(found.points, found.labels, strict=True) if yes == label]
            theirs = [p for p, yes in zip(official["points"], official["labels"], strict=True) if yes == label]
            assert sorted(ours) == sorted(theirs)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 9), st.floats(0.01, 0.6))
@settings(max_examples=60, deadline=None)
def test_points_lie_inside_the_mask_and_the_strongest_is_first(seed: int, texts: int, side: int, share: float) -> None:
    dice = torch.Generator().manual_seed(seed)
    maps = torch.rand(texts, side, side, generator=dice)
    for where in (
        Geometry((60, 90), (60, 90), (0, 0), (60, 90)),
        Geometry((50, 75), (64, 96), (0, 16), (64, 64)),
        Geometry((40, 20), (64, 32), (0, -16), (64, 64)),
    ):
        for shape in (where.picture, (side, side)):
            mask = (torch.rand(shape, generator=dice) < share).numpy()
            found = prompts(maps, [str(k) for k in range(texts)], where, mask)
            for (x, y), label in zip(found.points, found.labels, strict=True):
                row, col = (y, x)
                if shape != where.picture:
                    row, col = (a * side / 64 if where.size == (64, 64) else a * side / b for a, b in zip(where.to_model(y, x), where.size, strict=True))  # fmt: skip
                assert mask[int(row), int(col)] == bool(label)
            if shape == where.picture and texts == 1 and 1 in found.labels:
                at = [where.to_model(y, x) for (x, y), label in zip(found.points, found.labels, strict=True) if label]
                grid = torch.tensor([[c / where.size[1], r / where.size[0]] for r, c in at])[None, None] * 2 - 1
                values = torch.nn.functional.grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0, 0, 0]  # fmt: skip
                assert bool((values[:-1] >= values[1:] - 1e-5).all())


def test_a_mask_without_a_strong_cell_has_its_own_best_place() -> None:
    """Nothing of the map's top lies in the mask: the point is where the map is highest within it."""
    map_ = torch.zeros(1, 8, 8)
    map_[0, 0, :], map_[0, 6, 2] = 9.0, 1.0
    mask = np.zeros((80, 80), dtype=bool)
    mask[50:80, 0:80] = True
    whole = Geometry((80, 80), (80, 80), (0, 0), (80, 80))
    found = prompts(map_, ["a"], whole, mask)
    x, y = found.points[found.labels.index(1)]
    assert (20 <= x <= 30, 60 <= y <= 70, found.labels.count(1)) == (True, True, 1)
    assert prompts(map_, ["a"], whole, np.zeros((80, 80), dtype=bool)).labels.count(1) == 0


def test_every_point_of_the_demo_lies_in_its_mask() -> None:
    from clip_anatomy.loading.demo import examples

    texts = ["a bird", "a red circle", "the sky"]
    for at in ("picture", "patch"):
        masks = ca.segment("demo", examples()[:3], texts, at=at, together=[texts])
        for i in range(len(masks)):
            there = [text for text in texts if masks.mask(i, text).any()]
            for asked in [*([text] for text in there), *([there] if len(there) > 1 else [])]:
                found = masks.prompts(i, *asked)
                mask = np.any([masks.mask(i, text) for text in asked], axis=0)
                scale = mask.shape[0] / found.picture[0]
                inside = [bool(mask[int(y * scale), int(x * scale)]) for x, y in found.points]
                assert inside == [label == 1 for label in found.labels]
                assert 1 in found.labels
