"""Mutual knowledge: the released score on its own numbers, the right measure by counting, what pictures of the demo world share with labels."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_resnet
import torch
import torch.nn.functional as F
from PIL import Image
from test_word_maps import Letters

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadImage, BadInput, BadSpec, BadText
from clip_anatomy.loading.demo import examples
from clip_anatomy.studies.mutual import named_parts
from clip_anatomy.studies.overlap import ListOverlap, deletion_curve
from clip_anatomy.studies.picture_parts import circled, clustered, largest_piece, shared_out

ORACLE = Path(__file__).parents[2] / "shared" / "oracles" / "mutual_knowledge"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    if not ORACLE.is_dir():
        pytest.skip("../shared/oracles/mutual_knowledge is not there")
    return {name: file[name] for file in (np.load(ORACLE / "inputs.npz"), np.load(ORACLE / "outputs.npz")) for name in file.files}  # fmt: skip


def test_the_released_score_is_the_released_codes(oracle: dict[str, np.ndarray]) -> None:
    for row in range(24):
        there = oracle["concepts"][row] >= 0
        order = np.argsort(-oracle["scores"][row][there], kind="stable")
        texts = oracle["concepts"][row][there][order]
        expected = np.argsort(-oracle["class_weights"][oracle["predicted"][row]], kind="stable")[:15]
        curve = deletion_curve([one in expected for one in texts.tolist()], 15, 300, released=True)
        official = oracle["deletion"][row]
        assert curve == pytest.approx(official[~np.isnan(official)].tolist(), abs=1e-5)
        assert sum(curve) / len(curve) == pytest.approx(float(oracle["auc"][row]), abs=1e-5)


def test_parts_are_named_by_the_texts_that_the_released_code_names_without_transport(
    oracle: dict[str, np.ndarray],
) -> None:
    unit = F.normalize(torch.from_numpy(oracle["part_features"]).double(), dim=-1).mean(0)
    found = named_parts(unit @ F.normalize(torch.from_numpy(oracle["descriptors"]).double(), dim=-1).T, 3)
    for part in range(4):
        assert {at for at, parts in found.items() if part in parts} == set(oracle["concepts_plain"][part].tolist())


def test_texts_are_shared_out_between_parts_as_by_the_released_code(oracle: dict[str, np.ndarray]) -> None:
    logits = torch.from_numpy(oracle["sinkhorn_logits"]).double()
    plan = shared_out(logits / 2.5, logits.shape[1])
    assert np.abs(plan.numpy() - oracle["sinkhorn"]).max() < 1e-5
    unit = F.normalize(torch.from_numpy(oracle["part_features"]).double(), dim=-1).mean(0)
    cosines = unit @ F.normalize(torch.from_numpy(oracle["descriptors"]).double(), dim=-1).T
    found = named_parts(cosines, 3, shared_out(cosines, 150, 3))
    for part in range(4):
        assert {at for at, parts in found.items() if part in parts} == set(oracle["concepts_transport"][part].tolist())


def test_information_and_p_are_those_of_counting() -> None:
    """Every list of 3 of 8 details against a label's 4: the p-value is a frequency, the information that of two indicators."""
    expected = {0, 1, 2, 3}
    lists = [set(one) for one in itertools.combinations(range(8), 3)]
    for k in range(4):
        one = ListOverlap(k, 3, 4, 8)
        assert one.p == pytest.approx(sum(len(some & expected) >= k for some in lists) / len(lists))
        shown = next(some for some in lists if len(some & expected) == k)
        joint = {
            (a, b): sum((d in shown, d in expected) == (a, b) for d in range(8)) / 8 for a in (0, 1) for b in (0, 1)
        }
        whole = sum(
            p * math.log(p / ((joint[a, 0] + joint[a, 1]) * (joint[0, b] + joint[1, b])))
            for (a, b), p in joint.items()
            if p
        )
        entropy = -(3 / 8) * math.log(3 / 8) - (5 / 8) * math.log(5 / 8)
        assert abs(one.information) == pytest.approx(whole / entropy, abs=1e-12)
        assert (one.information > 0) == (k > 1.5)
    values = [ListOverlap(k, 15, 50, 4229).information for k in range(16)]
    assert values == sorted(values)
    assert ListOverlap(15, 15, 15, 4229).information == pytest.approx(1)
    assert ListOverlap(0, 0, 4, 8).information == 0


