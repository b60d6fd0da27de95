"""Pairs: both towers' parts multiply to the cosine; FIxLIP in closed form equals the fit over every subset; errors cover; the page."""

import itertools
import json
from pathlib import Path
from typing import Any

import pages
import pytest
import tiny
import tiny_families
import tiny_resnet
import torch
import torch.nn.functional as F
from test_word_maps import Letters
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadImage, BadInput, BadSpec, BadText, UnsupportedModel
from clip_anatomy.loading.demo import examples
from clip_anatomy.split.removal import RemovalGame, interactions
from clip_anatomy.towers.forward import encode

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def demo() -> ca.Clip:
    return ca.load("demo")


def picture(seed: int, side: int = 32) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def models() -> dict[str, Any]:
    return {
        "open_clip": tiny.open_clip_model,
        "transformers": tiny.transformers_model,
        "siglip": lambda: tiny_families.family("siglip"),
        "coca": lambda: tiny_families.family("coca"),
        "resnet": tiny_resnet.resnet_model,
    }


@pytest.mark.parametrize("name", models())
def test_every_view_sums_to_the_cosine(name: str) -> None:
    clip = ca.load(models()[name](), tokenizer=Letters() if name == "open_clip" else None)
    side = clip.preprocess.size[0]
    others = [picture(1, side), *(["ab c ab"] if name == "open_clip" else [])]
    image = F.normalize(clip.encode_image(picture(0, side)), dim=-1)[0].double()
    for other in others:
        embedding = clip.encode_text([other]) if isinstance(other, str) else clip.encode_image(other)
        cosine = float(image @ F.normalize(embedding, dim=-1)[0].double())
        found = ca.pairs(clip, picture(0, side), other)
        assert found.cosine == pytest.approx(cosine, abs=1e-5)
        for a, b in itertools.product(("tokens", "heads", "layers"), repeat=2):
            assert float(found.table(a, b).sum()) == pytest.approx(cosine, abs=1e-5)


def test_patches_and_words_are_the_products_of_both_towers_tokens() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2), tokenizer=Letters())
    found = ca.pairs(clip, picture(0), "ab c")
    eye = torch.eye(12)
    words = ca.decompose_text(clip, ["ab c"]).tokens(eye).sum((1, 2))[0]
    patches = ca.decompose(clip, picture(0)).tokens(eye).sum((1, 2))[0, 1:]
    expected = patches @ torch.stack([words[1] + words[2], words[3]]).T
    torch.testing.assert_close(found.values.float(), expected, atol=1e-6, rtol=1e-4)
    assert found.a.parts[5] == "patch 1,1"
    assert found.b.parts == ("ab", "c")
    heads = ca.decompose(clip, picture(0))
    head = heads.heads[0, 1, 0] / heads.embedding[0].norm()
    text = ca.decompose_text(clip, ["ab c"])
    row = found.table("heads", "layers")[2]  # head 1.0
    layer = (text.heads[0, 0].sum(0) + text.mlps[0, 0]) / text.embedding[0].norm()
    assert float(row[0]) == pytest.approx(float(head @ layer), abs=1e-6)


def dropped(host: Any, pixels: Tensor, kept: list[int]) -> Tensor:
    """The host's own forward over some of its tokens: patches are taken out, positions stay."""
    v = host.visual
    x = v.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(1, 1, -1), x], 1) + v.positional_embedding
    x = v.transformer(v.ln_pre(x[:, kept]))
    return v.ln_post(x[:, 0]) @ v.proj


