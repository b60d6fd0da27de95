"""The edited encoder stands where the model stood: any batch, size, device, precision and compiler, and it never touches that model."""

from typing import Any

import pytest
import tiny
import torch
from edits import SPEC, clip, close, means, model, pixels

import clip_anatomy as ca
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadImage
from clip_anatomy.split.basis import basis_of
from clip_anatomy.split.means import Means

__all__ = ["clip", "means", "model"]  # fixtures


def test_an_empty_edit_is_the_host_to_the_last_bit() -> None:
    for make in (tiny.open_clip_model, tiny.transformers_model):
        host: Any = make()
        edited = EditedClip(ca.load(host), Edit.empty(ca.load(host)))
        images, ids = pixels(5), torch.full((2, 12), 99)
        with torch.no_grad():
            if hasattr(host, "encode_image"):
                assert torch.equal(edited.encode_image(images), host.encode_image(images))
                assert torch.equal(
                    edited.encode_image(images, normalize=True), host.encode_image(images, normalize=True)
                )
                close(edited.encode_text(ids, normalize=True), host.encode_text(ids, normalize=True), 1e-6)
            else:
                theirs, ours = (
                    host.get_image_features(pixel_values=images),
                    edited.get_image_features(pixel_values=images),
                )
                assert torch.equal(getattr(ours, "pooler_output", ours), getattr(theirs, "pooler_output", theirs))
                assert type(ours) is type(theirs)
                ours = edited.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
                theirs = host.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
                close(getattr(ours, "pooler_output", ours), getattr(theirs, "pooler_output", theirs), 1e-6)
    demo = ca.load("demo")  # no host module: our own forward, proven on load
    images = pixels(2, size=(64, 64))
    close(EditedClip(demo, Edit.empty(demo)).encode_image(images), demo.encode_image(images), 1e-6)


@pytest.mark.parametrize("size", [(16, 40), (16, 64)])  # (16, 64) has as many patches as the model's own (32, 32)
def test_an_empty_edit_takes_pictures_of_any_size(clip: Any, size: tuple[int, int]) -> None:
    images = pixels(2, 3, size)
    edit = Edit.of(clip, Selection(), by="zero")
    close(EditedClip(clip, edit).encode_image(images), ca.decompose(clip, images).embedding, 5e-5)


def test_forward_logits_and_scale_as_in_open_clip(model: Any, clip: Any) -> None:
    edited, images, ids = EditedClip(clip, Edit.empty(clip)), pixels(3), torch.full((2, 12), 99)
    with torch.no_grad():
        for ours, theirs in zip(edited(images, ids), model(images, ids), strict=True):
            close(ours, theirs, 1e-6)
        for ours, theirs in zip(edited.get_logits(images, ids), model.get_logits(images, ids), strict=True):
            close(ours, theirs, 1e-5)
        assert edited(images, None)[1] is None
    close(edited.logit_scale.exp(), model.logit_scale.exp(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_dtype_and_the_users_model_stays_bit_identical(
    clip: Any, model: Any, means: Means, dtype: torch.dtype
) -> None:
    def state() -> dict[str, Any]:
        return {k: (v.data_ptr(), v.dtype, v._version, v.clone()) for k, v in model.state_dict().items()}

    before = state()
    edit = Edit.of(clip, SPEC, means)
    edited = EditedClip(clip, edit)
    plain = edited.encode_image(pixels(3))
    edited.load_state_dict({k: torch.zeros_like(v) for k, v in edited.state_dict().items()})
    edited = EditedClip(clip, edit).to(dtype)
    found = edited.encode_image(pixels(3))
    assert found.dtype == dtype
    close(found, plain, {torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype])
    assert not list(edited.parameters())  # nothing that an optimiser could move
    with pytest.raises(AttributeError):
        _ = edited.visual
    for name, (pointer, kind, version, value) in state().items():
        assert (pointer, kind, version) == before[name][:3], name
        assert torch.equal(value, before[name][3])


def test_a_half_precision_model_is_edited_in_its_own_precision() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2, heads=2, d=8).to(torch.bfloat16))
    edit = Edit.of(clip, "0.1,1.0+mlp=1", Means.of(clip, pixels(4)))
    found = EditedClip(clip, edit).encode_image(pixels(3))
    assert found.dtype == torch.bfloat16
    close(found, edit.apply(ca.decompose(clip, pixels(3))), 3e-2)


