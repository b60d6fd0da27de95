"""ImageNet-Segmentation's own steps: the official figures, one direction for a thousand classes, masks that follow the crop."""

import copy
import json
from pathlib import Path
from typing import Any

import minis
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.evaluation.foreground import (
    Foreground,
    aligned_mask,
    class_map,
    misaligned_mask,
    predicted_class,
    stretched_map,
)
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.maps.heatmap import heatmap

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def official(shared: Path) -> Any:
    """The oracle's model, its first eight pictures, and what the official code said of them."""
    import open_clip

    folder = shared / "oracles" / "vit-a"
    config = json.loads((folder / "oracle-vit.json").read_text())
    known = {k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    model = open_clip.CLIP(**known)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    inputs = np.load(folder / "inputs.npz")
    images, masks = torch.tensor(inputs["images"][:8]).float(), torch.tensor(inputs["masks"]).long()
    theirs = json.loads((folder / "results.json").read_text())["segmentation_first8"]
    return model.eval(), images, masks, torch.tensor(inputs["classifier"]).float(), theirs


def paper_maps(clip: Any, images: Tensor, classifier: Tensor) -> list[Tensor]:
    chosen = [predicted_class(clip, image[None], classifier) for image in images]
    return [
        stretched_map(class_map(clip, image[None], classifier, at), (64, 64))
        for image, at in zip(images, chosen, strict=True)
    ]


def test_the_paper_protocol_equals_the_official_code(official: Any) -> None:
    model, images, masks, classifier, theirs = official
    single = paper_maps(ca.load(model, parity=False), images, classifier)
    exact = paper_maps(ca.load(copy.deepcopy(model).double(), parity=False), images.double(), classifier)
    seen = [Foreground.empty(), Foreground.empty()]
    for a, b, mask in zip(single, exact, masks, strict=True):
        seen = [seen[0].add(a, mask), seen[1].add(b, mask)]
    for one in seen:
        assert one.precision.value == pytest.approx(theirs["mean_ap"], rel=1e-5)
    # In double precision all figures are theirs. In single precision a pixel of 32,768 lies 2e-8 from the threshold, and on
    # which side it falls hangs on the machine's order of summation.
    assert seen[1].confusion.pixel_accuracy == pytest.approx(theirs["pixel_accuracy"], abs=1e-9)
    assert seen[1].confusion.mean_iou == pytest.approx(theirs["mean_iou"], abs=1e-9)
    near = torch.stack([(a - a.mean()).abs() < 1e-6 for a in single])
    assert int(near.sum()) == 1
    other = torch.stack([(a > a.mean()) != (b > b.mean()) for a, b in zip(single, exact, strict=True)])
    assert not (other & ~near).any()
    assert abs(seen[0].confusion.pixel_accuracy - theirs["pixel_accuracy"]) * near.numel() <= 1 + 1e-6


def test_a_thousand_class_maps_minus_their_mean_are_one_direction() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2))
    pixels, classifier = torch.randn(1, 3, 32, 32), F.normalize(torch.randn(30, 12), dim=-1)
    every = heatmap(clip, pixels, classifier, method="raw").values[0]
    tokens = every[7] - every.mean(0)
    one = class_map(clip, pixels, classifier, 7, "raw")
    ratio = tokens / one  # of another length, so of another scale
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(36, 48), (50, 40), (64, 64), (31, 97)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_aligned_masks_go_where_the_picture_goes(size: tuple[int, int], resize: Any) -> None:
    mask = minis.blocks(np.random.default_rng(0), size, [0, 1])
    mask[10:22, 4:30] = 1
    preprocess = Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD, resize=resize, fill=128)
    where = preprocess.geometry(size[1], size[0])
    ours = aligned_mask(mask, where)
    shown = preprocess(Image.fromarray((mask * 255).astype(np.uint8)))[0] * OPENAI_STD[0] + OPENAI_MEAN[0]
    # Where the picture is plain (no border of an object, no padding within two pixels), it is what the mask says.
    plain = (-F.max_pool2d(-shown[None], 5, 1, 2)[0] > 0.95).long() - (
        F.max_pool2d(shown[None], 5, 1, 2)[0] < 0.05
    ).long()
    assert (ours[plain == 1] == 1).all()
    assert (ours[plain == -1] == 0).all()
    assert int((plain != 0).sum()) > 80
    assert int((ours < 0).sum()) == 32 * 32 - int(np.prod([min(n, 32) for n in where.resized]))
    if resize == "shortest" and size[0] == size[1]:
        assert torch.equal(ours, misaligned_mask(mask, where).long())
