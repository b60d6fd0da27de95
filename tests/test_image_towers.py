"""Image towers alone: open_clip's `visual`, and vision transformers of timm, DINOv2 and DINOv3 among them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_families import SMALL, TIMM, family, randomized

import clip_anatomy as ca
from clip_anatomy.errors import BadInput, UnsupportedModel
from clip_anatomy.towers.split_kind import split_kind

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {**SMALL, "num_classes": 0}
TRUNKS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": TINY,
    "vit_small_patch14_dinov2": {**TINY, "img_size": 28},
    "vit_small_patch14_reg4_dinov2": {**TINY, "img_size": 28},
    "vit_small_patch16_dinov3": TINY,
    "vit_base_patch16_siglip_224": TINY,
    "vit_base_patch16_siglip_384": {**TINY, "img_size": 38},  # no multiple of the patch, as SO400M's 384 is none of 14
    "eva02_base_patch16_clip_224": TINY,
    "vit_tiny_patch16_224": {**TINY, "num_classes": 5},
}


@pytest.mark.parametrize("name", TRUNKS)
def test_a_transformer_of_timm_opens_and_sums(name: str) -> None:
    trunk = randomized(timm.create_model(name, **TRUNKS[name]))
    clip = ca.load(trunk)
    assert clip.proof is not None
    assert clip.proof.text is None
    assert clip.proof.image is not None
    assert clip.proof.image < 1e-10
    side = TRUNKS[name]["img_size"]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    parts = ca.decompose(clip, pixels)
    with torch.no_grad():
        torch.testing.assert_close(parts.total(), trunk(pixels), atol=1e-5, rtol=1e-4)
    with pytest.raises(
        UnsupportedModel, match=r"has an image tower only and cannot embed texts\. Type: .*read_through"
    ):
        clip.encode_text(["a dog"])
    assert clip.encode_image(Image.new("RGB", (50, 40), "red")).shape == (1, clip.vision.embed)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_trunk_of_convolutions_or_windows_alone_is_split_at_its_places(name: str, classes: int) -> None:
    from test_host_towers import TRUNKS as SMALLER

    given = SMALLER.get(name, SMALLER["swin_tiny_patch4_window7_224"])
    trunk = randomized(timm.create_model(name, num_classes=classes, **given))
    clip = ca.load(trunk)
    assert (
        split_kind(clip.vision)
        == f"the mean of {' × '.join(map(str, clip.vision.grid))} places; what makes them is one part"
    )
    rows, cols = (n * side for n, side in zip(clip.vision.grid, clip.patch, strict=True))
    pixels = torch.randn(2, 3, rows, cols, generator=torch.Generator().manual_seed(0))
    parts = ca.decompose(clip, pixels)
    with torch.no_grad():
        torch.testing.assert_close(parts.total(), trunk(pixels), atol=1e-5, rtol=1e-4)
    texts = torch.randn(2, clip.vision.embed, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(parts.tokens(texts).sum(3), parts.toward(texts).heads, rtol=1e-4, atol=1e-5)
    assert clip.encode_image(Image.new("RGB", (50, 40), "red")).shape == (1, clip.vision.embed)


def test_blocks_of_several_attentions_are_one_part_and_say_so() -> None:
    trunk = randomized(timm.create_model("vit_small_patch16_18x2_224", **TINY))
    clip = ca.load(trunk)
    assert split_kind(clip.vision) == "one part, not split: it has blocks of type ParallelThingsBlock"
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ca.decompose(clip, pixels).total(), trunk(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["siglip", "pe", "coca", "open_clip"])
def test_visual_alone_is_the_image_side_of_its_model(name: str) -> None:
    import tiny

    model: Any = tiny.open_clip_model() if name == "open_clip" else family(name)
    assert name in (*TIMM, "coca", "open_clip")
    whole, alone = ca.load(model), ca.load(model.visual)
    rows, cols = (n * side for n, side in zip(whole.vision.grid, whole.patch, strict=True))
    pixels = torch.randn(2, 3, rows, cols, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ca.decompose(alone, pixels).heads, ca.decompose(whole, pixels).heads)
    assert alone.preprocess == whole.preprocess
    with pytest.raises(UnsupportedModel, match=r"Type: load\(model\), the whole model"):
        alone.encode_text(["a dog"])


def test_a_transformer_without_texts_is_read_in_the_space_of_a_clip(tmp_path: Path) -> None:
    import tiny

    vit = ca.load(randomized(timm.create_model("deit_tiny_patch16_224", **TINY)))
    clip = ca.load(
        tiny.open_clip_model(seed=3), tokenizer=lambda texts: torch.tensor([[98, len(t), 99] for t in texts])
    )
    draw = np.random.default_rng(0)
    for at in range(60):
        Image.fromarray(draw.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32), 0).save(tmp_path / f"{at:02d}.png")
    for name, model in (("vit", vit), ("clip", clip)):
        ca.index(model, tmp_path, tmp_path / "stores" / name, layers="all")
    stores = [ca.Store.open(tmp_path / "stores" / name) for name in ("vit", "clip")]
    found = ca.align(*stores, permutations=0)
    assert 0 < found.explained < 1  # two random models: some of it
    assert f"R² {found.explained:.2f}, cosine {found.cosine:.2f}" in " ".join(found.summary().split())
    read = vit.read_through(found, clip)
    pixels = vit.pixels([tmp_path / "00.png", tmp_path / "01.png"])
    expected = vit.encode_image(pixels).double() @ found.weight.T + found.intercept
    torch.testing.assert_close(read.encode_image(pixels).double(), expected, atol=1e-5, rtol=1e-4)
    parts = ca.decompose(read, pixels)
    assert float(parts.residue.max()) < 1e-5
    own = ca.decompose(vit, pixels)
    torch.testing.assert_close(parts.heads.double(), own.heads.double() @ found.weight.T, atol=1e-5, rtol=1e-4)
    texts = read.encode_text(["a dog", "a lake"])
    torch.testing.assert_close(texts, clip.encode_text(["a dog", "a lake"]))
    maps = ca.heatmap(read, pixels, ["a dog", "a lake"], against="nothing").values
    torch.testing.assert_close(
        maps.flatten(2).transpose(1, 2), parts.tokens(texts).sum((1, 2))[:, vit.vision.own :], atol=1e-6, rtol=1e-4
    )
    span = ca.textspan(ca.Moments.of(parts), torch.nn.functional.normalize(texts, dim=-1), 2)
    assert span.indices.shape == (2, 4, 2)
    assert read.digest != vit.digest
    again = pickle.loads(pickle.dumps(vit.read_through(Turned(48))))
    torch.testing.assert_close(again.encode_image(pixels), -vit.encode_image(pixels), atol=1e-6, rtol=1e-4)
    with pytest.raises(BadInput, match=r"the map is \[12, 12\].*\[channel, 48\]"):
        vit.read_through(Turned(12))


class Turned:
    """The map −1."""

    def __init__(self, width: int) -> None:
        self.weight, self.intercept = -torch.eye(width), torch.zeros(width)
