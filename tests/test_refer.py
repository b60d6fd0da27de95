"""Which region a phrase names: masks of every kind, exact areas, the split restricted to regions, words of place, the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.world import World
from clip_anatomy.errors import BadImage, BadInput, BadSpec
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.maps.coco_masks import run_lengths
from clip_anatomy.maps.global_local import GLOBAL, global_local
from clip_anatomy.maps.phrases import read_phrase
from clip_anatomy.maps.regions import coverage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def scene() -> tuple[Image.Image, np.ndarray]:
    """A picture of one red object, and four masks of its quarters."""
    world = World(split="test", length=400)
    facts = world.facts(np.arange(400))
    at = int(
        np.flatnonzero((facts.count == 1) & (facts.position == 0) & (facts.colour[:, 0] == 0) & (facts.digit == 0))[0]
    )
    masks = np.zeros((4, 64, 64), bool)
    for quarter in range(4):
        masks[quarter, 32 * (quarter // 2) : 32 * (quarter // 2) + 32, 32 * (quarter % 2) : 32 * (quarter % 2) + 32] = (
            True
        )
    return Image.fromarray(world.batch(np.array([at])).images[0]), masks


def test_areas_are_counted_pixel_by_pixel() -> None:
    """Every pixel cut into a hundred, each hundredth looked up by the geometry's own function."""
    where, grid = Geometry(picture=(7, 10), resized=(9, 13), offset=(0, 2), size=(9, 9)), (3, 3)
    mask = np.random.default_rng(0).random((7, 10)) < 0.5
    counts, total, fine = np.zeros(grid), np.zeros(grid), 40
    for row in range(7 * fine):
        for col in range(10 * fine):
            y, x = where.to_model((row + 0.5) / fine, (col + 0.5) / fine)
            if 0 <= y < 9 and 0 <= x < 9:
                counts[int(y // 3), int(x // 3)] += mask[row // fine, col // fine]
                total[int(y // 3), int(x // 3)] += 1
    assert np.allclose(coverage(mask[None], where, grid)[0].reshape(grid), counts / total, atol=0.01)
    assert float(coverage(np.ones((1, 7, 10), bool), where, grid).min()) == pytest.approx(1.0)


def test_regions_share_the_split_and_words_sum(clip: ca.Clip, scene: tuple[Image.Image, np.ndarray]) -> None:
    """Masks that tile the picture: their scores by word, against the word maps of the same picture summed over each quarter."""
    picture, masks = scene
    found = ca.refer(clip, picture, "a red thing", masks, places=False)
    assert sorted(found.names) == [f"mask {at}" for at in range(4)]
    assert torch.allclose(found.by_word.sum(1), found.scores, atol=1e-9)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert float(found.scores.std(unbiased=False)) == pytest.approx(1.0)
    assert found.names[0] == "mask 0"
    assert found.mask[:32, :32].all()
    maps = ca.word_maps(clip, [picture], "a red thing").words.values[0].double()
    above = (maps - maps.mean((1, 2), keepdim=True)).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2)).flatten(1).T / 4
    total = above.sum(1)
    expected = (above - above.mean(0)) / total.std(unbiased=False)
    order = [int(name.removeprefix("mask ")) for name in found.names]
    assert torch.allclose(found.by_word, expected[order], atol=1e-4)


def test_masks_come_as_arrays_pngs_coco_and_as_sam_writes_them(
    clip: ca.Clip, scene: tuple[Image.Image, np.ndarray], tmp_path: Path
) -> None:
    picture, masks = scene
    whole = ca.refer(clip, picture, "a red thing", masks)
    folder = tmp_path / "masks"
    folder.mkdir()
    for at, mask in enumerate(masks):
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"q{at}.png")
    sam = [{"segmentation": run_lengths(mask), "area": int(mask.sum())} for mask in masks]
    (tmp_path / "sam.json").write_text(json.dumps(sam))
    picture.save(tmp_path / "p.png")
    images = [{"id": 7, "file_name": "other.png"}, {"id": 8, "file_name": "a/p.png"}]
    annotations = [{"id": at, "image_id": 8, "category_id": 1, **one} for at, one in enumerate(sam)]
    annotations.append({"id": 9, "image_id": 7, "category_id": 1, "segmentation": run_lengths(np.ones((2, 2), bool))})
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]})
    )
    for source in (torch.from_numpy(masks), list(masks), folder, tmp_path / "sam.json", tmp_path / "coco.json"):
        found = ca.refer(clip, tmp_path / "p.png", "a red thing", source)
        assert torch.allclose(found.scores, whole.scores)
        assert (found.masks == whole.masks).all()
    assert ca.refer(clip, tmp_path / "p.png", "a red thing", tmp_path / "coco.json").names[0].endswith("box")
    assert ca.refer(clip, picture, "a red thing", folder).names[0] == "q0"
    mine = ca.segment(clip, [tmp_path / "p.png"], ["a red thing"])
    (tmp_path / "mine.json").write_text(json.dumps(mine.to_coco()))
    assert (ca.refer(clip, tmp_path / "p.png", "a red thing", tmp_path / "mine.json").mask == mine.mask(0)).all()


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (np.zeros((2, 64, 64), bool), "no mask with a pixel"),
        (np.ones((1, 32, 64), bool), r"\[32, 64\]; the picture has \[64, 64\] pixels"),
        (np.ones((1, 64, 64)), "float64"),
        (np.zeros((0, 64, 64), bool), "no mask with a pixel"),
        ("nothing.json", "nothing.json"),
    ],
)
def test_masks_that_fit_no_picture_are_named(
    clip: ca.Clip, scene: tuple[Image.Image, np.ndarray], masks: Any, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        ca.refer(clip, scene[0], "a red thing", masks)


def test_odd_files_of_masks(clip: ca.Clip, scene: tuple[Image.Image, np.ndarray], tmp_path: Path) -> None:
    for content in (
        "",
        "[]",
        "{}",
        "[1]",
        '{"annotations": 3}',
        '[{"segmentation": {"size": [64, 64], "counts": "1"}}]',
        '{"images": [], "annotations": []}',
    ):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(BadInput, match="Type masks="):
            ca.refer(clip, scene[0], "a red thing", tmp_path / "m.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no PNG"):
        ca.refer(clip, scene[0], "a red thing", tmp_path / "empty")


def test_proposals_of_our_own_hold_the_thing(clip: ca.Clip) -> None:
    world = World(split="test", length=400)
    facts = world.facts(np.arange(400))
    best = []
    for at in np.flatnonzero((facts.count == 1) & (facts.digit == 0))[:12]:
        scenes = world.batch(np.array([at]))
        words = scenes.labels()
        found = ca.refer(clip, Image.fromarray(scenes.images[0]), f"a {words['colour'][0]} {words['shape'][0]}")
        truth = scenes.masks[0, 0]
        best.append(max(float((mask & truth).sum() / (mask | truth).sum()) for mask in found.masks))
        assert len({mask.tobytes() for mask in found.masks}) == len(found)
    assert float(np.mean(best)) > 0.6


def test_words_of_place(clip: ca.Clip, scene: tuple[Image.Image, np.ndarray]) -> None:
    """The same object four times: only the place tells."""
    patch = np.asarray(scene[0])[:32, :32]
    picture = Image.fromarray(np.tile(patch, (2, 2, 1)))
    for phrase, wanted in (
        ("the thing at the top left", 0),
        ("bottom right thing", 3),
        ("the right thing below", 3),
        ("thing on the upper right", 1),
    ):
        assert ca.refer(clip, picture, phrase, scene[1]).names[0] == f"mask {wanted}", phrase
    two = scene[1][[0, 3]]
    read = ca.refer(clip, picture, "a thing left of a thing", two).to_dict()["read"]
    assert (read["thing"], read["other"]) == (["thing"], ["thing (2)"])  # the second "a" is an article too
    assert ca.refer(clip, picture, "a thing left of a thing", two).names[0] == "mask 0"
    assert ca.refer(clip, picture, "a thing below a thing", two).names[0] == "mask 1"


def test_phrases_are_cut_at_their_words_of_place() -> None:
    for phrase, thing, places, other in (
        ("guy to the left of the red car", "guy", [(1, -1)], "red car"),
        ("person under an umbrella", "person", [(0, 1)], "umbrella"),
        ("cup on the right side of the picture", "cup", [(1, 1)], ""),
        ("left", "left", [(1, -1)], ""),
        ("a red circle", "a red circle", [], ""),
        ("", "", [], ""),
    ):
        words = tuple(phrase.split())
        read = read_phrase(words)
        assert " ".join(words[at] for at in read.thing) == thing
        assert list(read.places) == places
        assert " ".join(words[at] for at in read.other) == other


def test_the_example_with_sam_runs_as_it_stands(clip: ca.Clip, scene: tuple[Image.Image, np.ndarray]) -> None:
    from transformers import SamConfig, SamModel

    page = (Path(__file__).parents[1] / "docs" / "refer.md").read_text(encoding="utf-8")
    code: dict[str, Any] = {}
    exec(compile(page.split("```python\n# SAM\n")[1].split("```")[0], "refer.md", "exec"), code)
    small = {"hidden_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    sam = SamModel(
        SamConfig(
            vision_config={**small, "num_hidden_layers": 1, "image_size": 64, "patch_size": 16, "output_channels": 16, "mlp_dim": 16, "num_pos_feats": 8, "window_size": 2, "global_attn_indexes": [0]},
            prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
            mask_decoder_config={**small, "mlp_dim": 16, "num_hidden_layers": 1, "iou_head_hidden_dim": 16},
        )
    ).eval()  # fmt: skip
    masks = code["sam_masks"](sam, scene[0], side=2)
    assert (masks.shape, masks.dtype) == ((4, 64, 64), np.dtype(bool))
    there = masks if masks.any() else ~masks
    assert 1 <= len(ca.refer(clip, scene[0], "a red thing", there)) <= 4


def test_global_local_is_what_it_says(clip: ca.Clip, scene: tuple[Image.Image, np.ndarray]) -> None:
    """A mask of everything leaves the picture as it is: v times its embedding, and 1 − v times that of the squashed picture."""
    picture, masks = scene
    pixels = clip.pixels([picture])
    cover = torch.ones(1, 64, dtype=torch.float64)
    unit = F.normalize(clip.encode_image(pixels).double(), dim=-1)
    assert torch.allclose(global_local(clip, picture, pixels, np.ones((1, 64, 64), bool), cover), unit, atol=1e-5)
    assert 0.5 < GLOBAL < 1
    part = torch.zeros(2, 64, dtype=torch.float64)
    part[0, :20], part[1, 40] = 1, 0.1
    some = global_local(clip, picture, pixels, masks[:2], part)
    assert torch.allclose(some.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    assert float((some[0] - some[1]).norm()) > 0.01
    found = ca.refer(clip, picture, "a red thing", masks, method="global-local")
    assert len(found) == 4
    assert found.by_word.shape == (4, 0)


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_real_architectures_with_and_without_word_pieces(pool: str) -> None:
    def tokenizer(texts: list[str]) -> Tensor:
        letters = [[ord(c) % 90 for c in text[-10:]] for text in texts]
        return torch.tensor([[1, *row, *[2] * (10 - len(row)), 99] for row in letters])

    clip = ca.load(tiny.open_clip_model(layers=2, vision={"pool_type": pool}), tokenizer=tokenizer)
    before = (
        {name: value.clone() for name, value in clip.host.state_dict().items()}
        if hasattr(clip, "host") and clip.host is not None
        else {}
    )
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 80, 3), dtype=np.uint8))
    masks = np.zeros((2, 50, 80), bool)
    masks[0, :25], masks[1, 30:] = True, True
    for method in ("split", "global-local"):
        found = ca.refer(clip, picture, "whatever", masks, method=method)
        assert len(found) == 2
        assert torch.isfinite(found.scores).all()
    assert all(torch.equal(value, before[name]) for name, value in (clip.host.state_dict() if before else {}).items())
    assert len(ca.refer(clip, picture, "whatever")) >= 1