def test_a_forward_without_tokens_is_the_hosts_without_them() -> None:
    host = tiny.open_clip_model(layers=3)
    clip = ca.load(host)
    kept = torch.zeros(3, 17, dtype=torch.bool)
    rows = [[0, 1, 5, 16], [0], list(range(17))]
    for row, tokens in enumerate(rows):
        kept[row, tokens] = True
    found = encode(clip.image_tower, picture(0).expand(3, -1, -1, -1), kept)
    with torch.no_grad():
        expected = torch.cat([dropped(host, picture(0), tokens) for tokens in rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_mean_and_a_pool_do_not_count_what_is_gone() -> None:
    for name in ("siglip", "eva02"):
        tower = ca.load(tiny_families.family(name)).image_tower
        pixels = picture(0)
        count, own = tower.token_count(pixels), tower.own
        kept = torch.ones(2, count, dtype=torch.bool)
        kept[1, own + 1] = False
        changed = pixels.clone()
        changed[:, :, : tower.patch[0], tower.patch[1] : 2 * tower.patch[1]] += 3  # patch 1
        with torch.no_grad():
            before, after = (encode(tower, one.expand(2, -1, -1, -1), kept) for one in (pixels, changed))
        assert not torch.allclose(before[0], after[0])
        torch.testing.assert_close(before[1], after[1])
        assert not torch.allclose(before[0], before[1])


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7])
def test_interactions_are_the_second_order_fit_over_every_subset(kept: float) -> None:
    """FIxLIP as it is defined: one regression over all subsets of patches and words, with all pairs as columns."""
    clip = ca.load(tiny.open_clip_model(layers=2, size=16).double(), tokenizer=Letters())
    found = ca.pairs(clip, picture(0, 16).double(), "ab c d e", how="removal", kept=kept)
    assert found.values.shape == (4, 4)
    assert found.errors is not None
    assert float(found.errors.max()) == 0
    words = [[1, 2], [3], [4], [5]]
    masks = torch.tensor(list(itertools.product((0, 1), repeat=8)), dtype=torch.bool)
    ids = clip.ids(["ab c d e"])
    there = torch.ones(256, ids.shape[1], dtype=torch.bool)
    for word, tokens in enumerate(words):
        there[:, tokens] = masks[:, 4 + word, None]
    seen = torch.cat([torch.ones(256, 1, dtype=torch.bool), masks[:, :4]], 1)
    with torch.no_grad():
        image = F.normalize(encode(clip.image_tower, picture(0, 16).double().expand(256, -1, -1, -1), seen), dim=-1)
        text = F.normalize(encode(clip.text_tower, ids.expand(256, -1), there), dim=-1)
    game = (image * text).sum(-1)
    z = masks.double()
    couples = list(itertools.combinations(range(8), 2))
    design = torch.cat([torch.ones(256, 1).double(), z, torch.stack([z[:, i] * z[:, j] for i, j in couples], 1)], 1)
    weights = (kept ** z.sum(1) * (1 - kept) ** (8 - z.sum(1))).sqrt()
    fit = torch.linalg.lstsq(design * weights[:, None], (game * weights)[:, None]).solution[9:, 0]
    for (i, j), value in zip(couples, fit.tolist(), strict=True):
        if i < 4 <= j:
            assert float(found.values[i, j - 4]) == pytest.approx(value, abs=1e-9)


def test_standard_errors_cover_and_seeds_repeat() -> None:
    tower = ca.load(tiny.open_clip_model(layers=2, size=24, patch=6)).image_tower  # 16 patches
    pixels, players = picture(0, 24), [[1 + at] for at in range(16)]
    few = RemovalGame(tower, picture(1, 24), [[1], [2], [3]], 0.5, 0).fit()
    assert few.forwards == 8
    every = (torch.arange(2**16)[:, None] >> torch.arange(16) & 1).bool()
    seen = torch.cat([torch.ones(2**16, 1, dtype=torch.bool), every], 1)
    with torch.no_grad():
        f = torch.cat(
            [
                F.normalize(encode(tower, pixels.expand(len(m), -1, -1, -1), m).double(), dim=-1)
                for m in seen.split(4096)
            ]
        )
    true = torch.stack([f[every[:, i]].mean(0) - f[~every[:, i]].mean(0) for i in range(16)]) @ few.effects.T
    inside, first = [], None
    for seed in range(24):
        game = RemovalGame(tower, pixels, players, 0.5, seed)
        game.more(96)
        values, errors = interactions(game.fit(), few)
        inside.append((values - true).abs() < 1.96 * errors)
        first = values if first is None else first
    assert 0.90 < float(torch.stack(inside).double().mean()) < 0.99
    again = RemovalGame(tower, pixels, players, 0.5, 0)
    again.more(40)
    again.more(56)
    assert first is not None
    torch.testing.assert_close(interactions(again.fit(), few)[0], first)


def test_two_estimated_sides_have_the_error_of_both() -> None:
    """Against the spread over many draws of both sides at once."""
    tower = ca.load(tiny.open_clip_model(layers=2, size=24, patch=6)).image_tower
    players = [[1 + at] for at in range(16)]
    found: list[tuple[Tensor, Tensor]] = []
    for seed in range(30):
        games = [RemovalGame(tower, picture(at, 24), players, 0.5, 2 * seed + at) for at in (0, 1)]
        for game in games:
            game.more(64)
        found.append(interactions(games[0].fit(), games[1].fit()))
    spread = torch.stack([values for values, _ in found]).var(0)
    said = torch.stack([errors.square() for _, errors in found]).mean(0)
    assert float(said.mean() / spread.mean()) == pytest.approx(1, abs=0.25)


