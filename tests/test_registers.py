"""Test-time registers: planted neurons are found, moved as a longhand forward moves them, and every verb sees the same model."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadInput, BadSpec, UnsupportedModel
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.registry import METHODS
from clip_anatomy.towers.embedding import embed_image  # patches and positions: tested against the host elsewhere
from clip_anatomy.towers.registers import register_neurons

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS, D, LAYERS = 2, 8, 4
PLANTED = [(1, 5), (1, 9)]


def attended(block, x: Tensor) -> Tensor:
    q, k, v = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    q, k, v = (z.view(len(x), HEADS, D).transpose(0, 1) for z in (q, k, v))
    mixed = (q @ k.transpose(1, 2) / D**0.5).softmax(-1) @ v
    return block.attn.out_proj(mixed.transpose(0, 1).flatten(1))


@pytest.fixture(scope="module")
def host():
    """A model with two neurons in block 1 that shout at one patch of the first bundled picture, and write long tokens."""
    model = tiny.open_clip_model(layers=LAYERS, heads=HEADS, d=D).double()
    clip = ca.load(model, tokenizer=None, parity=False, dtype="float64")
    blocks = model.visual.transformer.resblocks
    with torch.no_grad():
        x = embed_image(clip.image_tower, clip.pixels(examples()[:1]))[0]
        for block in blocks[:1]:
            x = x + attended(block, x)
            x = x + block.mlp(block.ln_2(x))
        y = blocks[1].ln_2(x + attended(blocks[1], x))[1:]
        for (_, neuron), loud in zip(PLANTED, (60.0, 30.0), strict=True):
            way = y[6] - y.mean(0)
            others = torch.cat([y[:6], y[7:]]) @ way
            gap = y[6] @ way - others.max()
            assert gap > 0
            blocks[1].mlp.c_fc.weight[neuron] = loud / gap * way
            blocks[1].mlp.c_fc.bias[neuron] = -loud / gap * others.max()
            blocks[1].mlp.c_proj.weight[:, neuron] = torch.randn(HEADS * D).double() * 4
    return model


@pytest.fixture(scope="module")
def clip(host):
    return ca.load(host, tokenizer=lambda t: torch.ones(len(t), 4, dtype=torch.int64), parity=False, dtype="float64")


def longhand(host, clip, picture: Tensor, tokens: int, *, shared: bool) -> tuple[Tensor, Tensor]:
    """The embedding and the last patches of one picture, with the activations moved by hand."""
    visual = host.visual
    x = embed_image(clip.image_tower, picture[None])[0]
    x = torch.cat([x[:1], torch.zeros(tokens, x.shape[1]).double(), x[1:]])
    for at, block in enumerate(visual.transformer.resblocks):
        x = x + attended(block, x)
        act = F.gelu(F.linear(block.ln_2(x), block.mlp.c_fc.weight, block.mlp.c_fc.bias))
        moved = [neuron for layer, neuron in PLANTED if layer == at]
        greatest = {n: max(act[:, n].tolist(), key=abs) for n in moved}
        for n in moved:
            act[1 + tokens :, n] = 0
            act[1 : 1 + tokens, n] = max(greatest.values(), key=abs) if shared else greatest[n]
        x = x + F.linear(act, block.mlp.c_proj.weight, block.mlp.c_proj.bias)
    return visual.ln_post(x[0]) @ visual.proj, x[1 + tokens :]


def test_the_planted_neurons_are_found(clip) -> None:
    batches = clip.pixels(examples()).split(2)
    found = register_neurons(clip.image_tower, batches, 2)
    assert [(one.layer, one.neuron) for one in found] == PLANTED
    assert found[0].score > found[1].score > 10
    assert {one.layer for one in register_neurons(clip.image_tower, batches, 10)} <= {
        0,
        1,
    }  # after block 1 they are there
    assert register_neurons(clip.image_tower, batches, 2, longer=1e6) == ()


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_activations_are_moved_as_by_hand(host, clip, tokens, shared) -> None:
    pixels = torch.cat([clip.pixels(examples()[:2]), torch.randn(1, 3, 32, 32).double()])
    better = ca.registered(clip, tokens, count=2, shared=shared)
    assert better.name == f"CLIP with {tokens} register{'s' * (tokens > 1)} (neurons 1.5, 1.9)"
    assert better.digest != clip.digest
    expected = [longhand(host, clip, picture, tokens, shared=shared) for picture in pixels]
    torch.testing.assert_close(better.encode_image(pixels), torch.stack([e for e, _ in expected]).float())
    text = torch.randn(3, 12).double()
    raw = ca.heatmap(better, pixels, text, "raw").values.flatten(2)
    for maps, (_, patches) in zip(raw, expected, strict=True):
        cosine = F.normalize(host.visual.ln_post(patches) @ host.visual.proj, dim=-1) @ F.normalize(text, dim=-1).T
        torch.testing.assert_close(maps.T, cosine.float(), atol=1e-6, rtol=1e-5)
    if not shared:
        lengths = expected[0][1].norm(dim=-1)
        assert lengths.max() < 2 * lengths.median()  # the outlier is gone
        assert ca.sinks(clip, examples()[:1]).length.max() > 4
        assert ca.sinks(better, examples()[:1]).length.max() < 2


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.needs])
def test_every_map_has_the_option(clip, method) -> None:
    pixels, text = clip.pixels(examples()[:2]), torch.randn(3, 12).double()
    found = ca.heatmap(clip, pixels, text, method, registers=1)
    assert found.values.shape == (2, 3, 4, 4)
    assert found.run is not None
    assert "with 1 register (neurons 1.5" in found.run.model["name"]
    again = ca.heatmap(ca.registered(clip), pixels, text, method).values
    torch.testing.assert_close(found.values, again)
    assert not torch.equal(again, ca.heatmap(clip, pixels, text, method).values)
    for at, picture in enumerate(pixels):
        alone = ca.heatmap(clip, picture[None], text, method, registers=1).values[0]
        torch.testing.assert_close(alone, found.values[at], atol=1e-6, rtol=1e-5)


def test_the_split_and_the_edited_encoder_of_such_a_model_are_exact(clip) -> None:
    better = ca.registered(clip, 1, count=2)
    pixels = clip.pixels(examples()[:2])
    parts = ca.decompose(better, pixels)
    torch.testing.assert_close(parts.embedding, better.encode_image(pixels), atol=1e-5, rtol=1e-4)
    total = parts.heads.sum((1, 2)) + parts.mlps.sum(1) + parts.input_embedding + parts.bias
    torch.testing.assert_close(total, parts.embedding, atol=1e-4, rtol=1e-4)
    edit = ca.Edit.of(better, "3.0", by="zero")
    edited = ca.EditedClip(better, edit)
    expected = edit.apply(parts)
    torch.testing.assert_close(edited.encode_image(pixels).float(), expected, atol=1e-4, rtol=1e-3)
    masks = ca.segment(clip, examples()[:1], torch.randn(1, 12).double(), registers=1, threshold="mean")
    assert masks.labels[0].shape == (64, 64)


def test_what_cannot_have_registers_says_why(clip) -> None:
    plain = ca.load(tiny.open_clip_model(layers=2), tokenizer=None, parity=False)
    with pytest.raises(UnsupportedModel, match="Type: registers=0, or registered"):
        ca.heatmap(plain, torch.randn(1, 3, 32, 32), torch.randn(1, 12), registers=1)
    for wrong, told in (
        ({"tokens": 0}, "registers=0: a whole number from 1 to 1,024"),
        ({"neurons": [(9, 1)]}, "neuron 9.1 is not there: 4 blocks of 64"),
    ):
        with pytest.raises((BadInput, BadSpec), match=told):
            ca.registered(clip, **{"tokens": 1, **wrong})


def test_the_model_itself_is_untouched(host) -> None:
    before = {name: p.clone() for name, p in host.state_dict().items()}
    clip = ca.load(host, tokenizer=None, parity=False, dtype="float64")
    ca.heatmap(clip, clip.pixels(examples()[:1]), torch.randn(1, 12).double(), registers=1)
    assert all(torch.equal(before[name], p) for name, p in host.state_dict().items())
    assert "register" not in clip.name


def test_neurons_are_looked_for_again_once_the_model_was_changed(host) -> None:
    """Training in place moves them; a switch of two rows of weights is the smallest such change."""
    model = copy.deepcopy(host)
    clip = ca.load(model, tokenizer=None, parity=False, dtype="float64")
    assert ca.registered(clip, count=2).name.endswith("(neurons 1.5, 1.9)")
    mlp = model.visual.transformer.resblocks[1].mlp
    with torch.no_grad():
        for weight in (mlp.c_fc.weight, mlp.c_fc.bias):
            weight[[9, 20]] = weight[[20, 9]]
        mlp.c_proj.weight[:, [9, 20]] = mlp.c_proj.weight[:, [20, 9]]
    assert ca.registered(clip, count=2).name.endswith("(neurons 1.5, 1.20)")