def test_batches_agree_with_one_by_one_and_gradients_reach_the_pixels(clip: Any, means: Means) -> None:
    edited, images = EditedClip(clip, Edit.of(clip, SPEC, means)), pixels(5).requires_grad_()
    batch = edited.encode_image(images)
    close(torch.cat([edited.encode_image(one[None]) for one in images]), batch, 1e-5)
    batch.sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert edited.encode_image(images[:0]).shape == (0, 12)


def test_the_demo_edit_moves_the_answer_only_through_its_parts() -> None:
    """Of a text orthogonal to what the edited head can write, every dot product stays as it was."""
    clip = ca.load("demo")
    edit = Edit.of(clip, "7.1", Means.of(clip, pixels(4, size=(64, 64))))
    rows = basis_of(clip.image_tower).rows[7, 1]
    out = torch.eye(128, dtype=torch.float64) - rows.T @ rows
    a = EditedClip(clip, edit).encode_image(pixels(3, 1, (64, 64))).double()
    b = clip.encode_image(pixels(3, 1, (64, 64))).double()
    close(a @ out, b @ out, 1e-5)
    assert float((a - b).norm()) > 1e-3


def test_an_empty_edit_casts_pixels_and_lets_go_of_the_host_when_its_weights_are_others(clip: Any) -> None:
    host: Any = tiny.open_clip_model(layers=3, heads=3).to(torch.bfloat16)
    half, images = ca.load(host), pixels(2)
    with torch.no_grad():
        found = EditedClip(half, Edit.empty(half)).encode_image(images)
        assert torch.equal(found, host.encode_image(images.to(torch.bfloat16)))
    edited = EditedClip(clip, Edit.empty(clip))
    own = edited.encode_image(images)
    assert torch.equal(edited.to("cpu", torch.float32).encode_image(images), own)  # nothing moved: still the host's
    weight = {"image_tower.projection": 2 * edited.image_tower.projection}
    edited.load_state_dict(weight, strict=False)
    close(edited.encode_image(images), 2 * own, 1e-5)
    rounded = EditedClip(clip, Edit.empty(clip)).to(torch.bfloat16).to(torch.float32)
    assert not torch.equal(rounded.encode_image(images), own)


def test_under_autocast_it_stays_within_half_precision(clip: Any, model: Any, means: Means) -> None:
    edited = EditedClip(clip, Edit.of(clip, SPEC, means))
    plain = edited.encode_image(pixels(3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, theirs = edited.encode_image(pixels(3)), model.encode_image(pixels(3))
    off = float((theirs.float() - clip.encode_image(pixels(3))).norm())  # what autocast costs the host
    assert float((found.float() - plain).norm()) < 3 * off


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 4, 32), (2, 32, 32, 3)])
def test_what_are_no_pixels_is_named(clip: Any, shape: tuple[int, ...]) -> None:
    import re

    for edit in (Edit.empty(clip), Edit.of(clip, "0.1", by="zero")):
        for encode in (EditedClip(clip, edit).encode_image, EditedClip(clip, edit).encode_both):
            said = rf"pixels are {re.escape(str(list(shape)))}; \[image, 3, row, col\] .* Type pixels\[None\]"
            with pytest.raises(BadImage, match=said):
                encode(torch.zeros(shape))


def test_attention_beyond_half_precisions_range_is_still_a_number() -> None:
    """q·k may exceed 65,504 before it is divided by √d: the quotient is what counts."""
    host: Any = tiny.open_clip_model(layers=2, heads=2, d=64)
    with torch.no_grad():
        for block in host.visual.transformer.resblocks:
            block.attn.in_proj_weight[:256] *= 60
    clip = ca.load(host.half(), parity=False)
    edited = EditedClip(clip, Edit.of(clip, "class-to-class=0,1", by="zero"))
    with torch.no_grad():
        plain, found = edited.encode_both(pixels(4).half())
    assert bool(torch.isfinite(plain).all())
    assert bool(torch.isfinite(found).all())
