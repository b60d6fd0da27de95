"""The dense family, the decomposition's map and the outside guide against loops written out longhand, and the model untouched."""

from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.maps.dense_attention import VARIANTS, DenseAttention, dense_path, dense_tokens, gaussian
from clip_anatomy.maps.heatmap import METHODS, heatmap
from clip_anatomy.maps.maskclip import denoised, smoothed
from clip_anatomy.maps.proxyclip import guide
from clip_anatomy.split.tokens import token_map

pytestmark = pytest.mark.usefixtures("one_thread")

READY = [name for name, method in METHODS.items() if not method.needs]


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[1, 2 + len(t), 99] for t in texts])


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=3), tokenizer=tokenizer)


def longhand(clip: ca.Clip, pixels: Tensor, variant: DenseAttention) -> Tensor:
    """One image through the host's own modules, with every attention matrix written out."""
    visual = clip.host.visual
    heads, width = visual.transformer.resblocks[0].attn.num_heads, visual.class_embedding.shape[0]
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = visual.ln_pre(torch.cat([visual.class_embedding.view(1, 1, -1), patches], 1) + visual.positional_embedding)[0]
    blocks = visual.transformer.resblocks
    nearby = 0 if variant.neighbours is None else gaussian((4, 4), variant.neighbours)
    dense = None
    for i, block in enumerate(blocks):
        y = block.ln_1(x)
        q, k, v = (block.attn.in_proj_weight @ y.T + block.attn.in_proj_bias[:, None]).T.chunk(3, dim=-1)
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
        s = (width // heads) ** -0.5

        def out(mixed: Tensor, block=block) -> Tensor:
            return mixed.transpose(0, 1).flatten(1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias

        if i >= len(blocks) - variant.depth:
            if dense is None:
                dense = x if variant.residual else torch.zeros_like(x)
            mixed = torch.zeros_like(v)
            for kind in variant.attention:
                if kind == "identity":
                    mixed = mixed + v
                elif kind == "gem":
                    tau = s * variant.temperature * y.norm(dim=-1).mean()
                    for one in (q, k, v):
                        u = one / one.norm(dim=-1, keepdim=True)
                        for _ in range(variant.iterations):
                            u = (u @ u.transpose(1, 2) * tau).softmax(-1) @ u
                            u = u / u.norm(dim=-1, keepdim=True)
                        mixed = mixed + (u @ u.transpose(1, 2) * tau).softmax(-1) @ v / 3
                else:
                    left, right = {"q": q, "k": k, "v": v}[kind[0]], {"q": q, "k": k, "v": v}[kind[1]]
                    scores = left @ right.transpose(1, 2) * s * variant.temperature + nearby
                    mixed = mixed + scores.softmax(-1) @ v
            dense = dense + out(mixed / len(variant.attention) if variant.average else mixed)
            dense = dense + block.mlp(block.ln_2(dense)) if variant.ffn else dense
        x = x + out((q @ k.transpose(1, 2) * s).softmax(-1) @ v)
        x = x + block.mlp(block.ln_2(x))
    assert dense is not None
    rows = torch.cat([x[:1], dense[1:]]) if variant.class_row == "original" else dense
    return visual.ln_post(rows) @ visual.proj


variants = st.fixed_dictionaries(  # the DenseAttention is made in the test: beartype draws random numbers, which strategies may not
    {
        "attention": st.lists(st.sampled_from(["qk", "qq", "kk", "vv", "identity", "gem"]), min_size=1, max_size=3).map(
            tuple
        ),
        "residual": st.booleans(),
        "ffn": st.booleans(),
        "depth": st.integers(1, 4),
        "neighbours": st.sampled_from([None, 0.7, 5.0]),
        "class_row": st.sampled_from(["dense", "original"]),
        "average": st.booleans(),
        "temperature": st.sampled_from([0.5, 1.0, 3.0]),
        "iterations": st.integers(0, 2),
    }
)


@settings(max_examples=15, deadline=None)
@given(wanted=variants)
def test_any_variant_equals_the_longhand(clip, wanted) -> None:
    variant = DenseAttention(**wanted)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(variant.depth))
    found = dense_tokens(clip.image_tower, pixels, variant)
    with torch.no_grad():
        for i in range(2):
            torch.testing.assert_close(found[i], longhand(clip, pixels[i : i + 1], variant), atol=3e-5, rtol=1e-4)


def test_raw_tokens_of_the_class_row_are_the_embedding(clip: ca.Clip) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    for name in ("raw", "surgery"):
        tokens = dense_tokens(clip.image_tower, pixels, VARIANTS[name])
        torch.testing.assert_close(tokens[:, 0], clip.encode_image(pixels), atol=1e-5, rtol=1e-4)


def test_towers_that_average_their_patches_have_dense_maps_too() -> None:
    clip = ca.load(tiny.open_clip_model(layers=3, vision={"pool_type": "avg"}), tokenizer=tokenizer)
    pixels = torch.randn(2, 3, 32, 32)
    tokens = dense_tokens(clip.image_tower, pixels, replace(VARIANTS["raw"], class_row="original"))
    torch.testing.assert_close(tokens[:, 0], clip.encode_image(pixels), atol=1e-5, rtol=1e-4)
    for name in (name for name in READY if name != "grad_eclip"):  # which needs one row: test_gradients.py
        assert heatmap(clip, pixels, ["a", "bc"], method=name).values.isfinite().all()
    strange = replace(clip.image_tower, pool="argmax")
    with pytest.raises(UnsupportedModel, match="argmax"):
        dense_tokens(strange, pixels, VARIANTS["raw"])


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_the_decompositions_map_is_the_sum_of_the_exact_parts(pool: str) -> None:
    clip = ca.load(tiny.open_clip_model(layers=3, heads=3, vision={"pool_type": pool}), tokenizer=tokenizer)
    pixels, text = torch.randn(2, 3, 32, 40), torch.randn(4, 12)
    parts = ca.decompose(clip, pixels).tokens(text)  # [image, layer, head, token, text]
    found = token_map(clip.image_tower, pixels, F.normalize(text, dim=-1))
    torch.testing.assert_close(found, parts.sum((1, 2)), atol=1e-6, rtol=1e-4)

    def grid(x: Tensor) -> Tensor:
        return x[:, 1:].transpose(1, 2).unflatten(2, (4, 5))

    plain = heatmap(clip, pixels, text, against=None).values
    torch.testing.assert_close(plain, grid(parts.sum((1, 2))), atol=1e-6, rtol=1e-4)
    centred = heatmap(clip, pixels, text, against="each other").values
    torch.testing.assert_close(centred, plain - plain.mean(1, keepdim=True), atol=1e-6, rtol=1e-4)
    some = heatmap(clip, pixels, text, heads="0.2,2.1", against=None).values
    torch.testing.assert_close(some, grid(parts[:, 0, 2] + parts[:, 2, 1]), atol=1e-6, rtol=1e-4)
    for layers in ("1-2", (1, 2)):
        last = heatmap(clip, pixels, text, layers=layers, against=None).values
        torch.testing.assert_close(last, grid(parts[:, 1:].sum((1, 2))), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(last, heatmap(clip, pixels, text, heads="last=2", against=None).values)


def test_surgery_of_any_depth_and_against_any_text(clip: ca.Clip) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    variant = replace(VARIANTS["surgery"], depth=2)
    tokens = F.normalize(dense_tokens(clip.image_tower, pixels, variant), dim=-1)
    text, other = (F.normalize(clip.encode_text([t]), dim=-1) for t in ("a", "other"))
    found = heatmap(clip, pixels, ["a"], method="surgery", depth=2, against="other").values[:, 0].flatten(1)
    torch.testing.assert_close(found, (tokens @ (text - other).T)[:, 1:, 0], atol=1e-5, rtol=1e-4)


def test_own_variant_with_minus_mean(clip: ca.Clip) -> None:
    pixels, variant = torch.randn(2, 3, 32, 32), DenseAttention(("vv", "kk"), depth=2, residual=True)
    plain = heatmap(clip, pixels, ["a", "bc", "def"], method=variant)
    centred = heatmap(clip, pixels, ["a", "bc", "def"], method=replace(variant, minus_mean=True))
    assert plain.method == "dense attention"
    torch.testing.assert_close(centred.values, plain.values - plain.values.mean(1, keepdim=True))
    named = heatmap(clip, pixels, ["a"], method="sclip", depth=2, average=True)
    own = heatmap(clip, pixels, ["a"], method=replace(VARIANTS["sclip"], depth=2, average=True))
    assert torch.equal(named.values, own.values)


def test_an_outside_guide_mixes_the_values(clip: ca.Clip) -> None:
    pixels, affinity = torch.randn(2, 3, 32, 32), torch.rand(2, 16, 16)
    text = torch.randn(3, 12)
    tower = clip.image_tower
    block = clip.host.visual.transformer.resblocks[-1]
    for i in range(2):
        s = affinity[i] - 1.2 * affinity[i].mean()
        weights = torch.zeros(16, 16)
        for row in range(16):
            kept = s[row] >= 0
            weights[row, kept] = (3 * s[row, kept]).softmax(-1)
        torch.testing.assert_close(guide(affinity, 1.2, 3.0)[i], weights)
        _, step = dense_path(tower, pixels[i : i + 1], VARIANTS["maskclip"])
        w = block.attn.in_proj_weight[2 * 16 :], block.attn.in_proj_bias[2 * 16 :]
        with torch.no_grad():
            value = step.normed[0, 1:] @ w[0].T + w[1]
            out = (weights @ value) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
            dense = clip.host.visual.ln_post(out) @ clip.host.visual.proj
            expected = F.normalize(dense, dim=-1) @ F.normalize(text, dim=-1).T
        found = heatmap(clip, pixels, text, method="proxyclip", affinity=affinity).values[i].flatten(1).T
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    shared = heatmap(clip, pixels, text, method="proxyclip", affinity=affinity[0])
    torch.testing.assert_close(
        shared.values[0].flatten(1).T,
        heatmap(clip, pixels[:1], text, method="proxyclip", affinity=affinity[:1]).values[0].flatten(1).T,
    )
    with pytest.raises(BadSpec, match="needs affinity"):
        heatmap(clip, pixels, text, method="proxyclip")
    with pytest.raises(BadSpec, match=r"\[image, 16, 16\] was expected"):
        heatmap(clip, pixels, text, method="proxyclip", affinity=torch.ones(4, 4))
    with pytest.raises(BadSpec, match="image 1 has none"):
        heatmap(clip, pixels, text, method="proxyclip", affinity=affinity[:1])
    with pytest.raises(BadSpec, match="nan_to_num"):
        heatmap(clip, pixels, text, method="proxyclip", affinity=affinity * torch.nan)


def test_maskclips_refinements(clip: ca.Clip) -> None:
    cosine, key = torch.rand(2, 5, 3) / 5, torch.randn(2, 5, 8)
    for i in range(2):
        p = (cosine[i] * 40).softmax(-1)
        absent = p.max(0).values < 0.5
        expected = torch.where(absent[None], torch.tensor(-1.0), cosine[i])
        torch.testing.assert_close(denoised(cosine, 40.0, 0.5)[i], expected)
        out = torch.zeros(5, 3)
        for a in range(5):
            for b in range(5):
                out[a] += F.cosine_similarity(key[i, a], key[i, b], dim=0) * p[b] / 5
        torch.testing.assert_close(smoothed(cosine, key, 40.0)[i], out)
    pixels = torch.randn(2, 3, 32, 32)
    plain = heatmap(clip, pixels, ["a", "bc"], method="maskclip")
    both = heatmap(clip, pixels, ["a", "bc"], method="maskclip", denoise=0.5, smooth_keys=True)
    assert both.values.isfinite().all()
    assert not torch.allclose(plain.values, both.values)
    with pytest.raises(BadSpec, match="Type: denoise=0.5"):
        heatmap(clip, pixels, ["a"], method="maskclip", denoise=2.0)


@pytest.mark.parametrize("method", READY)
def test_no_method_changes_the_model(method: str) -> None:
    model = tiny.open_clip_model(layers=3)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    clip = ca.load(model, tokenizer=tokenizer)
    heatmap(clip, torch.randn(2, 3, 24, 40), ["a", "bc"], method=method)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ca.load(model).digest == clip.digest
    assert not any(p.grad is not None or not p.requires_grad for p in model.parameters())


def test_what_a_variant_cannot_be(clip: ca.Clip) -> None:
    for wrong, told in [
        ({"depth": 0}, "depth=0 is too small. Type: depth=1"),
        ({"temperature": 0.0}, "Type: temperature=1.0"),
        ({"neighbours": -1.0}, "Type: neighbours=5.0"),
        ({"iterations": -1}, "Type: iterations=1"),
        ({"attention": ()}, "Type: attention="),
    ]:
        with pytest.raises(BadSpec, match=told):
            DenseAttention(**wrong)
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(BadSpec, match="layers and heads are both given"):
        heatmap(clip, pixels, ["a"], layers="1", heads="1.1")
    with pytest.raises(BadSpec, match="heads alone"):
        heatmap(clip, pixels, ["a"], heads="mlp=all")
    with pytest.raises(BadSpec, match="no such|no layer|do not exist"):
        heatmap(clip, pixels, ["a"], layers="7")
    with pytest.raises(BadSpec, match=r"dataclasses.replace\(attention, depth"):
        heatmap(clip, pixels, ["a"], method=DenseAttention(), depth=2)


def test_the_empty_text_goes_through_the_templates_too(clip: ca.Clip) -> None:
    pixels, templates = torch.randn(1, 3, 32, 32), ["{} x", "yy {}"]
    found = heatmap(clip, pixels, ["a"], method="surgery", templates=templates, against="")
    empty = clip.encode_text([""], templates=templates)
    text = clip.encode_text(["a"], templates=templates)
    given_both = heatmap(clip, pixels, text, method="surgery", against=empty)
    torch.testing.assert_close(found.values, given_both.values)
    tokens = F.normalize(dense_tokens(clip.image_tower, pixels, VARIANTS["surgery"]), dim=-1)[:, 1:]
    torch.testing.assert_close(
        found.values.flatten(2)[0, 0], (tokens @ (text - empty).T)[0, :, 0], atol=1e-5, rtol=1e-4
    )
    with pytest.raises(BadSpec, match="Type: depth=6"):
        heatmap(clip, pixels, ["a"], method="surgery", depth=0)


@pytest.mark.parametrize("method", READY)
def test_half_precision_models_have_maps(method: str) -> None:
    model = tiny.open_clip_model(layers=3)
    exact = ca.load(model, tokenizer=tokenizer, parity=False)
    half = ca.load(tiny.open_clip_model(layers=3).to(torch.bfloat16), tokenizer=tokenizer, parity=False)
    pixels, text = torch.randn(2, 3, 32, 32), torch.randn(3, 12)
    ours, theirs = (heatmap(clip, pixels, text, method=method).values for clip in (half, exact))
    assert ours.dtype == torch.float32
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9
