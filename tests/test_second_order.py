"""Paths neuron → head → embedding: the released code's numbers, autograd on the frozen graph, principal directions."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=4, heads=3))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [6, 5])
def test_official_sharing_equals_the_released_code(shared: Path, layer: int) -> None:
    import open_clip

    folder = shared / "oracles" / "vit-a"
    if not folder.is_dir():
        pytest.skip("../shared/oracles/vit-a is not there")
    model = open_clip.CLIP(**json.loads((folder / "oracle-vit.json").read_text())).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "weights.safetensors").items()})
    images = torch.from_numpy(np.load(folder / "inputs.npz")["images"][:4]).float()
    expected = torch.from_numpy(np.load(folder / "second_order.npz")[f"mlp_{layer}"]).float()
    paths = ca.second_order(ca.load(model), images, layer, convention="official")
    for neuron in (0, 100, 767):
        torch.testing.assert_close(100 * paths.effects(neuron), expected[:, neuron], atol=1e-6, rtol=1e-4)


def frozen(clip: ca.Clip, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """The embedding over its length, with a graph from one MLP's activations through values of later heads only; and the activations."""
    tower = clip.image_tower
    from clip_anatomy.towers.embedding import embed_inputs

    heads, d = tower.heads, tower.d
    x, source = embed_inputs(tower, pixels), torch.zeros(())
    activations = torch.zeros(())
    row = x[:, 0].detach()
    for at, block in enumerate(tower.blocks):
        weight, bias = block.ln1.weight, block.ln1.bias
        deviation = (x.var(-1, unbiased=False, keepdim=True) + block.ln1.eps).sqrt()
        stream = x + (source - source.detach() if at > layer else 0)  # its value is x's
        normed = (stream - stream.mean(-1, keepdim=True)) / deviation * weight + bias
        q, k = (
            F.linear(normed.detach(), p.weight, p.bias).unflatten(-1, (heads, d)).transpose(1, 2)
            for p in (block.query, block.key)
        )
        v = F.linear(normed, block.value.weight, block.value.bias).unflatten(-1, (heads, d)).transpose(1, 2)
        z = ((q @ k.transpose(-1, -2)) * d**-0.5).softmax(-1) @ v
        wrote = F.linear(z.transpose(1, 2).flatten(2), block.out.weight, block.out.bias)
        row = row + wrote[:, 0]
        middle = x + wrote.detach()
        loud = F.gelu(
            F.linear(
                F.layer_norm(middle, middle.shape[-1:], block.ln2.weight, block.ln2.bias, block.ln2.eps),
                block.up.weight,
                block.up.bias,
            )
        )
        if at == layer:
            activations = loud.detach().requires_grad_()
            source = F.linear(activations, block.down.weight, block.down.bias)
        added = F.linear(loud, block.down.weight, block.down.bias).detach()
        row, x = row + added[:, 0], middle + added
    deviation = (row.detach().var(-1, unbiased=False, keepdim=True) + tower.ln_post.eps).sqrt()
    embedding = (
        (row - row.mean(-1, keepdim=True)) / deviation * tower.ln_post.weight + tower.ln_post.bias
    ) @ tower.projection
    return embedding / embedding.detach().norm(dim=-1, keepdim=True), activations


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_effects_are_the_gradient_times_the_activations(clip: ca.Clip, pixels: Tensor, layer: int) -> None:
    unit, activations = frozen(clip, pixels, layer)
    torch.testing.assert_close(unit.detach(), F.normalize(clip.encode_image(pixels), dim=-1), atol=1e-5, rtol=1e-4)
    paths = ca.second_order(clip, pixels, layer)
    text = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    expected = torch.stack(
        [
            (torch.autograd.grad((unit @ one).sum(), activations, retain_graph=True)[0] * activations).sum(1)
            for one in F.normalize(text, dim=-1)
        ],
        -1,
    )
    torch.testing.assert_close(paths.toward(text).sum(1), expected.detach(), atol=1e-6, rtol=1e-4)
    for neuron in (0, 50):
        torch.testing.assert_close(
            paths.effects(neuron) @ F.normalize(text, dim=-1).T, expected[:, neuron].detach(), atol=1e-6, rtol=1e-4
        )


def test_the_principal_direction_is_that_of_the_effects(clip: ca.Clip, pixels: Tensor) -> None:
    paths = ca.second_order(clip, pixels, 1)
    for neuron in (3, 40):
        effects = paths.effects(neuron).double()
        _, sizes, across = torch.linalg.svd(effects - effects.mean(0), full_matrices=False)
        direction, share = paths.principal(neuron)
        assert float((direction @ across[0]).abs()) == pytest.approx(1, abs=1e-5)
        assert share == pytest.approx(float(sizes[0] ** 2 / sizes.square().sum()), abs=1e-5)


def test_what_does_not_exist_is_refused(clip: ca.Clip, pixels: Tensor) -> None:
    for layer in (-1, 3):
        with pytest.raises(BadSpec, match="layer=2"):
            ca.second_order(clip, pixels, layer)
    paths = ca.second_order(clip, pixels[:1], 0)
    with pytest.raises(BadSpec, match="does not exist"):
        paths.effects(96)
    with pytest.raises(BadSpec, match="several_images"):
        paths.principal(0)
