"""Image towers alone: open_clip's `visual`, and vision transformers of timm, DINOv2 and DINOv3 among them."""

from typing import Any

import pytest
import timm
import torch
from PIL import Image
from tiny_families import SMALL, TIMM, family, randomized

import clip_anatomy as ca
from clip_anatomy.errors import UnsupportedModel

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {**SMALL, "num_classes": 0}
TRUNKS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": TINY,
    "vit_small_patch14_dinov2": {**TINY, "img_size": 28},
    "vit_small_patch14_reg4_dinov2": {**TINY, "img_size": 28},
    "vit_small_patch16_dinov3": TINY,
    "vit_base_patch16_siglip_224": TINY,
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
