"""Sanity of maps: figures against longhand, verdicts on maps that are known to be right or wrong, the model left alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import spearmanr
from tiny_resnet import resnet_model
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadImage, BadSpec, BadText
from clip_anatomy.evaluation.known_objects import world_objects
from clip_anatomy.evaluation.sanity import LIMITS, Sanity, negative_texts, randomised, rank_correlation, sanity
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.attention_sinks import sinks
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.towers.randomize_weights import count_blocks

pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[1, 2 + len(t) % 90, 99] for t in texts])


@pytest.fixture(scope="module")
def demo() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def small() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=3), tokenizer=tokenizer)


def line(found: Sanity, name: str, varied: str = "") -> Any:
    return next(check for check in found.checks if check.name == name and varied in check.varied)


def test_rank_correlation_is_scipys_ties_included() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (20, 16)).astype(float), rng.normal(size=(20, 16)).round(1)
    ours = rank_correlation(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(ours.numpy(), [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)], atol=1e-12)
    assert rank_correlation(torch.ones(5), torch.rand(5)).isnan()


@pytest.mark.parametrize("kind", ["open_clip", "transformers", "resnet"])
def test_random_weights_go_into_a_copy_and_the_model_stays_bit_identical(kind: str) -> None:
    model = {"open_clip": tiny.open_clip_model, "transformers": tiny.transformers_model, "resnet": resnet_model}[kind]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clip = ca.load(model, tokenizer=tokenizer)
    pixels = torch.randn(2, 3, *clip.preprocess.size, generator=torch.Generator().manual_seed(0))
    embedded = clip.encode_image(pixels)
    sanity(clip, pixels, torch.randn(2, embedded.shape[1]), "maskclip", draws=1)
    for blocks in (None, 1):
        other = randomised(clip, blocks)
        assert not torch.allclose(other.encode_image(pixels), embedded, atol=1e-3)
        assert other.encode_image(pixels).isfinite().all()
        assert torch.equal(
            other.encode_image(pixels), randomised(clip, blocks).encode_image(pixels)
        )  # one seed, one draw
        assert not torch.equal(other.encode_image(pixels), randomised(clip, blocks, seed=1).encode_image(pixels))
    assert torch.equal(randomised(clip, 0).encode_image(pixels), embedded)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(clip.encode_image(pixels), embedded)


def test_the_cascade_draws_from_the_output_backwards_and_keeps_scales(small: ca.Clip) -> None:
    assert count_blocks(small.vision) == 3
    old, two, whole = small.image_tower, randomised(small, 2).image_tower, randomised(small).image_tower
    same = [torch.equal(a.value.weight, b.value.weight) for a, b in zip(old.blocks, two.blocks, strict=True)]
    assert same == [True, False, False]
    assert torch.equal(two.blocks[2].up.weight, whole.blocks[2].up.weight)  # further draws leave the first ones alone
    assert torch.equal(two.projection, old.projection)
    assert not torch.equal(whole.projection, old.projection)
    for block in whole.blocks:
        assert block.qkv is not None
        assert torch.equal(block.qkv.weight, torch.cat([block.query.weight, block.key.weight, block.value.weight]))
    wide, drawn = (t.blocks[0].down.weight for t in (old, whole))
    torch.testing.assert_close(drawn.std(), wide.std(), rtol=0.2, atol=0)
    with pytest.raises(BadSpec, match="has 3"):
        randomised(small, 4)


def test_every_figure_is_what_longhand_gives(small: ca.Clip) -> None:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    texts, contrast = ["one", "three"], ["seventeen", "eighteens", "a", "of me", "wood", "windows"]
    found = sanity(small, pixels, texts, "sclip", contrast=contrast, draws=2)
    own = heatmap(small, pixels, texts, "sclip").values

    def mean_over_maps(others: list[Tensor]) -> float:
        return float(
            np.mean(
                [
                    spearmanr(own[i, t].flatten(), other[i, t].flatten()).statistic
                    for other in others
                    for i in range(3)
                    for t in range(2)
                ]
            )
        )

    pairs = [heatmap(small, pixels, contrast[i : i + 2], "sclip").values for i in (0, 2)]
    assert line(found, "text").figure == pytest.approx(mean_over_maps(pairs), abs=1e-5)
    for manifest, blocks in (("last 1 of 3", 1), ("last 3 of 3", 3), ("whole", None)):
        other = heatmap(randomised(small, blocks), pixels, small.encode_text(texts), "sclip").values
        assert line(found, "weights", manifest).figure == pytest.approx(mean_over_maps([other]), abs=1e-5)
    together = heatmap(small, pixels, [*texts, *contrast], "sclip").values
    unit = torch.nn.functional.normalize
    nearest = (small.encode_image(pixels) @ unit(small.encode_text(texts), dim=-1).T).argmax(1).tolist()
    shares = []
    for i in range(3):
        mass = [float((m - together[i].mean()).clamp_min(0).sum()) for m in together[i]]
        shares.append(np.mean([mass[k] / (mass[nearest[i]] + mass[k]) for k in range(2, 8)]))
    assert line(found, "contrast").figure == pytest.approx(float(np.mean(shares)), abs=1e-5)
    assert len(found.sinks) == int(sinks(small, pixels).mask.sum())


def test_maps_of_attention_alone_are_called_what_they_are(demo: ca.Clip) -> None:
    found = sanity(demo, examples()[:2], ["a bird", "the sky"], "rollout")
    assert line(found, "text").figure == pytest.approx(1.0)
    assert line(found, "text").passed is False
    assert "never looks at the text" in line(found, "text").verdict
    assert line(found, "contrast").figure == pytest.approx(0.5, abs=0.01)
    assert not found.passed


def test_on_the_demo_world_the_exact_split_passes_and_a_wrong_text_does_not(demo: ca.Clip) -> None:
    """Right texts of single objects, measured at 40 pictures: contrast 0.12 ± 0.03; a wrong one 0.46 ± 0.19."""
    case = next(world_objects(demo, 12))
    right, wrong = [], []
    for image, text, _ in case.targets:
        other = (text + 12 * 4 + 5) % 96  # another colour and another shape
        contrast = [(text + 12 * k + k) % 96 for k in (1, 2, 3, 5)]
        for asked, put in ((text, right), (other, wrong)):
            maps = heatmap(demo, case.pixels[image : image + 1], case.texts[[asked, *contrast]]).values[0]
            mass = (maps - maps.mean()).clamp_min(0).sum((1, 2))
            put.append(float((mass[1:] / (mass[0] + mass[1:])).mean()))
    limit = LIMITS["contrast"][0]
    assert np.mean(right) < 0.25 < limit < np.mean(wrong)
    found = sanity(demo, [p for p in examples() if p.name == "striped_circle.png"], ["a circle"])
    assert line(found, "text").passed
    assert line(found, "weights", "8 of 8").passed
    assert line(found, "contrast").passed


def test_unrelated_texts_share_no_word_and_follow_the_seed(demo: ca.Clip) -> None:
    texts = negative_texts(demo, ["two red birds on water"], 20)
    assert len(set(texts)) == 20
    assert not any(word in text for text in texts for word in ("bird", "water"))
    # Words of three letters count; those that say nothing do not.
    others = negative_texts(demo, ["the red circle and"], 60)
    assert not any({"red", "circle"} & set(text.split()) for text in others)
    assert any("the" in text.split() for text in others)
    assert texts == negative_texts(demo, ["two red birds on water"], 20)
    assert texts != negative_texts(demo, ["two red birds on water"], 20, seed=1)
    with pytest.raises(BadSpec, match="contrast="):
        negative_texts(demo, ["a bird"], 100_000)


def test_pictures_of_other_shapes_embeddings_and_resnets_are_judged_too(small: ca.Clip) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, size, np.uint8) for size in ((40, 90, 3), (70, 33, 3))]
    found = sanity(small, pictures, ["a", "bc"], "naclip", contrast=["wxyz", "qwertyu"], draws=1, size=40)
    assert found.images == 2
    clip = ca.load(resnet_model(), tokenizer=tokenizer)
    found = sanity(clip, torch.randn(2, 3, 96, 96), torch.randn(1, 24), "attention", draws=1)
    assert found.negative_texts[0] == "random direction 0"
    assert [check.varied for check in found.checks if check.name == "weights"] == [
        "random weights in the last 1 of 7 blocks",
        "random weights in the last 3 of 7 blocks",
        "random weights in the last 7 of 7 blocks",
        "random weights in the whole image tower",
    ]


def test_table_and_json_say_the_same(small: ca.Clip) -> None:
    found = sanity(
        small, torch.zeros(1, 3, 32, 32), ["a", "bc"], "decomposition", contrast=["wxyz", "qwertyu"], draws=1
    )
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [check["verdict"] for check in held["checks"]] == [check.verdict for check in found.checks]
    told = " ".join(found.summary().split())
    assert all(check.verdict in told and check.varied in told for check in found.checks)
    assert max(map(len, found.summary().splitlines())) <= 100
    assert held["passed"] == found.passed


def test_the_command_prints_the_table_and_the_same_in_json(capsys: pytest.CaptureFixture) -> None:
    from clip_anatomy.cli.main import main

    picture = next(str(p) for p in examples() if p.name == "bird_on_water.png")
    asked = ["heatmap", picture, "/nowhere.png", "-t", "a bird", "-t", "a square", "--method", "attention", "--sanity"]
    assert main([*asked, "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in held["sanity"]] == ["attention"]
    one = held["sanity"][0]
    assert one["checks"][0]["verdict"] == "changes with the text: no, it never looks at the text"
    assert [f["occlusion"] for f in one["faithfulness"]] == ["mean", "road"]
    assert one["images"] == 1


def test_so_many_pictures_are_judged_as_were_asked_for(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from clip_anatomy.cli.main import main

    asked = [
        "heatmap",
        *map(str, examples()[:3]),
        "-t",
        "a bird",
        "--method",
        "attention",
        "--sanity",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*asked, "--sanity-pictures", "2"]) == 0
    said = capsys.readouterr().out
    assert "on 2 pictures × 1 text (demo)" in said
    assert "(the first 2 pictures; 1 more drawn and not judged: --sanity-pictures 3)" in said
    assert main([*asked, "--sanity-pictures", "0"]) == 2
    assert "--sanity-pictures 0: at least one" in capsys.readouterr().err


def test_bad_input_is_named(small: ca.Clip) -> None:
    pixels = torch.zeros(1, 3, 32, 32)
    with pytest.raises(BadText, match="twice"):
        sanity(small, pixels, ["a", "a"], contrast=["b"])
    with pytest.raises(BadSpec, match="draws=3"):
        sanity(small, pixels, ["a"], contrast=["b"], draws=0)
    with pytest.raises(BadSpec, match=r"contrast=\[\] leaves nothing to compare with"):
        sanity(small, pixels, ["a"], contrast=[])
    with pytest.raises(BadSpec, match="not known"):
        sanity(small, pixels, ["a"], "nothing", contrast=["b"])
    with pytest.raises(BadImage):
        sanity(small, [], ["a"], contrast=["b"])


def test_a_planted_sink_is_listed_with_its_place_and_share() -> None:
    """A ResNet whose pool looks at its last place in every picture, as OpenAI's do."""
    model = resnet_model()
    with torch.no_grad():
        pool = model.visual.attnpool
        pool.positional_embedding[-1] = 40 * pool.positional_embedding[-1].sign()
    clip = ca.load(model, tokenizer=tokenizer)
    pixels = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = sanity(clip, pixels, torch.randn(2, 24), "maskclip", draws=1)
    expected = sinks(clip, pixels)
    assert {(s.image, s.row, s.col) for s in found.sinks} == {tuple(at) for at in expected.mask.nonzero().tolist()}
    last = [s for s in found.sinks if (s.row, s.col) == (2, 2)]
    assert len(last) == 3
    assert all(s.length > 2 for s in last)
    for sink in found.sinks:
        assert sink.attention == pytest.approx(float(expected.attention[sink.image, sink.row, sink.col]))
    assert line(found, "sinks").figure == pytest.approx(float(expected.share.mean()))
    assert line(found, "sinks").passed == (line(found, "sinks").figure < LIMITS["sinks"][0])
    assert "row 2 col 2 in 3" in line(found, "sinks").verdict
