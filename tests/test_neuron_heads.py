"""Neurons × heads of CLIP-ResNets: the released code's numbers, rank one, what is left of embeddings, maps of chosen pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_resnet
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.maps.neuron_head_maps import nearest_pairs, pair_maps
from clip_anatomy.naming.concepts import sparse_weights
from clip_anatomy.towers.resnet import as_resnet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    folder = Path(__file__).parents[2] / "shared" / "oracles" / "resnet_nap"
    if not folder.is_dir():
        pytest.skip("../shared/oracles/resnet_nap is not there")
    given, official = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    return {name: torch.from_numpy(file[name]) for file in (given, official) for name in file.files}


@pytest.fixture(scope="module")
def clip(oracle: dict[str, Tensor]) -> ca.Clip:
    import open_clip

    folder = Path(__file__).parents[2] / "shared" / "oracles" / "resnet_nap"
    model = open_clip.CLIP(**json.loads((folder / "oracle-rn.json").read_text())).eval()
    weights = load_file(folder / "weights.safetensors")
    missing = model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    assert not [name for name in missing.missing_keys if name.startswith("visual")]
    return ca.load(model)


@pytest.fixture(scope="module")
def found(clip: ca.Clip, oracle: dict[str, Tensor]) -> ca.NeuronHeads:
    return ca.neuron_heads(clip, oracle["images"].float())


def close(found: Tensor, expected: Tensor, relative: float = 2e-5) -> None:
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


def biases(found: ca.NeuronHeads) -> Tensor:
    """The even share of b_c and b_V that the released code adds to every pair: [head, 1, embed]."""
    pool, heads = found.tower.pool, found.tower.heads
    assert pool.value.bias is not None
    assert pool.out.bias is not None
    own = pool.out.weight.unflatten(1, (heads, -1)).permute(1, 0, 2) @ pool.value.bias.view(heads, -1, 1)
    neurons = found.scalars.shape[2]
    return (own[:, None, :, 0] / neurons + pool.out.bias / (heads * neurons)).detach()


def every_direction(found: ca.NeuronHeads) -> Tensor:
    heads, neurons = found.scalars.shape[1:]
    return found.directions([(h, n) for h in range(heads) for n in range(neurons)]).unflatten(0, (heads, neurons))


def test_contributions_are_the_released_codes(found: ca.NeuronHeads, oracle: dict[str, Tensor]) -> None:
    d, even = every_direction(found), biases(found)
    close(found.scalars[:4, ..., None] * d + even, oracle["neurons_heads_first4"])
    close(found.scalars.mean(0)[..., None] * d + even, oracle["mean"])
    close(found.effects(3, 17), found.scalars[:, 3, 17, None] * d[3, 17])


def test_principal_directions_are_the_weights(found: ca.NeuronHeads, oracle: dict[str, Tensor]) -> None:
    """The released code finds them by singular vectors of what it stored: 1 − |cos| is rounding, norms are |s − mean| ‖D‖."""
    d = every_direction(found)
    loud = d.norm(dim=-1) > 1e-3 * d.norm(dim=-1).max()
    cosine = (F.normalize(d, dim=-1) * F.normalize(oracle["pc0"], dim=-1)).sum(-1).abs()
    assert float((1 - cosine)[loud].max()) < 1e-5
    norms = (found.scalars - found.scalars.mean(0)).abs() * d.norm(dim=-1)
    close(norms.topk(20, dim=0).values.flip(0).permute(1, 2, 0), oracle["pc0_norms_top20"], 5e-5)


def test_the_strongest_pairs_and_what_they_leave_of_embeddings(
    found: ca.NeuronHeads, oracle: dict[str, Tensor]
) -> None:
    strength = found.strength(10)
    threshold = np.percentile(strength.numpy(), 90)
    assert torch.equal(strength >= threshold, oracle["strongest_mask"])
    top = found.strongest(5, 10)
    assert [float(strength[pair]) for pair in top] == strength.flatten().topk(5).values.tolist()
    torch.testing.assert_close(found.kept(1), found.embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.kept(1)[:8], oracle["reconstruction_first8"], atol=1e-4, rtol=1e-4)
    mean = found.embedding.mean(0)
    torch.testing.assert_close(found.kept(0), mean.expand_as(found.embedding))
    some = found.kept(0.1, 10)
    mask = torch.zeros_like(strength).flatten()
    mask[strength.flatten().topk(round(0.1 * strength.numel())).indices] = 1
    moved = (found.scalars - found.scalars.mean(0)) * mask.view_as(strength)
    torch.testing.assert_close(
        some, mean + torch.einsum("ihn,hne->ie", moved, every_direction(found)), atol=1e-4, rtol=1e-4
    )


def test_pairs_and_the_constant_sum_to_the_embedding_and_to_the_cosine(
    found: ca.NeuronHeads, oracle: dict[str, Tensor]
) -> None:
    whole = torch.einsum("ihn,hne->ie", found.scalars, every_direction(found)) + found.constant
    torch.testing.assert_close(whole, found.embedding, atol=1e-4, rtol=1e-4)
    text = F.normalize(oracle["classes"], dim=-1)
    shares = torch.einsum("ihn,hnt->it", found.scalars, found.toward(3 * text)) + found.constant @ text.T
    length = found.embedding.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(shares / length, F.normalize(found.embedding, dim=-1) @ text.T, atol=1e-5, rtol=1e-4)


def test_names_begin_as_the_released_codes_do(found: ca.NeuronHeads, oracle: dict[str, Tensor]) -> None:
    """The first text of a pursuit, where the released one (which allows negative weights) is positive."""
    pool = oracle["pool"].double()
    dictionary = F.normalize(pool - pool.mean(0), dim=-1)
    pairs = [(h, n) for h in range(4) for n in range(0, 256, 16)]
    directions = F.normalize(found.directions(pairs).double(), dim=-1)
    flipped = torch.stack([(directions[at] * oracle["pc0"][pair]).sum().sign() for at, pair in enumerate(pairs)])
    ours = sparse_weights(directions * flipped[:, None], dictionary, count=1).argmax(1)
    correlation = directions * flipped[:, None] @ dictionary.T
    positive = correlation.max(1).values > correlation.min(1).values.abs()
    # sklearn's picks are sorted by index: the first text must be among the eight
    official = [set(oracle["picks_unit_rows"][pair].tolist()) for pair in pairs]
    assert int(positive.sum()) > 20
    assert all(int(ours[at]) in official[at] for at in positive.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("name", ["unit_rows", "official"])
def test_texts_of_a_pursuit_with_either_sign_are_the_released_codes(
    found: ca.NeuronHeads, oracle: dict[str, Tensor], name: str
) -> None:
    """Eight texts each, of a vocabulary normalised text by text, and over its texts as released."""
    pool = oracle["pool"].double()
    dictionary = F.normalize(pool - pool.mean(0), dim=-1 if name == "unit_rows" else 0)
    pairs = [(h, n) for h in range(4) for n in range(0, 256, 16)]
    directions = F.normalize(found.directions(pairs).double(), dim=-1)
    weights = sparse_weights(directions, dictionary, count=8, signed=True)
    picked = [set(row.nonzero()[:, 0].tolist()) for row in weights]
    equal = [one == set(oracle[f"picks_{name}"][pair].tolist()) for one, pair in zip(picked, pairs, strict=True)]
    assert sum(equal) == len(pairs)


def test_maps_of_chosen_pairs_are_the_released_codes(clip: ca.Clip, oracle: dict[str, Tensor]) -> None:
    """Pairs as they were chosen there; the last place apart, where the released code writes the mean of three around it."""
    tower = as_resnet(clip.vision)
    text = F.normalize(oracle["classes"] - oracle["classes"].mean(0), dim=-1)
    chosen = torch.zeros(6, tower.heads, tower.channels, dtype=torch.bool)
    for at in range(6):
        chosen[at, oracle["seg_heads"][at], oracle["seg_neurons"][at]] = True
    with torch.no_grad():
        maps = pair_maps(tower, oracle["images"][:8].float(), text, chosen)
    close(maps.transpose(1, 2)[..., :-1], oracle["segmentation_first8"].flatten(2)[..., :-1])
    nearest = nearest_pairs(tower, text, 40 / (tower.heads * tower.channels))
    assert nearest.flatten(1).sum(1).tolist() == [40] * 6
    # where the released sign is that of the weights, a chosen pair's cosine is the released score
    found = ca.neuron_heads(clip, oracle["images"][:1].float())
    cosine = F.normalize(every_direction(found), dim=-1) @ text.T
    scores = torch.stack([cosine[oracle["seg_heads"][at], oracle["seg_neurons"][at], at] for at in range(6)])
    torch.testing.assert_close(scores.abs(), oracle["seg_scores"], atol=1e-4, rtol=1e-4)


def test_the_method_draws_segments_and_handles_sinks() -> None:
    clip = ca.load(tiny_resnet.resnet_model())
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    text = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    maps = ca.heatmap(clip, pixels, text, method="neuron_heads", share=0.25, against="each other")
    assert maps.values.shape == (2, 3, 3, 3)
    tower, unit = as_resnet(clip.vision), F.normalize(text, dim=-1)
    direction = F.normalize(unit - unit.mean(0), dim=-1)
    d = every_direction(ca.neuron_heads(clip, pixels))
    host = pair_maps(tower, pixels, direction, nearest_pairs(tower, direction, 0.25))
    cosine = F.normalize(d, dim=-1) @ direction.T
    for at in range(3):
        order = cosine[..., at].flatten().topk(round(0.25 * d[..., 0].numel())).indices
        assert set(nearest_pairs(tower, direction, 0.25)[at].flatten().nonzero()[:, 0].tolist()) == set(order.tolist())
    torch.testing.assert_close(maps.values, host.transpose(1, 2).unflatten(2, (3, 3)))
    assert ca.heatmap(clip, pixels, text, method="neuron_heads", replace_sinks=True).values.isfinite().all()
    with pytest.raises(BadSpec, match="share=0.1"):
        ca.heatmap(clip, pixels, text, method="neuron_heads", share=0.0)
    with pytest.raises(UnsupportedModel, match="transformer"):
        ca.heatmap(ca.load("demo"), torch.randn(1, 3, 64, 64), ["a bird"], method="neuron_heads")


def test_batches_and_odd_input(clip: ca.Clip, found: ca.NeuronHeads, oracle: dict[str, Tensor]) -> None:
    again = ca.neuron_heads(clip, oracle["images"][:7].float(), batch=3)
    torch.testing.assert_close(again.scalars, found.scalars[:7], atol=1e-5, rtol=1e-4)
    assert again.scalars.untyped_storage().nbytes() == again.scalars.numel() * 4
    for pair in ((4, 0), (0, 256), (-1, 0)):
        with pytest.raises(BadSpec, match=r"\(3, 255\)"):
            found.directions([pair])
    with pytest.raises(BadSpec, match=r"kept\(0.1\)"):
        found.kept(1.5)
    with pytest.raises(BadSpec, match="images=50"):
        found.strength(0)
    with pytest.raises(BadSpec, match="batch=16"):
        ca.neuron_heads(clip, oracle["images"].float(), batch=0)
    assert found.directions([]).shape == (0, 48)


@pytest.mark.parametrize(
    ("heads", "channels", "embed"), [(32, 2048, 1024), (40, 2560, 640), (48, 3072, 768), (64, 4096, 1024)]
)
def test_shapes_of_published_pools(heads: int, channels: int, embed: int) -> None:
    """RN50 to RN50x64: their pools as they are, behind a stage of random maps."""
    from dataclasses import replace

    from clip_anatomy.split.neuron_heads import direction_lengths
    from clip_anatomy.towers.layers import Linear
    from clip_anatomy.towers.resnet import run_pool

    small = as_resnet(ca.load(tiny_resnet.resnet_model()).vision)
    generator = torch.Generator().manual_seed(0)

    def layer(out: int, wide: int) -> Linear:
        return Linear(torch.randn(out, wide, generator=generator) / wide**0.5, torch.randn(out, generator=generator))

    query, key, value = (layer(channels, channels) for _ in range(3))
    pool = replace(small.pool, query=query, key=key, value=value, out=layer(embed, channels), heads=heads, grid=(7, 7))
    tower = replace(small, pool=pool)
    pooled = run_pool(tower, torch.randn(1, 50, channels, generator=generator))
    found = ca.NeuronHeads(pooled.attention @ pooled.tokens, pooled.embedding, tower)
    assert found.scalars.shape == (1, heads, channels)
    unit = F.normalize(torch.randn(1, embed, generator=generator), dim=-1)
    shares = (found.scalars[..., None] * found.toward(unit)).sum((1, 2)) + found.constant @ unit.T
    torch.testing.assert_close(shares, pooled.embedding @ unit.T, atol=1e-4, rtol=1e-4)
    pair = (heads - 1, channels - 1)
    assert float(direction_lengths(tower)[pair]) == pytest.approx(float(found.directions([pair]).norm()), rel=1e-4)
