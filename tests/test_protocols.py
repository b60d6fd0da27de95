"""Protocols: the official figures, sliding windows longhand, every preset end to end on miniatures, bad pictures, the command."""

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import minis
import numpy as np
import pytest
import tiny
import tiny_resnet
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.measure.asked import class_words
from clip_anatomy.measure.datasets.registry import READERS, open_masked
from clip_anatomy.measure.foreground import (
    Foreground,
    aligned_mask,
    class_map,
    misaligned_mask,
    predicted_class,
    stretched_map,
)
from clip_anatomy.measure.protocols import PROTOCOLS, SemanticSettings
from clip_anatomy.measure.published import PUBLISHED, settings_like
from clip_anatomy.measure.run import run
from clip_anatomy.measure.sliding import Sliding, classes_of, grid_starts, scaled, sliding_scores
from clip_anatomy.model.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.show.cli import main

SMALL = {"side": 48, "window": 32, "stride": 16, "prompts": 1}


@pytest.fixture(scope="module")
def clip() -> Any:
    def tokenizer(texts: list[str]) -> Tensor:
        letters = [[ord(c) % 90 for c in text[-10:]] for text in texts]
        return torch.tensor([[1, *row, *[2] * (10 - len(row)), 99] for row in letters])

    return ca.load(tiny.open_clip_model(layers=2), tokenizer=tokenizer)


@pytest.fixture
def mini(tmp_path: Path) -> Any:
    def write(protocol: str) -> Path:
        (minis.MASKED | minis.LABELLED)[PROTOCOLS[protocol].dataset](tmp_path)
        return tmp_path

    return write


@pytest.fixture(scope="module")
def official(shared: Path) -> Any:
    """The oracle's model, its first eight pictures, and what the official code said of them."""
    import open_clip

    folder = shared / "oracles" / "vit-a"
    config = json.loads((folder / "oracle-vit.json").read_text())
    known = {k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    model = open_clip.CLIP(**known)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    inputs = np.load(folder / "inputs.npz")
    images, masks = torch.tensor(inputs["images"][:8]).float(), torch.tensor(inputs["masks"]).long()
    theirs = json.loads((folder / "results.json").read_text())["segmentation_first8"]
    return model.eval(), images, masks, torch.tensor(inputs["classifier"]).float(), theirs


def paper_maps(clip: Any, images: Tensor, classifier: Tensor) -> list[Tensor]:
    chosen = [predicted_class(clip, image[None], classifier) for image in images]
    return [
        stretched_map(class_map(clip, image[None], classifier, at), (64, 64))
        for image, at in zip(images, chosen, strict=True)
    ]


def test_the_paper_protocol_equals_the_official_code(official: Any) -> None:
    model, images, masks, classifier, theirs = official
    single = paper_maps(ca.load(model, parity=False), images, classifier)
    exact = paper_maps(ca.load(copy.deepcopy(model).double(), parity=False), images.double(), classifier)
    seen = [Foreground.empty(), Foreground.empty()]
    for a, b, mask in zip(single, exact, masks, strict=True):
        seen = [seen[0].add(a, mask), seen[1].add(b, mask)]
    for one in seen:
        assert one.precision.value == pytest.approx(theirs["mean_ap"], rel=1e-5)
    # In double precision all figures are theirs. In single precision a pixel of 32,768 lies 2e-8 from the threshold, and on
    # which side it falls hangs on the machine's order of summation.
    assert seen[1].confusion.pixel_accuracy == pytest.approx(theirs["pixel_accuracy"], abs=1e-9)
    assert seen[1].confusion.mean_iou == pytest.approx(theirs["mean_iou"], abs=1e-9)
    near = torch.stack([(a - a.mean()).abs() < 1e-6 for a in single])
    assert int(near.sum()) == 1
    other = torch.stack([(a > a.mean()) != (b > b.mean()) for a, b in zip(single, exact, strict=True)])
    assert not (other & ~near).any()
    assert abs(seen[0].confusion.pixel_accuracy - theirs["pixel_accuracy"]) * near.numel() <= 1 + 1e-6


def test_a_thousand_class_maps_minus_their_mean_are_one_direction(clip: Any) -> None:
    pixels, classifier = torch.randn(1, 3, 32, 32), F.normalize(torch.randn(30, 12), dim=-1)
    every = heatmap(clip, pixels, classifier, method="raw").values[0]
    tokens = every[7] - every.mean(0)
    one = class_map(clip, pixels, classifier, 7, "raw")
    ratio = tokens / one  # of another length, so of another scale
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(36, 48), (50, 40), (64, 64), (31, 97)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_aligned_masks_go_where_the_picture_goes(size: tuple[int, int], resize: Any) -> None:
    mask = minis.blocks(np.random.default_rng(0), size, [0, 1])
    mask[10:22, 4:30] = 1
    preprocess = Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD, resize=resize, fill=128)
    where = preprocess.geometry(size[1], size[0])
    ours = aligned_mask(mask, where)
    shown = preprocess(Image.fromarray((mask * 255).astype(np.uint8)))[0] * OPENAI_STD[0] + OPENAI_MEAN[0]
    # Where the picture is plain (no border of an object, no padding within two pixels), it is what the mask says.
    plain = (-F.max_pool2d(-shown[None], 5, 1, 2)[0] > 0.95).long() - (
        F.max_pool2d(shown[None], 5, 1, 2)[0] < 0.05
    ).long()
    assert (ours[plain == 1] == 1).all()
    assert (ours[plain == -1] == 0).all()
    assert int((plain != 0).sum()) > 80
    assert int((ours < 0).sum()) == 32 * 32 - int(np.prod([min(n, 32) for n in where.resized]))
    if resize == "shortest" and size[0] == size[1]:
        assert torch.equal(ours, misaligned_mask(mask, where).long())