def test_curves_have_their_own_length_and_end_with_nothing() -> None:
    curve = deletion_curve([True, True, False], 5, 100)
    assert curve == (ListOverlap(2, 3, 5, 100).information, ListOverlap(1, 2, 5, 100).information, *curve[2:])
    assert curve[2] <= 0
    assert curve[3] == 0


def test_parts_are_pieces_of_one_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.eye(6)[:3].double()
    truth = torch.tensor([0] * 9 + [1] * 4 + [2] * 3)
    vectors = (middles[truth] + 0.05 * torch.randn(16, 6, generator=generator)) * torch.rand(
        16, 1, generator=generator
    ).add(0.1)
    assert clustered(vectors.double(), 3).tolist() == truth.tolist()
    assert clustered(torch.ones(5, 2).double(), 4).tolist() == [0] * 5
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    assert largest_piece(mask).nonzero().tolist() == [[0, 0], [0, 1], [1, 2]]


def test_parts_of_the_split_sum_to_what_the_patches_are_of_the_embedding() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2), tokenizer=Letters())
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = ["ab", "c d", "e f", "gh", "da", "c b"]
    found = ca.mutual(clip, pixels, ["xb", "de"], texts, parts=3, details=5, expected=2)
    unit = F.normalize(clip.encode_text(texts), dim=-1).double()
    patches = ca.decompose(clip, pixels).tokens(torch.eye(12)).sum((1, 2))[0, 1:].double().sum(0)
    whole = (unit - unit.mean(0)) @ patches
    all_parts = tuple(range(int(found.parts.max()) + 1))
    complete = [one for one in found.details if sorted(one.parts) == list(all_parts)]
    assert complete
    for one in complete:
        assert one.relevance == pytest.approx(float(whole[texts.index(one.text)]), abs=1e-6)


