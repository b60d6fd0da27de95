"""Position vectors at another resolution are what the host library makes of them."""

from typing import Any

import pytest
import tiny
import torch

import clip_anatomy as ca
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.loading.parity import relative
from clip_anatomy.towers.positions import resample_position

OTHER_SIZES = [(40, 40), (24, 24), (24, 64), (8, 16)]  # pixels; the models' own is 32 × 32, patches of 8


@pytest.mark.parametrize("size", OTHER_SIZES)
def test_open_clip_at_another_size(size: tuple[int, int]) -> None:
    """Against open_clip's own model built at the other size, its table made by its own `resize_pos_embed`."""
    from open_clip.model import resize_pos_embed

    model: Any = tiny.open_clip_model()
    larger: Any = tiny.open_clip_model(vision={"image_size": size})
    state = model.state_dict()
    resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    clip = ca.load(model)
    with torch.no_grad():
        theirs = larger.encode_image(pixels)
        edited = EditedClip(clip, Edit.of(clip, "0.0", by="zero")).encode_both(pixels)[0]
    assert relative(clip.encode_image(pixels), theirs) <= 1e-6
    assert relative(ca.decompose(clip, pixels).total(), theirs) <= 1e-5
    assert relative(edited, theirs) <= 1e-5


@pytest.mark.parametrize("size", OTHER_SIZES)
def test_transformers_at_another_size(size: tuple[int, int]) -> None:
    model: Any = tiny.transformers_model()
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    clip = ca.load(model)
    with torch.no_grad():
        theirs = tiny.features(model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True))
        edited = EditedClip(clip, Edit.of(clip, "0.0", by="zero")).encode_both(pixels)[0]
    assert relative(clip.encode_image(pixels), theirs) <= 1e-6
    assert relative(edited, theirs) <= 1e-5


@pytest.mark.parametrize("grid", [(5, 5), (3, 3), (3, 8), (1, 2)])
def test_timm_at_another_size(grid: tuple[int, int]) -> None:
    """Against timm's own vision transformer with a dynamic image size."""
    from timm.models.vision_transformer import VisionTransformer

    vit: Any = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, dynamic_img_size=True)
    tiny.shake(vit)
    with torch.no_grad():
        patches = torch.zeros(1, *grid, 16)
        theirs = vit._pos_embed(patches)[0] - torch.cat([vit.cls_token[0], torch.zeros(grid[0] * grid[1], 16)])
        ours = resample_position(vit.pos_embed[0], (4, 4), grid, "bicubic-antialias")
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_double_precision_stays_double() -> None:
    table = torch.randn(17, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    double = resample_position(table, (4, 4), (5, 3), "bicubic")
    single = resample_position(table.float(), (4, 4), (5, 3), "bicubic")
    assert double.dtype == torch.float64
    assert 0 < float((double - single).abs().max()) < 1e-5