def test_a_side_serves_again_without_another_forward(demo: ca.Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ca.pairs(demo, examples()[0], "a red bird", how="removal", forwards=80)
    assert first.b.removal is not None
    assert first.b.removal.forwards == 8  # three words: every subset
    second = ca.pairs(demo, first.a, "a blue star", how="removal", forwards=80)
    assert second.a.removal is first.a.removal
    alone = ca.pairs(demo, examples()[0], "a blue star", how="removal", forwards=80)
    torch.testing.assert_close(second.values, alone.values)
    split = ca.pairs(demo, first.a, first.b)
    torch.testing.assert_close(split.values, ca.pairs(demo, examples()[0], "a red bird").values)


def test_the_colour_word_lies_on_the_object(demo: ca.Clip) -> None:
    found = ca.pairs(demo, examples()[0], "a dotted purple bird in the sky")
    row, col = divmod(int(found.values[:, found.b.parts.index("purple")].argmax()), 8)
    assert (row, col) == (5, 5)
    assert "patches × words" in found.summary()


def test_what_makes_no_sense_is_refused(demo: ca.Clip) -> None:
    for options, match in (
        ({"how": "shapley"}, "split"),
        ({"kept": 1.0}, "kept=0.5"),
        ({"forwards": 3}, "forwards=1024"),
    ):
        with pytest.raises(BadSpec, match=match):
            ca.pairs(demo, "a", "b", **options)
    with pytest.raises(BadSpec, match="no view"):
        ca.pairs(demo, "a", "b").table("neurons")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadText, match="holds no word"):
        ca.pairs(demo, "  ", "a")
    with pytest.raises(BadImage):
        ca.pairs(demo, "missing.jpg", "a")
    with pytest.raises(BadImage, match="one side"):
        ca.pairs(demo, torch.randn(2, 3, 64, 64), "a")
    other = ca.load(tiny.open_clip_model())
    with pytest.raises(BadInput, match="another model"):
        ca.pairs(demo, ca.pairs(other, picture(0), picture(1)).a, "a")
    resnet = ca.load(tiny_resnet.resnet_model())
    sides = [picture(seed, resnet.preprocess.size[0]) for seed in (0, 1)]
    with pytest.raises(UnsupportedModel):
        ca.pairs(resnet, *sides, how="removal")
    assert "does not know: zebra" in ca.pairs(demo, "a zebra", "a bird").notes[0]


def test_command_line_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pairs", "--demo"]) == 0
    folder = tmp_path / "clip-anatomy-pairs"
    assert {one.name for one in folder.iterdir()} == {"index.html", "pairs.json", "pairs.png", "run.json"}
    page = pages.read((folder / "index.html").read_text(encoding="utf-8"))
    assert not page.open
    assert all(address.startswith("data:") for address in page.loads)
    parts = [value for name, value in page.attributes if name == "data-part"]
    assert sum(one.startswith("a") for one in parts) == 64
    numbers = json.loads((folder / "pairs.json").read_text())
    total = sum(map(sum, numbers["views"]["tokens"]["shares"]))
    assert total == pytest.approx(numbers["cosine"], abs=2e-4)  # of rounded shares
    capsys.readouterr()
    assert main(["pairs", "-t", "a <b>red</b> bird", "-t", "a blue bird", "--how", "removal", "-o", "two"]) == 0
    assert "<b>red" not in (tmp_path / "two" / "index.html").read_text(encoding="utf-8")
    assert "8" in capsys.readouterr().out
    assert main(["pairs", str(examples()[0]), str(examples()[1]), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["views"]["tokens"]["a"]) == 68
    assert main(["pairs", str(examples()[0])]) == 2
    assert "two were expected" in capsys.readouterr().err


def test_parts_taken_away_at_another_rate_are_taken_away_anew(demo: ca.Clip) -> None:
    first = ca.pairs(demo, "a red bird", "a blue star", how="removal")
    again = ca.pairs(demo, first.a, first.b, how="removal", kept=0.8)
    alone = ca.pairs(demo, "a red bird", "a blue star", how="removal", kept=0.8)
    torch.testing.assert_close(again.values, alone.values)
    assert not torch.allclose(again.values, first.values, atol=1e-3)