def bilinear(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_LINEAR longhand: the nearest four pixels of each place, whatever the scale."""

    def along(length: int, target: int) -> np.ndarray:
        shares = np.zeros((target, length))
        for at in range(target):
            place = max((at + 0.5) * length / target - 0.5, 0)
            low = min(int(place), length - 1)
            shares[at, low] += 1 - (place - low)
            shares[at, min(low + 1, length - 1)] += place - low
        return shares

    rows, cols = along(levels.shape[0], size[0]), along(levels.shape[1], size[1])
    return np.rint(np.einsum("ri,cj,ijk->rck", rows, cols, levels.astype(float)))


def test_pictures_are_scaled_as_opencv_does() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (37, 52, 3), dtype=np.uint8)
    preprocess = Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD)
    for side in (16, 37, 61):
        pixels = scaled(Image.fromarray(levels), side, preprocess)
        mean, std = (torch.tensor(x)[:, None, None] for x in (OPENAI_MEAN, OPENAI_STD))
        ours = ((pixels * std + mean) * 255).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours, bilinear(levels, ours.shape[:2]), atol=1.001)  # a half may round either way
        assert np.abs(ours - bilinear(levels, ours.shape[:2])).mean() < 0.01


def test_sliding_windows_equal_the_longhand() -> None:
    torch.manual_seed(0)
    pixels, how = torch.randn(3, 50, 75), Sliding(side=50, window=32, stride=16)
    weights = torch.randn(5, 3)

    def score(windows: Tensor) -> Tensor:
        return torch.einsum("tc,nchw->nthw", weights, F.avg_pool2d(windows, 8))

    total, count = torch.zeros(5, 50, 75), torch.zeros(50, 75)
    for row in range(3):  # mmsegmentation's own arithmetic
        for col in range(4):
            bottom, right = min(row * 16 + 32, 50), min(col * 16 + 32, 75)
            top, left = max(bottom - 32, 0), max(right - 32, 0)
            patches = score(pixels[None, :, top:bottom, left:right])
            total[:, top:bottom, left:right] += F.interpolate(patches, (32, 32), mode="bilinear")[0]
            count[top:bottom, left:right] += 1
    scores = sliding_scores(pixels, how, score, batch=3)
    torch.testing.assert_close(scores, total / count)
    # And the class of every original pixel, in one piece.
    logits = F.interpolate(scores[None], (61, 83), mode="bilinear")[0] * 9
    probability = logits.softmax(0)
    by_class = torch.stack([probability[[0, 3]].amax(0), probability[1], probability[[2, 4]].amax(0)])
    expected = by_class.argmax(0)
    owner = [0, 1, 2, 0, 2]
    assert torch.equal(classes_of(scores, (61, 83), owner, logit_scale=9.0), expected)
    expected = torch.where(by_class.amax(0) < 0.4, 1, expected)
    said = classes_of(scores, (61, 83), owner, logit_scale=9.0, threshold=0.4, background=1)
    assert torch.equal(said, expected)


def test_a_class_of_too_little_area_gives_way_to_the_next_best() -> None:
    torch.manual_seed(0)
    scores, owner = torch.randn(6, 9, 12), [0, 0, 1, 2, 3, 3]
    scores[:, :, :9] += torch.tensor([0, 0, 3.0, 0, 0, 0])[:, None, None]
    logits = F.interpolate(scores[None], (18, 30), mode="bilinear")[0] * 2
    probability = logits.softmax(0)
    by_class = torch.stack([probability[:2].amax(0), probability[2], probability[3], probability[4:].amax(0)])
    first = by_class.argmax(0)
    pixels = torch.bincount(first.flatten(), minlength=4)[1:]
    small = [at + 1 for at in range(3) if pixels[at] <= 0.1 * pixels.sum()]
    assert small
    assert small != [1, 2, 3]
    by_class[small] = 0
    expected = torch.where(by_class.amax(0) < 0.35, 0, by_class.argmax(0))
    assert not torch.equal(expected, first)
    said = classes_of(scores, (18, 30), owner, logit_scale=2.0, threshold=0.35, area=0.1, background=0)
    assert torch.equal(said, expected)
    # And where every class is too small, all is background, with or without a threshold.
    nothing = classes_of(scores[2:], (18, 30), [1, 2, 3, 3], logit_scale=2.0, area=1.0, background=0)
    assert not nothing.any()


def test_many_texts_of_a_large_picture_are_decided_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    scores, owner = torch.randn(11, 7, 9), [*range(11)]
    whole = classes_of(scores, (20, 31), owner, logit_scale=3.0, threshold=0.3, background=4)
    monkeypatch.setattr("clip_anatomy.measure.sliding.BAND_BYTES", 4 * 20 * 31 * 2)
    assert torch.equal(classes_of(scores, (20, 31), owner, logit_scale=3.0, threshold=0.3, background=4), whole)


def test_windows_cover_everything_and_stay_inside() -> None:
    for length in range(10, 200, 7):
        starts = grid_starts(length, 32, 16)
        assert starts[0] == 0
        assert starts[-1] == max(0, length - 32)
        assert all(b - a <= 16 for a, b in pairwise(starts))


def test_narrow_pictures_are_filled_up_and_cut_again() -> None:
    seen: list[tuple[int, ...]] = []

    def score(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return F.avg_pool2d(windows, 8)

    assert sliding_scores(torch.randn(3, 20, 40), Sliding(20, 32, 16), score).shape == (3, 20, 40)
    assert seen == [(2, 3, 32, 32)]
    wide = scaled(Image.new("RGB", (9000, 30)), 336, Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD))
    assert wide.shape == (3, 7, 2048)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_runs_and_says_all_that_decides_it(protocol: str, clip: Any, mini: Any) -> None:
    settings = SMALL if isinstance(PROTOCOLS[protocol].settings, SemanticSettings) else {"prompts": 1}
    place = mini(protocol)
    found = run(clip, protocol, place, **settings)
    assert not found.partial
    assert not found.skipped
    assert found.pictures == len(open_masked(PROTOCOLS[protocol].dataset, place))
    assert all(0 <= value <= 1 for value in found.figures.values())
    told = json.dumps(found.to_dict(), allow_nan=False)
    for word in ("method", "prompts", "model", "weights", "patch", "data", "changed from the preset"):
        assert f'"{word}"' in told
    assert set(found.configuration["changed from the preset"]) <= {*settings}


@pytest.mark.parametrize("paper", PUBLISHED)
def test_settings_of_a_paper_are_taken_and_told(paper: str, clip: Any, mini: Any) -> None:
    place = mini("voc21")
    wanted = settings_like(paper, "voc21")
    small = {"side": 48, "window": 32, "stride": 16}
    found = run(clip, "voc21", place, like=paper, prompts=1, **small)
    config = found.configuration
    for name, value in {**wanted, **small}.items():
        assert config[name] == value
    assert config["method"] == paper
    assert config["settings of"].startswith(PUBLISHED[paper].told)
    assert str(PUBLISHED[paper].reported["voc21"]) in config["mIoU reported there"]
    assert set(PUBLISHED[paper].reported) == set(PUBLISHED[paper].by_protocol) <= set(PROTOCOLS)
    # All presets of a paper are whole: windows hold patches of 16, thresholds only where there is a background.
    for protocol in PUBLISHED[paper].by_protocol:
        settings = replace(PROTOCOLS[protocol].settings, **settings_like(paper, protocol))
        Sliding(settings.side, settings.window, settings.stride).check((16, 16))
        assert (settings.threshold is not None) == (protocol in ("voc21", "context60", "coco-object"))
    with pytest.raises(ca.errors.BadSpec, match="has none for potsdam. Type one of: voc21"):
        run(clip, "potsdam", place, like=paper)


def test_class_names_of_a_file_are_the_texts(clip: Any, mini: Any, tmp_path: Path) -> None:
    place = mini("voc20")
    file = tmp_path / "names.txt"
    data = open_masked("voc20", place)
    file.write_text("\n".join([*data.classes[:-1], "television, screen,monitor"]) + "\n")
    found = run(clip, "voc20", place, names=file, **SMALL)
    assert found.configuration["class names"].startswith("names.txt, 22 texts (SHA-256 ")
    words = class_words(data, SemanticSettings(), file)
    assert words.texts[-3:] == ("television", "screen", "monitor")
    assert words.owner[-4:] == (18, 19, 19, 19)
    file.write_text("aeroplane\nbird\n")
    with pytest.raises(
        ca.errors.BadInput, match="has 2 lines for 20 classes of PASCAL VOC 2012 val, 20 classes. Type a file"
    ):
        run(clip, "voc20", place, names=file, **SMALL)
    with pytest.raises(ca.errors.BadInput, match="cannot be read"):
        run(clip, "voc20", place, names=tmp_path / "none.txt", **SMALL)
    minis.cod10k(tmp_path / "cod")
    with pytest.raises(ca.errors.BadSpec, match="names are read for protocols of mIoU only"):
        run(clip, "cod10k", tmp_path / "cod", names=file)


def test_miou_of_a_protocol_equals_the_longhand(clip: Any, mini: Any) -> None:
    place = mini("voc20")
    found = run(clip, "voc20", place, method="sclip", **SMALL)
    data = open_masked("voc20", place)
    texts = clip.encode_text(list(data.classes), templates=["a photo of a {}."])
    truth, said = [], []
    for entry in data.entries:
        image, mask = entry.picture(), entry.mask()
        cols, rows = image.size
        factor = 48 / min(rows, cols)
        levels = bilinear(np.array(image), (round(rows * factor), round(cols * factor)))
        x = (
            torch.tensor(levels).permute(2, 0, 1) / 255 - torch.tensor(clip.preprocess.mean)[:, None, None]
        ).float() / (torch.tensor(clip.preprocess.std)[:, None, None])
        total, count = torch.zeros(20, *x.shape[1:]), torch.zeros(x.shape[1:])
        for top in grid_starts(x.shape[1], 32, 16):
            for left in grid_starts(x.shape[2], 32, 16):
                values = heatmap(clip, x[None, :, top : top + 32, left : left + 32], texts, method="sclip").values
                total[:, top : top + 32, left : left + 32] += F.interpolate(values, (32, 32), mode="bilinear")[0]
                count[top : top + 32, left : left + 32] += 1
        full = F.interpolate((total / count)[None], mask.shape, mode="bilinear")[0].argmax(0).numpy()
        truth.append(mask[mask >= 0])
        said.append(full[mask >= 0])
    a, b = np.concatenate(truth), np.concatenate(said)
    theirs = jaccard_score(a, b, labels=np.union1d(a, b), average="macro")
    assert found.figures["mIoU"] == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("method", ["decomposition", "surgery"])
def test_protocols_run_on_a_clip_resnet(method: str, tmp_path: Path) -> None:
    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([[1, *[ord(c) % 90 for c in text[-8:].rjust(8)], 99] for text in texts])

    clip = ca.load(tiny_resnet.resnet_model(), tokenizer=tokenizer)
    minis.imagenet_seg(tmp_path)
    assert run(clip, "imagenet-seg-aligned", tmp_path, method=method, prompts=1).pictures == 3
    minis.sample(tmp_path)
    found = run(clip, "coco-sample", tmp_path, method=method, prompts=1, side=96, window=96, stride=96)
    assert found.pictures == 3


def test_what_cannot_be_measured_is_named_and_the_rest_is_done(clip: Any, mini: Any) -> None:
    place = mini("coco-sample")
    minis.grey(np.full((36, 48), 77), place / "masks" / "0.png")
    Image.new("L", (9, 9), 1).save(place / "masks" / "1.png")
    found = run(clip, "coco-sample", place, **SMALL)
    assert found.pictures == 1
    assert [name for name, _ in found.skipped] == ["0", "1"]
    assert "unknown ids: 77" in found.skipped[0][1]
    assert "9 × 9 pixels" in found.skipped[1][1]
    (place / "images" / "2.jpg").unlink()
    with pytest.raises(
        ca.errors.BadInput, match="none of the 3 pictures of .* could be measured. The first, 0: the mask"
    ):
        run(clip, "coco-sample", place, **SMALL)


def test_a_stopped_run_tells_what_it_knows(clip: Any, mini: Any) -> None:
    place = mini("coco-sample")
    calls: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        calls.append(what)
        if what.startswith("measuring") and done == 2:
            raise KeyboardInterrupt

    found = run(clip, "coco-sample", place, report=report, **SMALL)
    assert found.partial
    assert found.pictures == 2
    alone = run(clip, "coco-sample", place, limit=3, **SMALL)
    assert alone.pictures == 3
    assert not alone.partial

    def at_once(what: str, done: int, total: int) -> None:
        if what.startswith("measuring"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clip, "coco-sample", place, report=at_once, **SMALL)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"methods": "raw"}, "has no setting 'methods'. Type one of: method, side"),
        ({"method": "lime"}, "'lime' is not known. Type one of"),
        ({"window": 30}, "30 pixels hold no whole patches of 8. Type: window=24"),
        ({"stride": 300}, "leave gaps. Type: stride=112"),
        ({"threshold": 1.5}, "threshold=1.5 is no share. Type a number from 0 to 1"),
        ({"logit_scale": -1.0}, "turns the order of the classes"),
        ({"like": "lime"}, "no settings like 'lime'. Type one of: sclip, clearclip, naclip"),
        ({"prompts": 3}, "no list of 3 prompts. Type: prompts=80 or prompts=1"),
        ({"limit": 0}, "at least one picture"),
    ],
)
def test_wrong_settings_say_what_to_type(settings: dict[str, Any], says: str, clip: Any, mini: Any) -> None:
    with pytest.raises(ca.errors.BadSpec, match=says):
        run(clip, "coco-sample", mini("coco-sample"), **{"prompts": 1, **settings})
    with pytest.raises(ca.errors.BadSpec, match="protocol 'imagenet' is not known. Type one of: imagenet-seg-paper"):
        run(clip, "imagenet", ".")


def test_bench_lists_its_protocols(capsys: Any) -> None:
    assert main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in PROTOCOLS)
    assert main(["bench", "--list", "--json"]) == 0
    assert set(PROTOCOLS) <= set(json.loads(capsys.readouterr().out))
    assert set(READERS) == {p.dataset for p in PROTOCOLS.values()}


def test_bench_of_a_protocol(capsys: Any, mini: Any) -> None:
    place = mini("coco-sample")
    words = ["bench", f"coco-sample:{place}", "--prompts", "1", "--side", "32", "--window", "32", "--stride", "32"]
    assert main([*words, "--method", "raw", "--classes"]) == 0
    said = capsys.readouterr().out
    for word in ("logit_scale", "brick wall", "mIoU", "pictures measured", "changed from the preset"):
        assert word in said
    (place / "masks" / "1.png").write_bytes(b"")
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["skipped"][0]["id"] == "1"
    assert "skipped 1: the mask" in err


def test_bench_compares_methods_under_one_protocol(capsys: Any, mini: Any) -> None:
    words = ["bench", f"cod10k:{mini('cod10k')}", "--method", "raw", "--method", "surgery"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outcomes"]
    assert [one["configuration"]["method"] for one in found] == ["raw", "surgery"]
    assert main(words) == 0
    out = capsys.readouterr().out
    for one in found:
        assert f"{one['figures']['MAE']:.3f}" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["voc20"], "voc20 needs its data set: clip-anatomy bench voc20 PATH. Get VOCtrainval"),
        (["imagenet"], "'imagenet' is not known. Type one of: maps, imagenet-seg-paper"),
        (["maps", "--pictures", "0"], "--pictures 0: at least one"),
        (["maps", "--side", "9"], "--side is not an option of maps"),
        (["maps", "nowhere"], "nowhere is not a folder of pictures with masks: it is not there"),
        (["coco-sample", "nowhere", "--threshold", "high"], "--threshold high is no number"),
        (
            ["coco-sample", "nowhere", "--text", "a dog"],
            "--text is not an option of coco-sample. Type one of: --method",
        ),
    ],
)
def test_bench_says_what_to_type(words: list[str], says: str, capsys: Any) -> None:
    assert main(["bench", *words]) == 2
    assert says in capsys.readouterr().err
