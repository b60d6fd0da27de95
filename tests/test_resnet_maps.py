"""Maps of CLIP-ResNets against the attention pool written out, and sinks wherever they are planted."""

import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny_resnet import resnet_model
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.maps.attention_sinks import sinks, without_sinks
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.heatmap import METHODS, heatmap
from clip_anatomy.maps.registry import RESNET, methods_of
from clip_anatomy.maps.resnet_maps import POOL_VARIANTS, pool_path
from clip_anatomy.towers.resnet import ResNet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _same_pictures_every_time() -> None:
    torch.manual_seed(0)


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[1, 2 + len(t), 99] for t in texts])


@pytest.fixture(scope="module")
def model() -> Any:
    return resnet_model()


@pytest.fixture(scope="module")
def clip(model: Any) -> ca.Clip:
    return ca.load(model, tokenizer=tokenizer)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def written_out(model: Any, pixels: Tensor, name: str) -> Tensor:
    """One method, place by place and head by head, from the host's own modules: [image, place, embed]."""
    visual, pool = model.visual, model.visual.attnpool
    d = 16
    with torch.no_grad():
        seen = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        rows, cols = seen.shape[2:]
        places = seen.flatten(2).transpose(1, 2)
        if name == "maskclip":  # as MaskCLIP has it: 1 × 1 convolutions over the map
            values = F.conv2d(seen, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
            dense = F.conv2d(values, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)
            return dense.flatten(2).transpose(1, 2)
        x = torch.cat([places.mean(1, keepdim=True), places], 1) + pool.positional_embedding
        projected = {n: layer(x) for n, layer in (("q", pool.q_proj), ("k", pool.k_proj), ("v", pool.v_proj))}
        left, right = {"raw": "qk", "clearclip": "qq", "naclip": "kk", "surgery": "vv"}[name]
        found = []
        for i in range(rows * cols):
            heads = []
            for h in range(pool.num_heads):
                part = slice(h * d, (h + 1) * d)
                scores = (projected[right][..., part] @ projected[left][:, i + 1, part, None])[..., 0] / math.sqrt(d)
                if name == "naclip":
                    for j in range(rows * cols):
                        apart = (i // cols - j // cols) ** 2 + (i % cols - j % cols) ** 2
                        scores[:, j + 1] += math.exp(-apart / (2 * 5.0**2))
                heads.append((scores.softmax(-1)[..., None] * projected["v"][..., part]).sum(1))
            found.append(pool.c_proj(torch.cat(heads, -1)))
        return torch.stack(found, 1)


@pytest.mark.parametrize("name", POOL_VARIANTS)
def test_every_place_is_the_pool_written_out(model: Any, clip: ca.Clip, name: str) -> None:
    pixels = torch.randn(2, 3, 96, 96)
    expected = written_out(model, pixels, name)
    assert isinstance(clip.vision, ResNet)
    ours = pool_path(clip.vision, pixels, POOL_VARIANTS[name])
    torch.testing.assert_close(ours[:, 1:], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[:, 0], clip.encode_image(pixels), atol=1e-5, rtol=1e-4)
    text = torch.randn(3, 24)
    if name == "surgery":
        return
    maps = heatmap(clip, pixels, text, method=name)
    cosine = unit(expected) @ unit(text).T
    torch.testing.assert_close(maps.values, cosine.transpose(1, 2).unflatten(2, (3, 3)), atol=1e-5, rtol=1e-4)


def test_surgery_weighs_the_texts_by_the_models_own_embedding(model: Any, clip: ca.Clip) -> None:
    pixels, text = torch.randn(2, 3, 96, 96), torch.randn(3, 24)
    dense, words = unit(written_out(model, pixels, "surgery")), unit(text)
    with torch.no_grad():
        pooled = unit(model.encode_image(pixels))
    maps = heatmap(clip, pixels, text, method="surgery", against="each other").values
    for i in range(2):
        w = (2 * pooled[i] @ words.T).softmax(-1)
        elements = (w / w.mean())[None, :, None] * dense[i, :, None] * words[None]
        expected = (elements - elements.mean(1, keepdim=True)).sum(-1)
        torch.testing.assert_close(maps[i], expected.T.unflatten(1, (3, 3)), atol=1e-5, rtol=1e-4)
    alone = heatmap(
        clip, pixels, ["abc"], method="surgery", against="each other"
    ).values  # the empty text, as published
    against = unit(clip.encode_text(["abc"])) - unit(clip.encode_text([""]))
    torch.testing.assert_close(alone, (dense @ against.T).transpose(1, 2).unflatten(2, (3, 3)), atol=1e-5, rtol=1e-4)


def test_decomposition_is_the_exact_share_of_each_place(clip: ca.Clip) -> None:
    pixels, text = torch.randn(2, 3, 96, 160), torch.randn(3, 24)
    tokens = ca.decompose(clip, pixels).tokens(text)[:, 0]  # [image, head, token, text]

    def expected(shares: Tensor) -> Tensor:
        return shares[:, :, 1:].sum(1).transpose(1, 2).unflatten(2, (3, 5))

    maps = heatmap(clip, pixels, text, against=None)
    torch.testing.assert_close(maps.values, expected(tokens), atol=1e-6, rtol=1e-4)
    some = heatmap(clip, pixels, text, against=None, heads="0.1,0.6")
    torch.testing.assert_close(some.values, expected(tokens[:, [1, 6]]), atol=1e-6, rtol=1e-4)
    less = heatmap(clip, pixels, text, against="each other")
    directions = unit(text) - unit(text).mean(0)
    torch.testing.assert_close(less.values.mean(1), torch.zeros(2, 3, 5), atol=1e-6, rtol=0)
    tokens_less = ca.decompose(clip, pixels).tokens(directions)[:, 0] * directions.norm(dim=-1)
    torch.testing.assert_close(less.values, expected(tokens_less), atol=1e-6, rtol=1e-4)
    with pytest.raises(ca.errors.BadSpec, match="heads that do not exist: 0.8"):
        heatmap(clip, pixels, text, heads="0.8")


@pytest.mark.parametrize("method", RESNET)
def test_batch_equals_one_by_one_at_any_aspect_ratio(clip: ca.Clip, method: str) -> None:
    pixels = torch.randn(3, 3, 64, 128)
    batch = heatmap(clip, pixels, ["a", "bc"], method=method)
    assert batch.values.shape == (3, 2, 2, 4)
    for i in range(3):
        one = heatmap(clip, pixels[i : i + 1], ["a", "bc"], method=method)
        torch.testing.assert_close(one.values[0], batch.values[i], atol=1e-5, rtol=1e-4)
    assert heatmap(clip, pixels, ["a"], method=method).values.isfinite().all()


def test_maskclips_refinements(clip: ca.Clip) -> None:
    pixels, text = torch.randn(1, 3, 96, 96), torch.randn(3, 24)
    plain = heatmap(clip, pixels, text, method="maskclip").values
    assert (heatmap(clip, pixels, text, method="maskclip", denoise=0.999999).values == -1).all()
    torch.testing.assert_close(heatmap(clip, pixels, text, method="maskclip", denoise=1e-9).values, plain)
    smooth = heatmap(clip, pixels, text, method="maskclip", smooth_keys=True).values
    assert not torch.allclose(smooth, plain)


def test_gradient_maps_are_those_of_autograd(model: Any, clip: ca.Clip) -> None:
    """The host's own pool, its attention written out, one backward per image and text."""
    pixels, text = torch.randn(2, 3, 96, 96), torch.randn(3, 24)
    found = {name: heatmap(clip, pixels, text, method=name).values for name in ("gradcam", "chefer")}
    visual, pool = model.visual, model.visual.attnpool
    for i in range(2):
        with torch.no_grad():
            seen = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels[i : i + 1])))))
        seen.requires_grad_()
        for t in range(3):
            (slope,) = torch.autograd.grad(F.cosine_similarity(pool(seen), text[t : t + 1]).sum(), seen)
            expected = (slope.mean((2, 3), keepdim=True) * seen).sum(1).relu()[0]
            torch.testing.assert_close(found["gradcam"][i, t], expected.detach(), atol=1e-6, rtol=1e-3)
            x = torch.cat([seen.mean((2, 3))[:, None], seen.flatten(2).transpose(1, 2)], 1) + pool.positional_embedding
            q, k, v = (layer(x)[0].unflatten(1, (8, 16)).detach() for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
            attention = (torch.einsum("hd,nhd->hn", q[0], k) / 4).softmax(-1).requires_grad_()
            embedding = pool.c_proj(torch.einsum("hn,nhd->hd", attention, v).flatten())
            (by_attention,) = torch.autograd.grad(
                model.logit_scale.exp().detach() * F.cosine_similarity(embedding, text[t], dim=0), attention
            )
            relevance = (by_attention * attention).relu().mean(0)[1:].detach()
            torch.testing.assert_close(found["chefer"][i, t].flatten(), relevance, atol=1e-5, rtol=1e-3)


def test_what_has_no_meaning_on_a_resnet_is_refused_by_name(clip: ca.Clip) -> None:
    pixels = torch.randn(1, 3, 96, 96)
    assert set(methods_of(clip)) == set(RESNET)
    for method in set(METHODS) - set(RESNET):
        with pytest.raises(
            ca.errors.UnsupportedModel, match=f"'{method}' has no meaning on a CLIP-ResNet.*Type one of"
        ):
            heatmap(clip, pixels, ["a", "bc"], method=method)
    with pytest.raises(ca.errors.BadSpec, match="'lime' is not known. Type one of: decomposition, surgery"):
        heatmap(clip, pixels, ["a"], method="lime")
    with pytest.raises(ca.errors.UnsupportedModel, match="a residual stream and an MLP"):
        heatmap(clip, pixels, ["a"], method=DenseAttention(("qq",), residual=True, ffn=True))


def test_a_dense_attention_of_ones_own(model: Any, clip: ca.Clip) -> None:
    pixels, text = torch.randn(1, 3, 96, 96), torch.randn(2, 24)
    both = DenseAttention(("qq", "vv"), average=True)
    with torch.no_grad():
        expected = (written_out(model, pixels, "clearclip") + written_out(model, pixels, "surgery")) / 2
    cosine = (unit(expected) @ unit(text).T).transpose(1, 2).unflatten(2, (3, 3))
    torch.testing.assert_close(heatmap(clip, pixels, text, method=both).values, cosine, atol=1e-5, rtol=1e-4)


# ---- sinks


def planted(place: int, grid: int = 7) -> ca.Clip:
    """A ResNet whose pool has a long position vector at one place, as OpenAI's have at the last."""
    model = resnet_model(image_size=32 * grid)
    with torch.no_grad():
        position = model.visual.attnpool.positional_embedding
        position[1 + place] *= 40.0
    return ca.load(model, tokenizer=tokenizer)


@pytest.mark.parametrize("place", [48, 0, 17])
def test_a_sink_is_found_wherever_it_is(place: int) -> None:
    clip = planted(place)
    found = sinks(clip, torch.randn(3, 3, 224, 224))
    assert found.places == [(place // 7, place % 7, 3)]
    assert found.description.startswith("sinks in 3 of 3 pictures")
    assert f"row {place // 7} col {place % 7} in 3" in found.description
    assert (found.share > 0).all()
    torch.testing.assert_close(found.attention.sum((1, 2)), torch.ones(3))


def test_a_place_that_draws_the_attention_is_a_sink_too() -> None:
    model = resnet_model(image_size=224)
    pool = model.visual.attnpool
    with torch.no_grad():  # every query loves one direction, which is the position of one place
        pool.q_proj.weight.zero_()
        pool.q_proj.bias.fill_(1.0)
        pool.k_proj.weight.copy_(torch.outer(torch.ones(128), unit(pool.positional_embedding[1 + 20])))
    clip = ca.load(model, tokenizer=tokenizer)
    found = sinks(clip, torch.randn(2, 3, 224, 224), length=1e6)
    assert found.places == [(2, 6, 2)]
    assert (found.attention[:, 2, 6] >= 10 / 49).all()
    assert float(found.length[:, 2, 6].max()) < 2, "its length is nothing special"


def test_ordinary_pictures_have_none() -> None:
    clip = ca.load(resnet_model(image_size=224), tokenizer=tokenizer)
    found = sinks(clip, torch.randn(4, 3, 224, 224))
    assert not found.mask.any()
    assert found.description == "no sinks in 4 pictures"
    assert not sinks(clip, torch.zeros(1, 3, 224, 224)).mask.any()


def test_registers_of_a_transformer_are_found() -> None:
    model: Any = tiny.open_clip_model(size=64, layers=2, heads=4)
    with torch.no_grad():  # one position is long behind ln_pre's gain, and the first block adds nothing
        first = model.visual.transformer.resblocks[0]
        for layer in (first.attn.out_proj, first.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        model.visual.ln_pre.weight.fill_(0.1)
        model.visual.ln_pre.weight[0] = 8.0
        model.visual.positional_embedding[:, 0] = 0
        model.visual.positional_embedding[1 + 27, 0] = 60.0
        model.visual.conv1.weight[0] = 0
    found = sinks(ca.load(model, tokenizer=tokenizer), torch.randn(2, 3, 64, 64))
    assert (found.length.flatten(1).argmax(1) == 27).all()
    assert found.places[0] == (3, 3, 2)


def test_sinks_are_replaced_by_the_mean_around_them() -> None:
    values = torch.arange(18.0).reshape(1, 2, 3, 3)
    corner = torch.zeros(1, 3, 3, dtype=torch.bool)
    corner[0, 2, 2] = True
    done = without_sinks(values, corner)
    assert done[0, 0, 2, 2] == (values[0, 0, 1, 1] + values[0, 0, 1, 2] + values[0, 0, 2, 1]) / 3
    assert torch.equal(done.masked_fill(corner[:, None], 0), values.masked_fill(corner[:, None], 0))
    block = torch.ones(1, 3, 3, dtype=torch.bool)
    block[0, 0, 0] = False
    assert (without_sinks(values, block)[0, 0] == 0).all(), "filled from the edge inwards"
    assert torch.equal(without_sinks(values, torch.ones(1, 3, 3, dtype=torch.bool)), values)


def test_maps_without_the_planted_sink() -> None:
    clip, pixels = planted(48), torch.randn(2, 3, 224, 224)
    for method in ("maskclip", "decomposition", "surgery", "raw"):
        with_sink = heatmap(clip, pixels, ["a", "bc"], method=method).values
        without = heatmap(clip, pixels, ["a", "bc"], method=method, replace_sinks=True).values
        around = (with_sink[..., 6, 5] + with_sink[..., 5, 6] + with_sink[..., 5, 5]) / 3
        torch.testing.assert_close(without[..., 6, 6], around)
        assert torch.equal(without[..., :6, :], with_sink[..., :6, :])


def test_limits_that_no_sink_could_have(clip: ca.Clip) -> None:
    with pytest.raises(ca.errors.BadSpec, match="Type: length=2, attention=0.1"):
        sinks(clip, torch.randn(1, 3, 96, 96), length=0.5)
