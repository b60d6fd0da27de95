"""Gradient and attention maps against the host's own modules with their attention written out, one image and one text at a time."""

import pytest
import torch
import torch.nn.functional as F
from tiny import open_clip_model
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.maps.registry import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, HEADS, D = 3, 2, 8


@pytest.fixture(scope="module")
def host():
    return open_clip_model(layers=LAYERS, heads=HEADS, d=D)


@pytest.fixture(scope="module")
def clip(host):
    return ca.load(host, tokenizer=lambda texts: torch.ones(len(texts), 4, dtype=torch.int64), parity=False)


@pytest.fixture(scope="module")
def pixels(clip):
    side = 4 * clip.patch[0]
    return torch.randn(3, 3, side, side + clip.patch[1], generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def text(clip):
    return torch.randn(4, clip.image_tower.embed, generator=torch.Generator().manual_seed(1))


def attend(block, y):
    """(probabilities [head, query, token], values [head, token, d]) of one image, from open_clip's packed weights."""
    q, k, v = F.linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    q, k, v = (z.view(len(y), HEADS, D).transpose(0, 1) for z in (q, k, v))
    return (q @ k.transpose(1, 2) / D**0.5).softmax(-1), v


def run(host, clip, pixels: Tensor, tokens_at: int | None = None):
    """One image through the host's own modules; every attention is a leaf of the graph in between."""
    from clip_anatomy.towers.embedding import embed_image  # patches and positions: tested against the host elsewhere

    visual = host.visual
    x = embed_image(clip.image_tower, pixels[None])[0].detach()
    attention, streams, normed = [], [], None
    for at, block in enumerate(visual.transformer.resblocks):
        y = block.ln_1(x)
        if at == tokens_at:
            y = y.detach().requires_grad_()
            normed = y
        a, v = attend(block, y)
        a = a + torch.zeros_like(a, requires_grad=True)
        a.retain_grad()
        attention.append(a)
        x = x + block.attn.out_proj((a @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp(block.ln_2(x))
        streams.append(x)
    embedding = visual.ln_post(x[0]) @ visual.proj
    return F.normalize(embedding, dim=0), attention, streams, normed


def own(clip, pixels, text, method, **options):
    maps = ca.heatmap(clip, pixels, text, method, **options)
    assert maps.values.shape == (len(pixels), len(text), 4, 5)
    return maps.values.flatten(2)  # [image, text, patch]


def by_hand(host, clip, pixels, text, one):
    return torch.stack([torch.stack([one(x, F.normalize(t, dim=0)) for t in text]) for x in pixels]).detach()


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg"}])
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 9])
def test_chefer_at_every_depth_in_double_precision(layers, vision):
    """R ← R + (mean over heads of relu(∇A ⊙ A)) R from the identity on; the score is the logit, not the cosine."""
    depth = 5
    host = open_clip_model(layers=depth, heads=HEADS, d=D, vision=vision).double()
    clip = ca.load(host, tokenizer=None, parity=False, dtype="float64")
    side = 4 * clip.patch[0]
    pixels = torch.randn(2, 3, side, side + clip.patch[1], generator=torch.Generator().manual_seed(0)).double()
    text = torch.randn(3, clip.image_tower.embed, generator=torch.Generator().manual_seed(1)).double()
    scale = host.logit_scale.exp().item()
    assert scale > 10

    def one(x, t):
        _, attention, streams, _ = run(host, clip, x)
        pooled = host.visual.ln_post(streams[-1])
        pooled = pooled[1:].mean(0) if vision else pooled[0]
        logit = scale * F.normalize(pooled @ host.visual.proj, dim=0) @ t
        slopes = torch.autograd.grad(logit, attention[-layers:])
        relevance = torch.eye(len(attention[0][0]), dtype=torch.float64)
        for a, slope in zip(attention[-layers:], slopes, strict=True):
            relevance = relevance + (a * slope).clamp(min=0).mean(0) @ relevance
        return (relevance[1:].mean(0) if vision else relevance[0])[1:] - (1 / (len(relevance) - 1) if vision else 0)

    expected = by_hand(host, clip, pixels, text, one)
    found = own(clip, pixels, text, "chefer", layers=layers)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)
    single = ca.load(host.float(), tokenizer=None, parity=False)
    found = own(single, pixels.float(), text.float(), "chefer", layers=layers)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_legrad(host, clip, pixels, text, layers):
    def one(x, t):
        _, attention, streams, _ = run(host, clip, x)
        total = 0
        for a, stream in list(zip(attention, streams, strict=True))[-layers:]:
            pooled = F.normalize(host.visual.ln_post(stream.mean(0)) @ host.visual.proj, dim=0)
            (slope,) = torch.autograd.grad(pooled @ t, a, retain_graph=True)
            total = total + slope.clamp(min=0).mean((0, 1))[1:]
        return total

    expected = by_hand(host, clip, pixels, text, one)
    torch.testing.assert_close(own(clip, pixels, text, "legrad", layers=layers), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_gradcam(host, clip, pixels, text, layer):
    def one(x, t):
        embedding, _, _, tokens = run(host, clip, x, layer % LAYERS)
        (slope,) = torch.autograd.grad(embedding @ t, tokens)
        return (tokens[1:] @ slope[1:].mean(0)).clamp(min=0)

    expected = by_hand(host, clip, pixels, text, one)
    assert expected.max() > 0
    torch.testing.assert_close(own(clip, pixels, text, "gradcam", layer=layer), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("heads", [None, 1])
@pytest.mark.parametrize("key_similarity", [True, False])
def test_grad_eclip_in_double_precision(heads, key_similarity):
    """g = ∂cos/∂(Σ a v) of the class row by autograd, E = ReLU(Σ_d g_d v_d λ), λ the stretched cosine of W_O q and W_O k."""
    host = open_clip_model(layers=LAYERS, heads=HEADS, d=D).double()
    clip = ca.load(host, tokenizer=None, parity=False, dtype="float64")
    side = 4 * clip.patch[0]
    pixels = torch.randn(2, 3, side, side + clip.patch[1], generator=torch.Generator().manual_seed(0)).double()
    text = torch.randn(3, clip.image_tower.embed, generator=torch.Generator().manual_seed(1)).double()
    block, width, many = host.visual.transformer.resblocks[-1], HEADS * D, heads or HEADS

    def one(x, t):
        before = run(host, clip, x)[2][-2].detach()
        q, k, v = F.linear(block.ln_1(before), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        parts = [z.view(len(before), many, width // many).transpose(0, 1) for z in (q, k, v)]
        a = (parts[0][:, :1] @ parts[1].transpose(1, 2) / (width // many) ** 0.5).softmax(-1)
        gathered = (a @ parts[2]).transpose(0, 1).reshape(width).detach().requires_grad_()
        row = before[0] + block.attn.out_proj(gathered)
        row = row + block.mlp(block.ln_2(row))
        cosine = F.normalize(host.visual.ln_post(row) @ host.visual.proj, dim=0) @ t
        (slope,) = torch.autograd.grad(cosine, gathered)
        near = F.cosine_similarity(block.attn.out_proj(q[:1]), block.attn.out_proj(k[1:]), dim=1)
        near = (near - near.min()) / (near.max() - near.min()) if key_similarity else torch.ones_like(near)
        return ((v[1:] * slope).sum(1) * near).clamp(min=0)

    expected = by_hand(host, clip, pixels, text, one)
    assert expected.max() > 0
    found = own(clip, pixels, text, "grad_eclip", heads=heads, key_similarity=key_similarity)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-8)


def test_rollout_and_attention(host, clip, pixels, text):
    for x, rolled, looked in zip(
        pixels, own(clip, pixels, text, "rollout"), own(clip, pixels, text, "attention", layer=1), strict=True
    ):
        attention = [a.mean(0).detach() for a in run(host, clip, x)[1]]
        expected = torch.eye(len(attention[0]))
        for a in attention:
            expected = (a + torch.eye(len(a))) / 2 @ expected
        torch.testing.assert_close(rolled, expected[0, 1:].expand(len(text), -1), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(looked, attention[1][0, 1:].expand(len(text), -1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["gradcam", "legrad", "chefer", "grad_eclip"])
def test_many_texts_are_taken_in_turns(clip, pixels, text, method, monkeypatch):
    whole = own(clip, pixels, text, method)
    monkeypatch.setattr("clip_anatomy.maps.gradients.MOST_BYTES", 1)
    torch.testing.assert_close(own(clip, pixels, text, method), whole, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(own(clip, pixels[1:2], text[2:3], method)[0, 0], whole[1, 2], rtol=1e-4, atol=1e-7)


MEANS = ({"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True})


@pytest.mark.parametrize("method", ["gradcam", "legrad", "chefer", "grad_eclip", "attention", "rollout"])
@pytest.mark.parametrize("vision", [*MEANS, {"ls_init_value": 0.3}])
def test_other_towers(method, vision):
    other = ca.load(
        open_clip_model(layers=2, vision=vision), tokenizer=lambda texts: torch.ones(len(texts), 4, dtype=torch.int64)
    )
    side = other.preprocess.size[0]
    pixels, text = torch.randn(2, 3, side, side), torch.randn(3, other.image_tower.embed)
    if method == "grad_eclip" and vision in MEANS:
        with pytest.raises(UnsupportedModel, match="reads the class token's row.*method='legrad'"):
            ca.heatmap(other, pixels, text, method)
        return
    found = ca.heatmap(other, pixels, text, method).values
    assert found.isfinite().all()
    assert found.std() > 0


def test_half_precision(pixels, text):
    half = ca.load(open_clip_model(layers=2, heads=HEADS, d=D), tokenizer=None, parity=False, dtype="bfloat16")
    for method in ("gradcam", "legrad", "chefer", "grad_eclip", "rollout"):
        assert ca.heatmap(half, pixels, text, method).values.isfinite().all()


@pytest.mark.parametrize("method", ["gradcam", "legrad", "chefer", "grad_eclip"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_do_not_underflow_in_half_precision(method, dtype, pixels, text):
    """Attention that writes little has gradients below what float16 holds (6e-8); the map is that of the same weights in float32."""
    host = open_clip_model(layers=2, heads=HEADS, d=D)
    with torch.no_grad():
        for block in host.visual.transformer.resblocks:
            block.attn.out_proj.weight *= 1e-3
            block.attn.in_proj_weight[2 * HEADS * D :] *= 1e-2
        for weight in host.parameters():
            weight.copy_(weight.to(getattr(torch, dtype)))
    full = ca.heatmap(ca.load(host, tokenizer=None, parity=False), pixels, text, method).values
    half = ca.heatmap(ca.load(host, tokenizer=None, parity=False, dtype=dtype), pixels, text, method).values
    assert 0 < full.abs().max() < 1e-3 or method == "gradcam"
    assert F.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.98
    assert float((half > 0).float().mean()) == pytest.approx(float((full > 0).float().mean()), abs=0.1)


def test_what_cannot_be_asked(clip, pixels, text):
    for method, options, message in (
        ("gradcam", {"layer": 3}, "layers 0 to 2"),
        ("attention", {"layer": -4}, "layers 0 to 2"),
        ("rollout", {"start": 9}, "layers 0 to 2"),
        ("chefer", {"layers": 0}, "1 or more"),
        ("legrad", {"depth": 2}, "has no option 'depth'"),
    ):
        with pytest.raises(BadSpec, match=message):
            ca.heatmap(clip, pixels, text, method, **options)


def test_the_model_is_left_as_it_was(host, clip, pixels, text):
    before = {name: value.clone() for name, value in host.state_dict().items()}
    for method in ("gradcam", "legrad", "chefer", "grad_eclip", "rollout", "attention"):
        assert method in METHODS
        ca.heatmap(clip, pixels, text, method)
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert all(p.grad is None for p in host.parameters())
