"""Alignment: a linear map is found, noise is not, the ceiling is the noise's, and a channel is used like a text."""

import json
from importlib import import_module
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.studies.align import align

pytestmark = pytest.mark.usefixtures("one_thread")


def made(noise: float, stimuli: int = 300, repeats: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(stimuli, 16, generator=generator).double()
    w = torch.randn(4, 16, generator=generator).double()
    y = x @ w.T + noise * torch.randn(repeats, stimuli, 4, generator=generator).double()
    return x, w, y


def test_a_linear_map_is_found_again() -> None:
    x, w, y = made(0.01)
    found = align(x, y[0], permutations=49)
    torch.testing.assert_close(found.weight, w, rtol=0, atol=0.01)
    assert found.r.min() > 0.999
    assert found.p.max() == 1 / 50
    torch.testing.assert_close(found.predict(x), y[0], rtol=0, atol=0.1)


def test_noise_is_not_predicted_and_p_is_uniform() -> None:
    """Sixty channels of pure noise: few below 0.05, none left after false discovery control.

    Held-out noise leans a little against what the other folds had by chance, so r lies slightly below zero: p errs to the safe side.
    """
    x, _, _ = made(1.0)
    noise = torch.randn(len(x), 60, generator=torch.Generator().manual_seed(5)).double()
    found = align(x, noise, permutations=199)
    assert -0.08 < float(found.r.mean()) < 0.03
    assert int((found.p < 0.05).sum()) <= 8
    assert 0.35 < float(found.p.mean()) < 0.85
    assert found.predicted.sum() == 0
    assert 0.07 < float(found.chance.mean()) < 0.12  # 1.645 / √300


def test_the_ceiling_is_that_of_the_noise() -> None:
    """Variance 16 + noise 9 a repeat over four repeats: √(16 / (16 + 9/4)) = 0.936."""
    x, w, y = made(3.0, stimuli=2000, repeats=4)
    found = align(x, y, permutations=9)
    assert found.ceiling is not None
    signal = w.square().sum(1)
    torch.testing.assert_close(found.ceiling, (signal / (signal + 9 / 4)).sqrt(), rtol=0, atol=0.02)
    assert bool((found.r <= found.ceiling + 0.02).all())
    assert bool((found.r > found.ceiling - 0.03).all())


def test_a_channel_is_used_like_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that answers to one colour is named by it, and its map lies on the object of that colour."""
    monkeypatch.chdir(tmp_path)
    clip = ca.load("demo")
    ca.index(clip, "world:240:test", tmp_path / "store")
    store = ca.Store.open(tmp_path / "store", clip)
    colours = store.column("colour")
    answers = np.array([[one == "red", one == "blue"] for one in colours], dtype=float)
    order = np.random.default_rng(0).permutation(len(answers))
    np.savez(
        "r.npz", recordings=answers[order], ids=np.array([store.rows()[at].id for at in order]), channels=["R", "B"]
    )
    assert main(["align", "store", "r.npz", "--permutations", "99"]) == 0
    assert "2 of 2 channels predicted" in capsys.readouterr().out
    numbers = json.loads(Path("clip-anatomy-align/align.json").read_text())
    assert [row["channel"] for row in numbers["channels"]] == ["R", "B"]
    assert Path("clip-anatomy-align/align.png").stat().st_size > 1000
    found = align(store, "r.npz", permutations=99)
    assert (
        torch.equal(found.r, align(store, answers[order][np.argsort(order)], permutations=99).r) is False
    )  # another order
    named = ca.concepts(clip, directions=found.weight, count=1)
    assert "red" in named.of(0)[0][0]
    assert "blue" in named.of(1)[0][0]
    red = next(
        one for one in open_dataset("world:240:test") if one.meta["colour"] == "red" and one.meta["count"] == "one"
    )
    maps = ca.heatmap(clip, [red.data], found.weight.float())
    assert maps.values[0, 0].max() > maps.values[0, 1].max()


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(20, 3), torch.zeros(19, 2), {}, "20 embeddings for 19 stimuli"),
        (torch.zeros(20, 3), torch.zeros(20, 2), {}, "channel 0 has one value"),
        (torch.zeros(20), torch.zeros(20, 2), {}, r"\[stimulus, embed\] were expected"),
        (torch.zeros(20, 3), torch.full((20, 2), torch.nan), {}, "40 values that are NaN"),
        (torch.zeros(20, 3), "nowhere.npy", {}, "nowhere.npy cannot be read"),
        (torch.randn(20, 3), torch.randn(20, 2), {"folds": 9}, "2 to 5 were expected"),
        (torch.randn(20, 3), torch.randn(20, 2), {"channels": ["one"]}, "1 names for 2 channels"),
    ],
)
def test_what_does_not_fit_is_refused(x, y, options, message) -> None:
    with pytest.raises((BadInput, BadSpec), match=message):
        align(x, y, **options)


def test_a_stores_folder_is_a_store_and_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ca.load("demo", parity=False)
    for name in ("s", "t"):
        ca.index(clip, "world:24:test", tmp_path / name, layers="last:1")
    one, other = (ca.Store.open(tmp_path / name) for name in ("s", "t"))
    found = align(tmp_path / "s", str(tmp_path / "t"), permutations=0, folds=2)
    torch.testing.assert_close(found.weight, align(one, other, permutations=0, folds=2).weight)
    with ZipFile(tmp_path / "bomb.npz", "w", ZIP_DEFLATED) as packed, packed.open("recordings.npy", "w") as file:
        file.write(bytes(2**21))
    monkeypatch.setattr(import_module("clip_anatomy.studies.align"), "LARGEST", 2**20)
    with pytest.raises(BadInput, match=r"2,097,152 bytes when unpacked, 1,048,576 are read"):
        align(torch.ones(8, 3), tmp_path / "bomb.npz")


def test_a_vit_is_read_through_a_saved_map_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stores, `align`, `explain --through`: cosines are those of the map, by hand; another model is refused."""
    from tiny_transformers import tiny_transformers

    monkeypatch.chdir(tmp_path)
    for name in ("ViTModel", "Dinov2Model"):
        tiny_transformers(name).save_pretrained(tmp_path / name)
    levels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(levels).save("photo.png")
    for store, model in (("VIT-STORE", "ViTModel"), ("CLIP-STORE", "demo")):
        assert main(["index", "world:40:test", store, "--model", model]) == 0
    assert main(["align", "VIT-STORE", "CLIP-STORE", "--permutations", "0", "--out", "map"]) == 0
    capsys.readouterr()
    texts = ["a red circle", "a blue square"]
    asked = [
        "explain",
        "photo.png",
        *(word for text in texts for word in ("--text", text)),
        "--json",
        "--through",
        "map",
    ]
    assert main([*asked, "--model", "ViTModel"]) == 0
    told = json.loads(capsys.readouterr().out)["images"][0]["texts"]
    vit, clip, found = ca.load("ViTModel"), ca.load("demo"), ca.Alignment.load("map")
    direct = ca.align("VIT-STORE", "CLIP-STORE", permutations=0)
    torch.testing.assert_close(found.weight, direct.weight, rtol=0, atol=0)
    assert (found.channels, found.stimuli, found.digest) == (direct.channels, 40, vit.digest)
    torch.testing.assert_close(found.r, direct.r, rtol=0, atol=1e-6)
    predicted = found.predict(vit.encode_image("photo.png"))[0]
    by_hand = torch.nn.functional.cosine_similarity(predicted[None], clip.encode_text(texts).double(), dim=-1)
    assert [one["cosine"] for one in told] == pytest.approx(by_hand.tolist(), abs=1e-5)
    read = found.read(vit)
    assert float(ca.decompose(read, "photo.png").residue.max()) < 1e-5
    assert main([*asked, "--model", "Dinov2Model"]) == 2
    assert "fitted on embeddings of other weights" in capsys.readouterr().err
    np.save("recordings.npy", np.random.default_rng(0).normal(size=(40, 3)))
    align("VIT-STORE", "recordings.npy", permutations=0).save("brain")
    with pytest.raises(BadInput, match=r"leads to no CLIP.*Type align\(STORE_OF_THIS_MODEL, STORE_OF_A_CLIP\)"):
        ca.Alignment.load("brain").read(vit)
    with pytest.raises(BadInput, match=r"align\.json"):
        ca.Alignment.load("nowhere")
