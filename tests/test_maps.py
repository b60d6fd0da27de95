"""Maps: the official codes' outputs, loops written out longhand, batch against one by one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.maps.clip_surgery import contrasted, feature_surgery, points
from clip_anatomy.maps.contrast import contrast_of
from clip_anatomy.maps.dense_attention import VARIANTS, dense_tokens
from clip_anatomy.maps.heatmap import METHODS, heatmap

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def oracle(shared: Path) -> Any:
    import open_clip

    folder = shared / "oracles" / "vit-a"
    config = json.loads((folder / "oracle-vit.json").read_text())
    known = {k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    model = open_clip.CLIP(**known)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    return ca.load(model.eval()), folder


def read(folder: Path, file: str, name: str) -> Tensor:
    return torch.tensor(np.load(folder / file)[name]).float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("variant", "file", "name"),
    [
        ("raw", "dense.npz", "vanilla"),
        ("sclip", "dense.npz", "sclip"),
        ("naclip", "dense.npz", "naclip"),
        ("kk", "dense.npz", "kk_residual_ffn"),
        ("gem", "dense.npz", "gem"),
        ("clearclip", "dense.npz", "clearclip_no_residual"),
        ("maskclip", "dense.npz", "maskclip_no_residual"),
        ("maskclip_ffn", "dense.npz", "maskclip_residual_ffn"),
        ("surgery", "surgery.npz", "features"),
    ],
)
def test_dense_tokens_equal_the_official_codes(oracle: Any, variant: str, file: str, name: str) -> None:
    clip, folder = oracle
    theirs = read(folder, file, name)
    ours = dense_tokens(clip.image_tower, read(folder, "inputs.npz", "images")[:4], VARIANTS[variant])
    assert relative(ours[:, -theirs.shape[1] :], theirs) <= 1e-5


def test_feature_surgery_maps_and_points_equal_the_official_code(oracle: Any) -> None:
    clip, folder = oracle
    images, classes = read(folder, "inputs.npz", "images")[:4], read(folder, "inputs.npz", "classifier")
    tokens = dense_tokens(clip.image_tower, images, VARIANTS["surgery"])
    assert relative(feature_surgery(tokens, classes), read(folder, "surgery.npz", "similarity")) <= 1e-5
    alone = contrasted(tokens, classes[:1], contrast_of(clip, read(folder, "inputs.npz", "empty")))
    assert relative(alone, read(folder, "surgery.npz", "similarity_single_text")) <= 1e-5
    maps = heatmap(clip, images, classes, method="surgery", against="each other")
    resized = F.interpolate(maps.stretched(), (48, 80), mode="bilinear", align_corners=False)
    assert relative(resized.permute(0, 2, 3, 1), read(folder, "surgery.npz", "maps_48x80")) <= 1e-5


def test_points_equal_the_official_code(oracle: Any) -> None:
    clip, folder = oracle
    images, classes = read(folder, "inputs.npz", "images")[:4], read(folder, "inputs.npz", "classifier")
    theirs = json.loads((folder / "results.json").read_text())["surgery_points_48x80_class0"]
    maps = heatmap(clip, images, classes, method="surgery", against="each other")
    for i, official in enumerate(theirs):
        for ours, label in zip(points(maps.values[i, 0], (48, 80)), (1, 0), strict=True):
            expected = [p for p, found in zip(official["points"], official["labels"], strict=True) if found == label]
            assert sorted(ours.int().tolist()) == sorted(expected)


def test_feature_surgery_equals_its_published_elementwise_form() -> None:
    tokens, text = torch.randn(3, 7, 16, dtype=torch.float32), torch.randn(4, 16)
    unit, words = F.normalize(tokens, dim=-1), F.normalize(text, dim=-1)
    for i in range(3):
        w = (2 * unit[i, 0] @ words.T).softmax(-1)
        w = w / w.mean()
        elements = w[None, :, None] * unit[i, :, None] * words[None]
        expected = (elements - elements.mean(1, keepdim=True)).sum(-1)
        torch.testing.assert_close(feature_surgery(tokens, text)[i], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.needs])
def test_batch_equals_one_by_one_at_any_aspect_ratio(method: str) -> None:
    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([[1, 2 + len(t), 99] for t in texts])

    clip = ca.load(tiny.open_clip_model(layers=3), tokenizer=tokenizer)
    pixels = torch.randn(3, 3, 24, 40)
    batch = heatmap(clip, pixels, ["a", "bc"], method=method)
    assert batch.values.shape == (3, 2, 3, 5)
    for i in range(3):
        one = heatmap(clip, pixels[i : i + 1], ["a", "bc"], method=method)
        torch.testing.assert_close(one.values[0], batch.values[i], atol=1e-5, rtol=1e-4)
    assert heatmap(clip, pixels, ["a"], method=method).values.isfinite().all()


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ca.errors.BadSpec, match="Type one of: decomposition, surgery"):
        heatmap(ca.load(tiny.open_clip_model()), torch.randn(1, 3, 32, 32), torch.ones(1, 12), method="lime")