def test_what_cannot_be_meant_says_what_to_type(clip: ca.Clip, scene: tuple[Image.Image, np.ndarray]) -> None:
    with pytest.raises(BadSpec, match="split, global-local"):
        ca.refer(clip, scene[0], "a dog", method="sam")
    with pytest.raises(BadImage, match="preprocessed tensor"):
        ca.refer(clip, clip.pixels([scene[0]]), "a dog")  # pyright: ignore
    with pytest.raises(BadInput, match="holds no word"):
        ca.refer(clip, scene[0], " ")


def test_the_command_line(
    scene: tuple[Image.Image, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, masks = scene
    picture.save(tmp_path / "photo.png")
    (tmp_path / "masks").mkdir()
    for at, mask in enumerate(masks):
        Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / "masks" / f"q{at}.png")
    words = ["refer", str(tmp_path / "photo.png"), "a red thing at the top left", str(tmp_path / "masks")]
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    assert "q0" in capsys.readouterr().out
    assert {one.name for one in (tmp_path / "o").iterdir()} == {"refer.png", "mask.png", "refer.json", "run.json"}
    told = json.loads((tmp_path / "o" / "refer.json").read_text())
    assert told["read"] == {"thing": ["red", "thing"], "places": [[0, -1], [1, -1]], "other": []}
    assert told["regions"][0]["name"] == "q0"
    assert (np.asarray(Image.open(tmp_path / "o" / "mask.png")) == 255 * masks[0]).all()
    assert main([*words[:3], "--no-places", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read"]["places"] == []
    assert main(["refer", str(tmp_path / "photo.png"), "a", "nowhere"]) == 2


def test_words_are_weighed_by_their_share_of_the_phrase() -> None:
    from clip_anatomy.maps.refer import _directions

    clip, masks = ca.load("demo"), np.zeros((3, 64, 64), bool)
    for at in range(3):
        masks[at, 8 * at : 8 * at + 24, 10 * at : 10 * at + 30] = True
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    plain = ca.refer(clip, picture, "a red circle", masks)
    weighed = ca.refer(clip, picture, "a red circle", masks, weigh=True)
    _, parts, unit = _directions(clip, "a red circle")
    shares = (parts @ unit[0]).clamp_min(0)
    order = [plain.names.index(name) for name in weighed.names]
    raw = plain.by_word[order] * shares
    ratio = weighed.by_word.sum(1) / raw.sum(1)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-6, rtol=1e-5)  # but for one scale
    assert not torch.allclose(weighed.scores, plain.scores[order], atol=1e-3)
