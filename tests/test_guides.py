"""The worked examples of docs/maps.md run as they stand: guides from DINOv2, DINOv3 and SAM, and a method of one's own in one file."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec
from clip_anatomy.maps.automatic import chosen_method
from clip_anatomy.maps.registry import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


def example(name: str) -> str:
    text = (Path(__file__).parents[1] / "docs" / "maps.md").read_text(encoding="utf-8")
    return next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if code.startswith(f"# {name}\n"))


def run(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(example(name), name, "exec"), found)
    return found


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=3), tokenizer=None, parity=False)


def dinov2() -> Any:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)).eval()


def dinov3() -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return DINOv3ViTModel(DINOv3ViTConfig(**small, num_register_tokens=4)).eval()


def sam() -> Any:
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionModel

    small = {"hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32}
    config = SamVisionConfig(
        **small, image_size=64, patch_size=16, window_size=2, global_attn_indexes=[1], num_pos_feats=8
    )
    return tiny.shake(SamVisionModel(config))


def sam2() -> Any:
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig, Sam2VisionModel

    backbone = Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 24, 32],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 2, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    config = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[32, 24, 16, 8], fpn_hidden_size=8,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    return tiny.shake(Sam2VisionModel(config))


@pytest.mark.parametrize(("how", "model"), [("dino", dinov2), ("dino", dinov3), ("sam", sam), ("sam2", sam2)])
def test_a_guide_of_another_model(how: str, model: Any, clip: ca.Clip) -> None:
    guides, guide = run("guides.py"), model()
    pixels, text = torch.randn(3, 3, 32, 40), torch.randn(2, 12)
    affinity = guides[how](clip, pixels, guide)
    assert affinity.shape == (3, 20, 20)
    torch.testing.assert_close(affinity.diagonal(dim1=1, dim2=2), torch.ones(3, 20))
    maps = ca.heatmap(clip, pixels, text, "proxyclip", affinity=affinity).values
    for at in range(3):  # each matrix stands for itself: no mean over the batch
        own = guides[how](clip, pixels[at : at + 1], guide)
        torch.testing.assert_close(own[0], affinity[at], atol=1e-5, rtol=1e-4)
        alone = ca.heatmap(clip, pixels[at : at + 1], text, "proxyclip", affinity=affinity[at].numpy()).values[0]
        torch.testing.assert_close(alone, maps[at], atol=1e-6, rtol=1e-5)


def test_what_the_guide_sees_is_what_clip_sees(clip: ca.Clip) -> None:
    guides = run("guides.py")
    levels = torch.rand(1, 3, 32, 40)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (clip.preprocess.mean, clip.preprocess.std))
    x, grid = guides["seen_by"](clip, (levels - mean) / std, 8)
    assert grid == (4, 5)
    back = x * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    torch.testing.assert_close(back, levels, atol=1e-5, rtol=1e-4)


def test_a_method_in_one_file(clip: ca.Clip) -> None:
    code = example("steered.py")
    assert len(code.splitlines()) <= 80
    run("steered.py")
    try:
        pixels, text = torch.randn(2, 3, 32, 40), torch.randn(3, 12)
        found = ca.heatmap(clip, pixels, text, "steered", sharpness=5.0)
        assert found.method == "steered"
        visual = clip.host.visual
        for picture, maps in zip(pixels, found.values, strict=True):
            expected = by_hand(visual, clip, picture, text)
            torch.testing.assert_close(maps.flatten(1).T, expected, atol=1e-5, rtol=1e-4)
        windows = ca.heatmap(clip, torch.randn(1, 3, 64, 64), text, "steered", window=32)
        assert windows.values.shape == (1, 3, 8, 8)
        with pytest.raises(BadSpec, match="Its options and their defaults: share=0.75, sharpness=10.0"):
            ca.heatmap(clip, pixels, text, "steered", sharp=1.0)
    finally:
        METHODS.pop("steered")


@torch.no_grad()
def by_hand(visual: Any, clip: ca.Clip, picture: Tensor, text: Tensor) -> Tensor:
    from clip_anatomy.towers.embedding import embed_image

    x = embed_image(clip.image_tower, picture[None])
    for block in visual.transformer.resblocks[:2]:  # 0.75 of three blocks
        x = block(x)
    unit = F.normalize(x[0, 1:], dim=-1)
    block = visual.transformer.resblocks[2]
    width = x.shape[-1]
    value = block.ln_1(x[0, 1:]) @ block.attn.in_proj_weight[2 * width :].T + block.attn.in_proj_bias[2 * width :]
    written = block.attn.out_proj((5 * unit @ unit.T).softmax(-1) @ value)
    return F.normalize(visual.ln_post(written) @ visual.proj, dim=-1) @ F.normalize(text, dim=-1).T


def test_auto_is_the_choice_for_the_kind_of_model(clip: ca.Clip) -> None:
    pixels, text = torch.randn(1, 3, 32, 32), torch.randn(2, 12)
    maps = ca.heatmap(clip, pixels, text)
    assert maps.method == "decomposition"
    assert torch.equal(maps.values, ca.heatmap(clip, pixels, text, "decomposition").values)
    deep = ca.load(tiny.open_clip_model(layers=12), tokenizer=None, parity=False)
    assert ca.segment(deep, pixels, text).maps.method == "scclip"
    assert ca.segment(deep, pixels, text[:1]).maps.method == "decomposition"
    assert ca.segment(clip, pixels, text).maps.method == "decomposition"
    averaged = ca.load(tiny.open_clip_model(layers=12, vision={"pool_type": "avg"}), tokenizer=None, parity=False)
    assert chosen_method(averaged, classes=True).method == "decomposition"
    assert ca.heatmap(deep, pixels, text, "auto").method == "decomposition"
