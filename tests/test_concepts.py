"""Sparse concepts: the official weights, the optimality conditions, what pictures of the demo world are made of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.demo import examples
from clip_anatomy.naming.concepts import sparse_weights

ORACLE = Path(__file__).parents[2] / "shared" / "oracles" / "splice"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("penalty", [0.25, 0.15])
def test_weights_are_those_of_the_official_code(penalty: float) -> None:
    if not ORACLE.is_dir():
        pytest.skip("../shared/oracles/splice is not there")
    given, official = np.load(ORACLE / "inputs.npz"), np.load(ORACLE / "outputs.npz")
    images, mean, dictionary = (
        torch.from_numpy(one).double() for one in (given["images"], given["image_mean"], official["dictionary"])
    )
    z = normalize(normalize(images, dim=-1) - mean, dim=-1)
    found = sparse_weights(z, dictionary, penalty=penalty)
    expected = torch.from_numpy(official[f"skl_{penalty}_weights"]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert bool(((found > 1e-5) == (expected > 1e-5)).all())
    rebuilt = normalize(normalize(found @ dictionary, dim=-1) + mean, dim=-1)
    torch.testing.assert_close(
        rebuilt, torch.from_numpy(official[f"skl_{penalty}_reconstruction"]).double(), rtol=0, atol=1e-5
    )


def test_weights_are_the_minimum() -> None:
    """Its conditions: the gradient is −penalty where a weight is positive, and nowhere below."""
    generator = torch.Generator().manual_seed(0)
    dictionary = normalize(torch.randn(300, 24, generator=generator).double(), dim=-1)
    vectors = normalize(torch.randn(5, 24, generator=generator).double(), dim=-1)
    weights = sparse_weights(vectors, dictionary, penalty=0.3)
    slope = 2 * (weights @ dictionary - vectors) @ dictionary.T
    assert (weights > 0).any(1).all()
    assert (slope + 0.3)[weights > 0].abs().max() < 1e-5
    assert (slope + 0.3).min() > -1e-5


def test_pursuit_finds_the_texts_that_a_sum_was_made_of() -> None:
    generator = torch.Generator().manual_seed(1)
    dictionary = normalize(torch.randn(80, 64, generator=generator).double(), dim=-1)
    true = torch.zeros(1, 80).double()
    true[0, [3, 40, 77]] = torch.tensor([1.0, 0.7, 0.5]).double()
    found = sparse_weights(true @ dictionary, dictionary, count=3)
    torch.testing.assert_close(found, true)


@pytest.fixture(scope="module")
def demo() -> ca.Clip:
    return ca.load("demo")


def test_what_pictures_show_is_among_their_texts(demo: ca.Clip) -> None:
    from clip_anatomy.data.open_dataset import open_dataset

    pictures = [one for one in open_dataset("world:64:test") if one.meta["count"] == "one"][:24]
    found = ca.concepts(demo, [one.data for one in pictures])
    for what in ("colour", "shape", "background"):
        named = [any(str(one.meta[what]) in text for text, _ in found.of(row)) for row, one in enumerate(pictures)]
        assert sum(named) >= 0.9 * len(pictures)
    assert found.explained.min() > 10 * found.chance[0]
    assert (found.weights > 0).sum(1).double().mean() < 12


def test_texts_and_directions(demo: ca.Clip, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\na circle\na star\n", encoding="utf-8")
    found = ca.concepts(demo, pool=words, texts=["a red circle"], penalty=0.1)
    assert {text for text, _ in found.of(0)[:2]} == {"red", "a circle"}
    same = normalize(demo.encode_text(["red", "blue", "a circle", "a star"]), dim=-1)
    directions = ca.concepts(demo, pool=words, directions=same - same.mean(0), count=1)
    assert [directions.of(row)[0][0] for row in range(4)] == ["red", "blue", "a circle", "a star"]
    assert torch.allclose(directions.explained, torch.ones(4).double())


def test_one_picture_says_that_the_gap_is_there_and_a_store_takes_it_off(demo: ca.Clip, tmp_path: Path) -> None:
    alone = ca.concepts(demo, examples()[0], count=3)
    assert "gap" in alone.notes[0]
    ca.index(demo, "world:20", tmp_path / "store")
    found = ca.concepts(demo, examples()[0], over=tmp_path / "store", count=3)
    assert not found.notes
    mean = ca.Store.open(tmp_path / "store").embeddings(unit=True).double().mean(0)
    assert torch.equal(ca.concepts(demo, examples()[0], over=mean, count=3).weights, found.weights)


def test_what_makes_no_sense_is_refused(demo: ca.Clip) -> None:
    with pytest.raises(BadInput, match="one of the three"):
        ca.concepts(demo, examples(), texts=["a"])
    with pytest.raises(BadSpec, match="penalty=0.25"):
        ca.concepts(demo, examples(), penalty=0)
    with pytest.raises(BadSpec, match="count=10"):
        ca.concepts(demo, examples(), count=0)
    with pytest.raises(BadInput, match="were expected"):
        ca.concepts(demo, directions=torch.randn(2, 7))
    with pytest.raises(BadInput, match="mean of unit embeddings"):
        ca.concepts(demo, examples(), over=torch.zeros(3))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["concepts", "--demo", "--count", "4"]) == 0
    out = capsys.readouterr().out
    assert "chance" in out
    folder = tmp_path / "clip-anatomy-concepts"
    numbers = json.loads((folder / "concepts.json").read_text())
    assert {p.name for p in folder.iterdir()} == {"concepts.json", "concepts.png", "run.json"}
    assert all(1 <= len(row["texts"]) <= 4 for row in numbers["rows"])
    assert main(["concepts", "--text", "a red star", "--json", "--penalty", "0.1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["penalty"] == 0.1
    assert printed["rows"][0]["name"] == "a red star"
    assert main(["concepts", str(examples()[0]), "--text", "a"]) == 2
    assert "two commands" in capsys.readouterr().err


def test_what_would_divide_by_nothing_is_named(tmp_path: Path) -> None:
    clip = ca.load("demo", parity=False)
    with pytest.raises(BadInput, match="direction 1 is zero: it points nowhere"):
        ca.concepts(clip, directions=torch.stack([torch.ones(128), torch.zeros(128)]), count=1)
    with pytest.raises(BadInput, match="the finite mean of unit embeddings"):
        ca.concepts(clip, examples()[:1], over=torch.full((128,), torch.nan), count=1)
    with pytest.raises(BadInput, match="nowhere.jpg: no such file"):
        ca.concepts(clip, ["nowhere.jpg"], skip_bad=True, count=1)
    (tmp_path / "pool.txt").write_text("a dog\n")
    with pytest.raises(BadInput, match="a vocabulary of one text"):
        ca.concepts(clip, texts=["a cat"], pool=tmp_path / "pool.txt", count=1)
