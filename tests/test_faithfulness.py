"""Deletion, insertion and ROAD against longhand; the demo model's maps against random orders."""

import json
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.faithfulness import curves, faithfulness
from clip_anatomy.evaluation.known_objects import world_objects
from clip_anatomy.evaluation.occlusion import NOISE, impute, impute_directly, occlude
from clip_anatomy.maps.heatmap import heatmap

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small() -> ca.Clip:
    return ca.load(
        tiny.open_clip_model(layers=2), tokenizer=lambda texts: torch.tensor([[1, len(t), 99] for t in texts])
    )


def random_holes(seed: int, steps: int, rows: int, cols: int, share: float) -> Tensor:
    holes = torch.rand(steps, rows, cols, generator=torch.Generator().manual_seed(seed)) < share
    holes[:, 0, 0] = False
    return holes


@pytest.mark.parametrize("solve", [impute, impute_directly])
def test_imputed_pixels_are_the_weighted_mean_of_their_neighbours(solve: Any) -> None:
    picture = torch.randn(1, 3, 13, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gone = random_holes(1, 4, 13, 18, 0.6)
    gone[2, 4:12, 3:15] = True  # one large hole
    filled = solve(picture.expand(4, -1, -1, -1), gone, **({"tolerance": 1e-9} if solve is impute else {}))
    for k in range(4):
        assert torch.equal(filled[k][:, ~gone[k]], picture[0][:, ~gone[k]])
        for row, col in gone[k].nonzero().tolist():
            near, weights = [], []
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if (i or j) and 0 <= row + i < 13 and 0 <= col + j < 18:
                        near.append(filled[k, :, row + i, col + j])
                        weights.append(1 / 12 if i and j else 1 / 6)
            mean = sum(w * x for w, x in zip(weights, near, strict=True)) / sum(weights)
            torch.testing.assert_close(filled[k, :, row, col], mean, atol=1e-6, rtol=0)


def test_both_solvers_agree_and_a_slope_is_restored() -> None:
    slope = torch.linspace(-1, 1, 48)[None, None, :, None] + torch.linspace(0, 3, 64)
    picture = slope.expand(1, 3, 48, 64).contiguous()
    gone = random_holes(2, 1, 6, 8, 0.4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    gone[:, 0], gone[:, -1], gone[:, :, 0], gone[:, :, -1] = False, False, False, False
    exact = impute_directly(picture, gone)
    torch.testing.assert_close(exact, picture, atol=1e-4, rtol=0)  # linear functions are harmonic
    torch.testing.assert_close(impute(picture, gone), exact, atol=2e-3, rtol=0)


def test_removal_keeps_what_stays_and_fills_all_of_nothing_with_the_mean() -> None:
    picture = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    gone = torch.stack([torch.zeros(16, 16), torch.ones(16, 16), torch.eye(16)]).bool()
    for how in ("mean", "road"):
        out = occlude(picture, gone, how)
        assert torch.equal(out[0], picture)
        assert torch.equal(out[2][:, ~gone[2]], picture[:, ~gone[2]])
        mean = picture.mean((1, 2))
        torch.testing.assert_close(out[1].mean((1, 2)), mean, atol=5 * NOISE / 16, rtol=0)
        assert out[1].std((1, 2)).max() < 2 * NOISE
    assert torch.equal(occlude(picture, gone, "road"), occlude(picture, gone, "road"))
    with pytest.raises(BadSpec, match="mean, road"):
        occlude(picture, gone, "blur")


@pytest.mark.parametrize("score", ["cosine", "probability"])
def test_curves_are_those_of_pictures_changed_one_by_one(small: ca.Clip, score: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(3, 32, 32, generator=generator)
    texts = torch.randn(3, 12, generator=generator)
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(2)])
    share, deletion, insertion = curves(small, picture, texts, 1, orders, occlusion="mean", score=score, steps=4)
    assert share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    mean = picture.mean((1, 2))

    def scored(image: Tensor) -> float:
        cosine = F.cosine_similarity(small.encode_image(image[None]), texts)
        return float(cosine[1] if score == "cosine" else (cosine * small.logit_scale).softmax(0)[1])

    for o in range(2):
        deleted, inserted = picture.clone(), mean[:, None, None].expand(3, 32, 32).clone()
        for step in range(5):
            for patch in orders[o, 4 * (step - 1) : 4 * step].tolist() if step else []:
                rows = slice(patch // 4 * 8, patch // 4 * 8 + 8)
                cols = slice(patch % 4 * 8, patch % 4 * 8 + 8)
                deleted[:, rows, cols] = mean[:, None, None]
                inserted[:, rows, cols] = picture[:, rows, cols]
            assert float(deletion[o, step]) == pytest.approx(scored(deleted), abs=1e-5)
            assert float(insertion[o, step]) == pytest.approx(scored(inserted), abs=1e-5)


def test_the_map_gives_the_order_and_areas_are_trapezoids(small: ca.Clip) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = faithfulness(small, pixels, ["a", "bcd"], "sclip", occlusion="mean", pairs=[(1, 0)], steps=5, draws=2)
    maps = heatmap(small, pixels, ["a", "bcd"], "sclip").values[1, 0].flatten()
    raw = heatmap(small, pixels, ["a", "bcd"], "raw").values[1, 0].flatten()
    orders = torch.stack([values.argsort(descending=True) for values in (maps, raw)])
    share, deletion, insertion = curves(
        small, pixels[1], small.encode_text(["a", "bcd"]), 0, orders, occlusion="mean", score="probability", steps=5
    )
    torch.testing.assert_close(found.deletion[:2, 0], deletion)
    torch.testing.assert_close(found.insertion[:2, 0], insertion)
    by_numpy = np.trapezoid(deletion[0].numpy(), share.numpy())
    assert float(found.deletion_area[0, 0]) == pytest.approx(float(by_numpy), abs=1e-6)
    assert found.orders == ("map", "raw cosine", "random")
    assert faithfulness(small, pixels, ["a"], "raw", occlusion="mean").orders == ("map", "random")
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert held["orders"]["map"]["deletion_area"] == pytest.approx(float(by_numpy), abs=1e-6)
    assert "beats a random order" in found.summary()


@pytest.mark.parametrize("occlusion", ["mean", "road"])
def test_on_the_demo_world_the_exact_split_beats_random_orders_and_points_at_the_object(occlusion: Any) -> None:
    """Measured on 20 pictures: the map's gain is 0.76 (mean colour) and 0.63 (ROAD) of a probability; asked for: half of it."""
    demo = ca.load("demo")
    case = next(world_objects(demo, 4))
    masks = {(image, text): mask for image, text, mask in case.targets}
    found = faithfulness(demo, case.pixels, case.texts, masks=masks, occlusion=occlusion, steps=6, draws=1)
    assert found.score == "probability"
    assert found.gain() > 0.3
    assert found.gain("raw cosine") > 0.1
    assert found.pointing is not None
    assert (found.pointing.total, found.pointing.hits >= 3) == (4, True)
    assert "pointing game" in found.summary()


def test_masks_fit_at_three_sizes_and_nothing_else_does(small: ca.Clip) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    on = heatmap(small, [picture], ["a", "bcd"], "sclip").values[0, 0]
    row, col = divmod(int(on.argmax()), 4)
    patch = np.zeros((4, 4), bool)
    patch[row, col] = True
    model = patch.repeat(8, 0).repeat(8, 1)
    whole = np.zeros((50, 40), np.int64)
    whole[5:45] = model.repeat(5, 0).repeat(5, 1)[::4, ::4]  # 40 × 32 → 32 × 32, cropped from 40 × 32
    for mask in (patch, model, whole):
        found = faithfulness(small, [picture], ["a", "bcd"], "sclip", masks={(0, 0): mask}, occlusion="mean", steps=2)
        assert found.pointing is not None
        assert found.pointing.rate == 1
        none = faithfulness(
            small, [picture], ["a", "bcd"], "sclip", masks={(0, 0): 1 - mask}, occlusion="mean", steps=2
        )
        assert none.pointing is not None
        assert none.pointing.rate == 0
    with pytest.raises(BadInput, match="fits nothing"):
        faithfulness(small, [picture], ["a", "bcd"], masks={(0, 0): np.ones((3, 3))}, occlusion="mean")


def test_bad_input_is_named(small: ca.Clip) -> None:
    pixels = torch.zeros(1, 3, 32, 32)
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"pairs": [(0, 2)]}, "texts 0 to 1"),
        ({"pairs": [(4, 0)]}, "pictures 0 to 0"),
        ({"pairs": []}, "leaves nothing"),
        ({"steps": 0}, "steps=10"),
        ({"score": "loss"}, "cosine, probability"),
        ({"occlusion": "blur"}, "mean, road"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(BadSpec, match=said):
            faithfulness(small, pixels, ["a", "bc"], **{"occlusion": "mean", **wrong})
