"""Sliding windows: scaling, windows, the class of every pixel, each against longhand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from longhand import bilinear
from PIL import Image
from torch import Tensor

from clip_anatomy.evaluation.sliding_windows import Sliding, classes_of, scaled, sliding_scores
from clip_anatomy.images.geometry import window_starts
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")


def test_pictures_are_scaled_as_opencv_does() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (37, 52, 3), dtype=np.uint8)
    preprocess = Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD)
    for side in (16, 37, 61):
        pixels = scaled(Image.fromarray(levels), side, preprocess)
        mean, std = (torch.tensor(x)[:, None, None] for x in (OPENAI_MEAN, OPENAI_STD))
        ours = ((pixels * std + mean) * 255).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours, bilinear(levels, ours.shape[:2]), atol=1.001)  # a half may round either way
        assert np.abs(ours - bilinear(levels, ours.shape[:2])).mean() < 0.01


def test_sliding_windows_equal_the_longhand() -> None:
    torch.manual_seed(0)
    pixels, how = torch.randn(3, 50, 75), Sliding(side=50, window=32, stride=16)
    weights = torch.randn(5, 3)

    def score(windows: Tensor) -> Tensor:
        return torch.einsum("tc,nchw->nthw", weights, F.avg_pool2d(windows, 8))

    total, count = torch.zeros(5, 50, 75), torch.zeros(50, 75)
    for row in range(3):  # mmsegmentation's own arithmetic
        for col in range(4):
            bottom, right = min(row * 16 + 32, 50), min(col * 16 + 32, 75)
            top, left = max(bottom - 32, 0), max(right - 32, 0)
            patches = score(pixels[None, :, top:bottom, left:right])
            total[:, top:bottom, left:right] += F.interpolate(patches, (32, 32), mode="bilinear")[0]
            count[top:bottom, left:right] += 1
    scores = sliding_scores(pixels, how, score, batch=3)
    torch.testing.assert_close(scores, total / count)
    # And the class of every original pixel, in one piece.
    logits = F.interpolate(scores[None], (61, 83), mode="bilinear")[0] * 9
    probability = logits.softmax(0)
    by_class = torch.stack([probability[[0, 3]].amax(0), probability[1], probability[[2, 4]].amax(0)])
    expected = by_class.argmax(0)
    owner = [0, 1, 2, 0, 2]
    assert torch.equal(classes_of(scores, (61, 83), owner, logit_scale=9.0), expected)
    expected = torch.where(by_class.amax(0) < 0.4, 1, expected)
    said = classes_of(scores, (61, 83), owner, logit_scale=9.0, threshold=0.4, background=1)
    assert torch.equal(said, expected)


def test_a_class_of_too_little_area_gives_way_to_the_next_best() -> None:
    torch.manual_seed(0)
    scores, owner = torch.randn(6, 9, 12), [0, 0, 1, 2, 3, 3]
    scores[:, :, :9] += torch.tensor([0, 0, 3.0, 0, 0, 0])[:, None, None]
    logits = F.interpolate(scores[None], (18, 30), mode="bilinear")[0] * 2
    probability = logits.softmax(0)
    by_class = torch.stack([probability[:2].amax(0), probability[2], probability[3], probability[4:].amax(0)])
    first = by_class.argmax(0)
    pixels = torch.bincount(first.flatten(), minlength=4)[1:]
    small = [at + 1 for at in range(3) if pixels[at] <= 0.1 * pixels.sum()]
    assert small
    assert small != [1, 2, 3]
    by_class[small] = 0
    expected = torch.where(by_class.amax(0) < 0.35, 0, by_class.argmax(0))
    assert not torch.equal(expected, first)
    said = classes_of(scores, (18, 30), owner, logit_scale=2.0, threshold=0.35, area=0.1, background=0)
    assert torch.equal(said, expected)
    # And where every class is too small, all is background, with or without a threshold.
    nothing = classes_of(scores[2:], (18, 30), [1, 2, 3, 3], logit_scale=2.0, area=1.0, background=0)
    assert not nothing.any()


def test_many_texts_of_a_large_picture_are_decided_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    scores, owner = torch.randn(11, 7, 9), [*range(11)]
    whole = classes_of(scores, (20, 31), owner, logit_scale=3.0, threshold=0.3, background=4)
    monkeypatch.setattr("clip_anatomy.evaluation.sliding_windows.BAND_BYTES", 4 * 20 * 31 * 2)
    assert torch.equal(classes_of(scores, (20, 31), owner, logit_scale=3.0, threshold=0.3, background=4), whole)


def test_windows_cover_everything_and_stay_inside() -> None:
    for length in range(10, 200, 7):
        starts = window_starts(length, 32, 16)
        assert starts[0] == 0
        assert starts[-1] == max(0, length - 32)
        assert all(b - a <= 16 for a, b in pairwise(starts))


def test_narrow_pictures_are_filled_up_and_cut_again() -> None:
    seen: list[tuple[int, ...]] = []

    def score(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return F.avg_pool2d(windows, 8)

    assert sliding_scores(torch.randn(3, 20, 40), Sliding(20, 32, 16), score).shape == (3, 20, 40)
    assert seen == [(2, 3, 32, 32)]
    wide = scaled(Image.new("RGB", (9000, 30)), 336, Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD))
    assert wide.shape == (3, 7, 2048)