def test_circles_are_drawn_around_the_part_and_leave_the_rest_grey_or_blurred(
    demo: ca.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = torch.zeros(8, 8, dtype=torch.int64)
    parts[2:5, 2:5] = 1
    seen: list[torch.Tensor] = []
    encode = type(demo.vision).encode
    monkeypatch.setattr(type(demo.vision), "encode", lambda tower, x: seen.append(x) or encode(tower, x))
    picture = Image.fromarray(np.full((64, 64, 3), (0, 0, 200), np.uint8))
    pixels = demo.preprocess(picture)[None]
    vectors = circled(demo, pixels, parts)
    assert vectors.shape == (2, demo.vision.embed)
    (batch,) = seen
    std, mean = (torch.tensor(one).view(3, 1, 1) for one in (demo.preprocess.std, demo.preprocess.mean))
    rgb = ((batch * std + mean) * 255).round()
    red = (rgb[:, 0] > 250) & (rgb[:, 2] < 5)
    assert red[3:].flatten(1).any(1).all()
    rows, cols = red[3].nonzero().unbind(1)
    assert abs(float(rows.double().mean()) - 27.5) < 1.5  # the middle of patches 2 to 4
    assert abs(float(cols.double().mean()) - 27.5) < 1.5
    assert rgb[4, :, 0, 0].unique().numel() == 1  # grey outside
    assert rgb[4, 2, 27, 27] == 200
    unit = F.normalize(encode(demo.vision, batch[3:]).double(), dim=1)
    torch.testing.assert_close(vectors[1], unit.mean(0), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def demo() -> ca.Clip:
    return ca.load("demo")


def test_a_bird_on_water_lacks_the_sky_of_its_label_and_shares_water_with_fish(demo: ca.Clip) -> None:
    picture = next(
        one
        for one in open_dataset("world:2000:test")
        if one.meta["count"] == "one" and one.meta["shape"] == "bird" and one.meta["background"] == "water"
    )
    found = ca.mutual(demo, picture.data, "bird, fish")
    bird, fish = (next(one for one in found.labels if one.label == name) for name in ("bird", "fish"))
    assert any("sky" in one.text for one in bird.only_label)
    assert any("water" in one.text for one in bird.only_picture)
    assert any("water" in one.text for one in fish.shared)
    assert fish.overlap.information > bird.overlap.information
    assert all(not {"bird", "birds", "fish"} & set(one.text.split()) for one in found.details)
    assert "name a class" in found.notes[0]
    for label in found.labels:
        assert len(label.shared) + len(label.only_picture) == len(found.details) == label.overlap.shown
        assert len(label.shared) + len(label.only_label) == 15
        assert [one.place for one in (*label.shared, *label.only_label)].count(0) == 0
    assert found.labels[0].cosine >= found.labels[1].cosine


def test_other_towers_and_circles(demo: ca.Clip) -> None:
    resnet = ca.load(
        tiny_resnet.resnet_model(), tokenizer=lambda texts: torch.tensor([[1, 2 + len(t), 99] for t in texts])
    )
    size = resnet.preprocess.size[0]
    words = [letter * at for at, letter in enumerate("abcdefghij", 1)]
    found = ca.mutual(resnet, torch.randn(1, 3, size, size), ["x", "yyyyyyyyyyyyyy"], words, expected=4)
    assert found.parts.shape == (size // 32, size // 32)
    circle = ca.mutual(demo, examples()[0], "bird, fish", how="circle", measure="released", transport=100)
    assert torch.equal(circle.parts, ca.mutual(demo, examples()[0], "bird, fish").parts)
    assert circle.labels[0].curve[0] == pytest.approx(circle.labels[0].overlap.released)


def test_what_makes_no_sense_is_refused(demo: ca.Clip) -> None:
    for options, match in (({"how": "crop"}, "'split', 'circle'"), ({"measure": "x"}, "'information', 'released'")):
        with pytest.raises(BadSpec, match=match):
            ca.mutual(demo, examples()[0], "bird, fish", **options)
    for name in ("parts", "details", "expected"):
        number: dict[str, Any] = {name: 0}
        with pytest.raises(BadInput, match=f"{name}=1"):
            ca.mutual(demo, examples()[0], "bird, fish", **number)
    with pytest.raises(BadInput, match="two or more"):
        ca.mutual(demo, examples()[0], "bird")
    with pytest.raises(BadText, match="name no class"):
        ca.mutual(demo, examples()[0], "bird, fish", ["a bird", "red"])
    with pytest.raises(BadImage):
        ca.mutual(demo, "a bird", "bird, fish")
    with pytest.raises(BadImage):
        ca.mutual(demo, torch.randn(2, 3, 64, 64), "bird, fish")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["mutual", str(examples()[0]), "--classes", "bird, fish, star"]) == 0
    out = capsys.readouterr().out
    assert "only the label" in out
    folder = tmp_path / "clip-anatomy-mutual"
    assert {one.name for one in folder.iterdir()} == {"mutual.json", "mutual.png", "run.json"}
    numbers = json.loads((folder / "mutual.json").read_text())
    assert [len(one["shared"]) for one in numbers["labels"]] == [one["overlap"]["shared"] for one in numbers["labels"]]
    assert main(["mutual", str(examples()[0]), "-c", "bird, fish", "--measure", "released", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["labels"][0]["curve"]["of"] == "released"
    assert main(["mutual", str(examples()[0]), "-c", "bird"]) == 2
    assert "--classes" in capsys.readouterr().err
