"""Rankings of what parts do through later heads: against sums built in full, in words, on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_resnet
import torch
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.naming.pool import Pool
from clip_anatomy.split.second_order import principal_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip():
    return ca.load(
        tiny.open_clip_model(layers=3, heads=2), tokenizer=lambda t: torch.tensor([[98, 5 + len(x), 7, 99] for x in t])
    )


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", ["neurons", "heads"])
def test_strengths_are_those_of_effects_built_in_full(clip: Any, pixels: Tensor, source: Any):
    followed = ca.second_order(clip, pixels, 0, source=source)
    effects = torch.stack([followed.effects(at) for at in range(len(followed))], 1)
    spread = (effects - effects.mean(0)).square().sum(-1).mean(0).sqrt()
    torch.testing.assert_close(followed.strengths(), spread, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(followed.total().sum(0), effects.sum(1), atol=1e-6, rtol=1e-4)
    for number in (0, len(followed) - 1):
        direction, share = followed.principal(number)
        other, other_share = principal_of(effects[:, number])
        assert float(direction @ other) == pytest.approx(1, abs=1e-4)
        assert share == pytest.approx(other_share, abs=1e-5)
    assert (len(followed), followed.scalars.shape[2]) == ((64, 64) if source == "neurons" else (2, 16))


def test_heads_do_what_the_host_makes_of_them_through_frozen_values(clip: Any, pixels: Tensor):
    """All heads of layer 1 through layer 2: what changes in the class row when their writes are taken from the values alone."""
    tower: Any = clip.image_tower
    from clip_anatomy.towers.embedding import embed_inputs
    from clip_anatomy.towers.forward import walk
    from clip_anatomy.towers.readout import readout_of

    with torch.no_grad():
        x = embed_inputs(tower, pixels)
        readout = readout_of(tower, pixels, x.shape[1])
        steps: list[Any] = list(walk(tower, x, readout, fold_last=False))
        one, two = steps[1:]
        block: Any = tower.blocks[2]
        attention = ((two.query @ two.key.transpose(-1, -2)) * tower.d**-0.5).softmax(-1)
        z = (
            (((one.query @ one.key.transpose(-1, -2)) * tower.d**-0.5).softmax(-1) @ one.value)
            .transpose(1, 2)
            .flatten(2)
        )
        write = z @ tower.blocks[1].out.weight.T  # without the bias, which belongs to no head
        sigma = (two.before.var(-1, unbiased=False, keepdim=True) + block.ln1.eps).sqrt()
        value = (
            (((write - write.mean(-1, keepdim=True)) / sigma * block.ln1.weight) @ block.value.weight.T)
            .unflatten(-1, (2, 8))
            .transpose(1, 2)
        )
        row = (attention @ value)[:, :, 0].flatten(1) @ block.out.weight.T
        last = (two.readout.var(-1, unbiased=False, keepdim=True) + tower.ln_post.eps).sqrt()
        expected = ((row - row.mean(-1, keepdim=True)) / last * tower.ln_post.weight) @ tower.projection
        expected = expected / clip.encode_image(pixels).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        ca.second_order(clip, pixels, 1, source="heads").total().sum(0), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("part", ["neurons", "heads", "mlps"])
def test_the_strongest_come_first_with_their_words(clip: Any, pixels: Tensor, part: str):
    pool = Pool(tuple(f"word{'s' * at}" for at in range(9)), tuple([""] * 9), "test")
    found = ca.paths(clip, pixels, part, pool=pool, top=3, count=2, texts=["a", "bb"])
    strengths = [one.strength for one in found.sources]
    assert strengths == sorted(strengths, reverse=True)
    assert found.ranked == {"neurons": 128, "heads": 4, "mlps": 2}[part]
    assert len(found) == min(3, found.ranked)
    for one in found.sources:
        later = int(one.name.split()[1].split(".")[0]) + 1
        assert bool((one.through[:later] == 0).all())
        assert bool((one.through[later:] > 0).all())
        assert len(one.words) <= 2
        assert len(one.toward) == 2
    assert "median" in found.summary()


def test_the_command_line_writes_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["paths", "world:12:test", "--layers", "3", "--top", "2", "--text", "a bird", "-o", str(tmp_path / "out")])
        == 0
    )
    assert "a bird" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "paths.json").read_text())
    assert told["schema"] == "clip-anatomy/paths/1"
    assert len(told["sources"]) == 2
    with Image.open(tmp_path / "out" / "paths.png") as figure:
        assert figure.width > 500


def test_odd_input_is_refused(clip: Any, pixels: Tensor):
    with pytest.raises(BadSpec, match="'neurons', 'heads', 'mlps'"):
        ca.paths(clip, pixels, "eyes")
    with pytest.raises(BadSpec, match="layers='0-1'"):
        ca.paths(clip, pixels, layers=2)
    with pytest.raises(BadInput, match="two or more"):
        ca.paths(clip, pixels[:1])
    with pytest.raises(BadInput, match="top=0"):
        ca.paths(clip, pixels, top=0)
    with pytest.raises(BadSpec, match="Type 'neurons'"):
        ca.second_order(clip, pixels, 0, source="heads", convention="official")


def test_pairs_of_a_resnet_are_ranked_by_effects_built_in_full(tmp_path: Path):
    """Strength, principal direction, images and shares of the cosine, against sums over [image, embed]."""
    clip = ca.load(tiny_resnet.resnet_model(), tokenizer=lambda t: torch.tensor([[98, 5 + len(x), 7, 99] for x in t]))
    pixels = torch.randn(6, 3, *clip.preprocess.size, generator=torch.Generator().manual_seed(0))
    pool = Pool(tuple(f"word{'s' * at}" for at in range(9)), tuple([""] * 9), "test")
    found = ca.paths(clip, pixels, pool=pool, top=5, texts=["a"])
    pairs, text = ca.neuron_heads(clip, pixels), clip.encode_text(["a"])
    _, heads, neurons = pairs.scalars.shape
    length = clip.encode_image(pixels).norm(dim=-1, keepdim=True)
    spread = torch.zeros(heads, neurons)
    for head in range(heads):
        for neuron in range(neurons):
            effects = pairs.effects(head, neuron) / length
            spread[head, neuron] = (effects - effects.mean(0)).square().sum(-1).mean().sqrt()
    order = spread.flatten().argsort(descending=True)[:5].tolist()
    assert found.ranked == heads * neurons
    assert found.median == pytest.approx(float(spread.median()), rel=1e-3)
    for one, flat in zip(found.sources, order, strict=True):
        head, neuron = divmod(flat, neurons)
        effects = pairs.effects(head, neuron) / length
        assert one.name == f"neuron {neuron} × head {head}"
        assert one.strength == pytest.approx(float(spread[head, neuron]), rel=1e-4)
        torch.testing.assert_close(one.through[0], spread[:, neuron], atol=1e-7, rtol=1e-4)
        direction, share = principal_of(effects)
        assert abs(float(direction @ one.direction)) == pytest.approx(1, abs=1e-4)
        assert share == pytest.approx(one.share, abs=1e-5)
        torch.testing.assert_close(one.along[:, None] * one.direction, effects.double(), atol=1e-6, rtol=1e-4)
        assert one.toward[0] == pytest.approx(float((effects @ (text / text.norm()).T).mean()), abs=1e-6)
    with pytest.raises(BadSpec, match="no other parts and layers"):
        ca.paths(clip, pixels, layers=0)
    with pytest.raises(BadInput, match="two or more"):
        ca.paths(clip, pixels[:1])
    found.save(tmp_path / "out")
    assert (tmp_path / "out" / "paths.png").stat().st_size > 10_000
