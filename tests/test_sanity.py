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
from clip_anatomy.evaluation.sanity_result import Measured, contrast_check, text_check
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.attention_sinks import sinks
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.towers.layers import Linear
from clip_anatomy.towers.randomize_weights import count_blocks
from clip_anatomy.towers.untrained import weight_edge

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
    names = ("bird_on_water.png", "two_kinds.png", "striped_circle.png")  # one map alone leaves answers open
    found = sanity(demo, [p for p in examples() if p.name in names], ["a bird", "a moon"])
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


# --- chance, intervals, random weights ---


def test_a_figure_has_the_interval_of_its_units_and_of_the_scatter_of_a_rank_correlation() -> None:
    values = torch.tensor([[0.1, 0.3], [0.5, torch.nan], [torch.nan, torch.nan], [0.4, 0.2]])
    found = Measured.of(values)
    assert found.figure == pytest.approx(np.mean([0.1, 0.3, 0.5, 0.4, 0.2]))
    assert found.error == pytest.approx(1.96 * np.std([0.2, 0.5, 0.3], ddof=1) / 3**0.5)
    assert Measured.of(values, least=0.5).error == pytest.approx(1.96 * 0.5 / 3**0.5)
    assert Measured.of(values[:1]).error == pytest.approx(1.96 * np.std([0.1, 0.3], ddof=1) / 2**0.5)
    assert np.isnan(Measured.of(values[2:3]).figure)


def test_an_answer_is_yes_only_where_all_of_the_interval_is_good() -> None:
    answers = {
        (0.2, 0.1): True, (0.2, 0.35): None, (0.6, 0.05): False, (0.6, 0.35): False,
    }  # fmt: skip
    for (figure, error), passed in answers.items():
        check = text_check(Measured(figure, error), per_text=True)
        assert (check.passed, check.chance) == (passed, 0.0)
        assert check.interval == (figure - error, figure + error)
        assert text_check(Measured(figure, error), per_text=True, trained=False).passed is False
    assert contrast_check(Measured(0.3, 0.05)).chance == 0.5


def test_the_chance_of_random_weights_is_what_two_draws_have_in_common(demo: ca.Clip) -> None:
    pictures, texts = examples()[:3], ["a bird", "a moon"]
    found = line(sanity(demo, pictures, texts, "sclip"), "weights", "8 of 8")
    first, second = (heatmap(randomised(demo, 8, seed=seed), pictures, texts, "sclip").values for seed in (0, 1))
    longhand = [spearmanr(first[i, t].flatten(), second[i, t].flatten()).statistic for i in range(3) for t in range(2)]
    assert found.chance == pytest.approx(np.mean(longhand), abs=1e-5)


@pytest.mark.parametrize("kind", ["fresh", "image tower redrawn"])
def test_random_weights_pass_no_question_and_are_announced(kind: str, small: ca.Clip, demo: ca.Clip) -> None:
    clip = small if kind == "fresh" else randomised(demo)
    pictures = torch.randn(6, 3, *clip.preprocess.size, generator=torch.Generator().manual_seed(0))
    for method in ("decomposition", "sclip"):
        found = sanity(clip, pictures, ["one", "three"], method, contrast=["wood", "windows", "a", "of me"])
        asked = [check for check in found.checks if check.limit is not None and check.name != "sinks"]
        assert [check.name for check in asked] == ["text", "weights", "contrast"]
        assert not any(check.passed for check in asked)
        assert not found.passed
        assert "look untrained" in found.summary()
        assert "image tower" in found.to_dict()["announcement"][0]


def test_weights_that_were_drawn_have_no_direction_that_stands_out(demo: ca.Clip) -> None:
    assert weight_edge(demo.vision) > 1.4
    assert weight_edge(demo.text_tower) > 1.4
    assert weight_edge(randomised(demo).vision) == pytest.approx(1, abs=0.1)
    draw = torch.Generator().manual_seed(0)
    for shape in ((8, 16), (40, 40), (512, 64), (96, 384)):
        for scale in (1e-3, 5.0):
            drawn = Linear(scale * torch.randn(shape, generator=draw) + scale, None)
            uniform = Linear(scale * torch.rand(shape, generator=draw), None)
            assert weight_edge((drawn,)) == pytest.approx(1, abs=0.2)
            assert weight_edge((uniform,)) == pytest.approx(1, abs=0.2)
        learned = torch.randn(shape, generator=draw)
        learned += 3 * torch.randn(shape[0], 1, generator=draw) @ torch.randn(1, shape[1], generator=draw)
        assert weight_edge(Linear(learned, None)) > 1.3
    assert np.isnan(weight_edge(Linear(torch.randn(3, 3), None)))


def test_sanity_is_kept_on_the_page_and_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from clip_anatomy.cli.main import main

    asked = ["heatmap", *map(str, examples()[:2]), "-t", "a bird", "--sanity", "--out", str(tmp_path / "o")]
    assert main(asked) == 0
    table = capsys.readouterr().out
    held = json.loads((tmp_path / "o" / "heatmap.json").read_text())["sanity"][0]
    page = (tmp_path / "o" / "index.html").read_text()
    assert [check["name"] for check in held["checks"]] == ["text", *["weights"] * 4, "contrast", "sinks"]
    for check in held["checks"]:
        assert check["verdict"] in " ".join(table.split())
        assert check["verdict"].replace("'", "&#39;") in page
        if check["limit"] is not None:
            low, high = check["interval"] or (check["figure"],) * 2
            assert low <= check["figure"] <= high
            assert check["chance"] is not None
            figure = f"{check['figure']:.0%}" if check["name"] == "sinks" else f"{check['figure']:.2f}"
            assert f'<td class="num">{figure}</td>' in page
            assert figure in table
    assert "Do these maps mean anything?" in page
    assert "beats a random order" in page
    assert "faithfulness" in held
