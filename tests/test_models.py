"""Real architectures of both libraries, random weights: ours and theirs agree, at any resolution, and the rest is refused."""

from typing import Any

import pytest
import tiny
import torch
from tiny_families import randomized

import clip_anatomy as ca
from clip_anatomy.loading.parity import relative

REAL = ["ViT-B-32-quickgelu", "ViT-M-16-alt"]
LARGER = ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-CLIPA"]


def create(name: str) -> Any:
    import open_clip

    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return kind(**config).eval()


def agree(clip: ca.Clip, encode_image: Any, encode_text: Any, size: int) -> None:
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(5))
    parts = ca.decompose(clip, pixels)
    with torch.no_grad():
        assert relative(parts.total(), encode_image(pixels)) <= 1e-5
        ids = torch.zeros(2, clip.text_tower.embedding.position.shape[0], dtype=torch.long)
        high = clip.text_tower.embedding.weight.shape[0] - 1
        ids[:, :4] = torch.tensor([[high - 1, 320, 1125, high], [high - 1, 7, high, 0]])
        assert relative(ca.decompose_text(clip, ids).total(), encode_text(ids)) <= 1e-5
    assert clip.proof is not None
    assert clip.proof.holds


@pytest.mark.parametrize("name", [*REAL, *(pytest.param(one, marks=pytest.mark.slow) for one in LARGER)])
def test_open_clip(name: str) -> None:
    model = create(name)
    agree(ca.load(model), model.encode_image, model.encode_text, model.visual.image_size[0])


@pytest.mark.slow
def test_open_clip_huge() -> None:
    model = create("ViT-H-14")
    agree(ca.load(model), model.encode_image, model.encode_text, 224)


@pytest.mark.parametrize("name", ["B/32", pytest.param("L/14", marks=pytest.mark.slow)])
def test_transformers(name: str) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config={"eos_token_id": 49407, "bos_token_id": 49406})
    if name == "L/14":
        config = CLIPConfig(
            projection_dim=768,
            vision_config={
                "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14,
            },
            text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        )  # fmt: skip
    model = CLIPModel(config).eval()
    agree(
        ca.load(model),
        lambda x: tiny.features(model.get_image_features(pixel_values=x)),
        lambda x: tiny.features(model.get_text_features(input_ids=x)),
        224,
    )


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (7, 2), (1, 1)])
def test_any_resolution_without_touching_the_model(grid: tuple[int, int]) -> None:
    """transformers resamples position embeddings itself (bicubic): an independent computation of the same thing."""
    model: Any = tiny.transformers_model()
    before = model.vision_model.embeddings.position_embedding.weight.clone()
    pixels = torch.randn(2, 3, grid[0] * 8, grid[1] * 8)
    with torch.no_grad():
        theirs = tiny.features(model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True))
    parts = ca.decompose(ca.load(model), pixels)
    assert relative(parts.total(), theirs) <= 1e-5
    assert torch.equal(before, model.vision_model.embeddings.position_embedding.weight)


def test_pixels_that_no_patch_covers_are_cut_off_as_the_hosts_convolution_does() -> None:
    model: Any = tiny.open_clip_model(size=36)
    clip, pixels = ca.load(model), torch.randn(2, 3, 36, 36)
    with torch.no_grad():
        assert relative(ca.decompose(clip, pixels).total(), model.encode_image(pixels)) <= 1e-5
    assert torch.equal(clip.encode_image(pixels), clip.encode_image(pixels[..., :32, :32]))
    with pytest.raises(ca.errors.BadImage, match="multiples of the patch 8 × 8.*Type: images of 8 × 40"):
        ca.decompose(clip, torch.randn(1, 3, 7, 41))


def test_gated_blocks_are_refused_by_what_is_left_over() -> None:
    model = tiny.open_clip_model(vision={"scale_heads": True, "block_type": "custom"})
    with pytest.raises(ca.errors.UnsupportedModel, match=r"tensors that the split does not read: .*head_scale"):
        ca.load(model)


@pytest.mark.parametrize(
    "norms", [{}, {"qk_norm": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}]
)
def test_open_clips_own_attention_without_torchs_module(norms: dict[str, bool]) -> None:
    """Blocks of type "custom", which later versions of open_clip make all models of, with every norm that they can have."""
    own = {"block_type": "custom", **norms}
    model = randomized(tiny.open_clip_model(vision=own, text=own))
    assert not any(isinstance(module, torch.nn.MultiheadAttention) for module in model.modules())
    clip = ca.load(model)
    assert clip.proof is not None
    assert max(clip.proof.image, clip.proof.text) < 1e-12
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[98, 4, 99, 0], [98, 99, 0, 0]])
    with torch.no_grad():
        assert relative(ca.decompose(clip, pixels).total(), model.encode_image(pixels)) <= 1e-5
        full = torch.nn.functional.pad(ids, (0, 8))
        assert relative(ca.decompose_text(clip, ids).total(), model.encode_text(full)) <= 1e-5


def test_other_modules_are_refused() -> None:
    with pytest.raises(ca.errors.UnsupportedModel, match=r"found torch\.Linear"):
        ca.load(torch.nn.Linear(2, 2))


def test_a_parity_failure_says_what_differs() -> None:
    from clip_anatomy.loading.live_models import read_host
    from clip_anatomy.loading.parity import prove

    ours, theirs = read_host(tiny.open_clip_model()), read_host(tiny.open_clip_model(quick_gelu=True))
    with pytest.raises(ca.errors.ParityError, match=r"agrees with activation quick_gelu, but gelu was read"):
        prove(ours.image_tower, ours.text_tower, theirs.encode_image, theirs.encode_text, against="a host")


def test_the_same_weights_have_the_same_digest_in_both_libraries() -> None:
    a = ca.load(tiny.open_clip_model(seed=1))
    assert a.digest == ca.load(tiny.open_clip_model(seed=1)).digest
    assert a.digest != ca.load(tiny.open_clip_model(seed=2)).digest
