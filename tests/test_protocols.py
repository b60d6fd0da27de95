"""Protocols: every preset end to end on miniatures, mIoU longhand, settings of papers, bad pictures, wrong settings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import minis
import numpy as np
import pytest
import tiny
import tiny_resnet
import torch
import torch.nn.functional as F
from longhand import bilinear
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.masked_datasets import open_masked
from clip_anatomy.evaluation.protocol_settings import class_texts
from clip_anatomy.evaluation.protocols import PAPERS, PROTOCOLS, ReferringSettings, SemanticSettings, paper_settings
from clip_anatomy.evaluation.run_protocol import run_protocol
from clip_anatomy.evaluation.sliding_windows import Sliding
from clip_anatomy.images.geometry import window_starts
from clip_anatomy.maps.heatmap import heatmap

pytestmark = pytest.mark.usefixtures("one_thread")

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
        (minis.MASKED | minis.LABELLED | minis.REFERRING)[PROTOCOLS[protocol].dataset](tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_runs_and_says_all_that_decides_it(protocol: str, clip: Any, mini: Any) -> None:
    kind = PROTOCOLS[protocol].settings
    prompts = {} if isinstance(kind, ReferringSettings) else {"prompts": 1}
    settings = SMALL if isinstance(kind, SemanticSettings) else prompts
    place = mini(protocol)
    found = run_protocol(clip, protocol, place, **settings)
    assert not found.partial
    assert not found.skipped
    assert found.pictures == len(open_masked(PROTOCOLS[protocol].dataset, place))
    assert all(0 <= value <= 1 for value in found.figures.values())
    told = json.dumps(found.to_dict(), allow_nan=False)
    for word in ("method", *prompts, "model", "weights", "patch", "data", "changed from the preset"):
        assert f'"{word}"' in told
    assert set(found.configuration["changed from the preset"]) <= {*settings}


@pytest.mark.parametrize("paper", PAPERS)
def test_settings_of_a_paper_are_taken_and_told(paper: str, clip: Any, mini: Any) -> None:
    place = mini("voc21")
    wanted = paper_settings(paper, "voc21")
    small = {"side": 48, "window": 32, "stride": 16}
    found = run_protocol(clip, "voc21", place, like=paper, prompts=1, **small)
    config = found.configuration
    for name, value in {**wanted, **small}.items():
        assert config[name] == value
    assert config["method"] == paper
    assert config["settings of"].startswith(PAPERS[paper].description)
    assert str(PAPERS[paper].reported["voc21"]) in config["mIoU reported there"]
    assert set(PAPERS[paper].reported) == set(PAPERS[paper].by_protocol) <= set(PROTOCOLS)
    # All presets of a paper are whole: windows hold patches of 16, thresholds only where there is a background.
    for protocol in PAPERS[paper].by_protocol:
        settings = replace(PROTOCOLS[protocol].settings, **paper_settings(paper, protocol))
        Sliding(settings.side, settings.window, settings.stride).check((16, 16))
        assert (settings.threshold is not None) == (protocol in ("voc21", "context60", "coco-object"))
    with pytest.raises(ca.errors.BadSpec, match="has none for potsdam. Type one of: voc21"):
        run_protocol(clip, "potsdam", place, like=paper)


def test_class_names_of_a_file_are_the_texts(clip: Any, mini: Any, tmp_path: Path) -> None:
    place = mini("voc20")
    file = tmp_path / "names.txt"
    data = open_masked("voc20", place)
    file.write_text("\n".join([*data.classes[:-1], "television, screen,monitor"]) + "\n")
    found = run_protocol(clip, "voc20", place, names=file, **SMALL)
    assert found.configuration["class names"].startswith("names.txt, 22 texts (SHA-256 ")
    words = class_texts(data, SemanticSettings(), file)
    assert words.texts[-3:] == ("television", "screen", "monitor")
    assert words.owner[-4:] == (18, 19, 19, 19)
    file.write_text("aeroplane\nbird\n")
    with pytest.raises(
        ca.errors.BadInput, match="has 2 lines for 20 classes of PASCAL VOC 2012 val, 20 classes. Type a file"
    ):
        run_protocol(clip, "voc20", place, names=file, **SMALL)
    with pytest.raises(ca.errors.BadInput, match="cannot be read"):
        run_protocol(clip, "voc20", place, names=tmp_path / "none.txt", **SMALL)
    minis.cod10k(tmp_path / "cod")
    with pytest.raises(ca.errors.BadSpec, match="names are read for protocols of mIoU only"):
        run_protocol(clip, "cod10k", tmp_path / "cod", names=file)


def test_miou_of_a_protocol_equals_the_longhand(clip: Any, mini: Any) -> None:
    place = mini("voc20")
    found = run_protocol(clip, "voc20", place, method="sclip", **SMALL)
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
        for top in window_starts(x.shape[1], 32, 16):
            for left in window_starts(x.shape[2], 32, 16):
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
    assert run_protocol(clip, "imagenet-seg-aligned", tmp_path, method=method, prompts=1).pictures == 3
    minis.sample(tmp_path)
    found = run_protocol(clip, "coco-sample", tmp_path, method=method, prompts=1, side=96, window=96, stride=96)
    assert found.pictures == 3


def test_what_cannot_be_measured_is_named_and_the_rest_is_done(clip: Any, mini: Any) -> None:
    place = mini("coco-sample")
    minis.grey(np.full((36, 48), 77), place / "masks" / "0.png")
    Image.new("L", (9, 9), 1).save(place / "masks" / "1.png")
    found = run_protocol(clip, "coco-sample", place, **SMALL)
    assert found.pictures == 1
    assert [name for name, _ in found.skipped] == ["0", "1"]
    assert "unknown ids: 77" in found.skipped[0][1]
    assert "9 × 9 pixels" in found.skipped[1][1]
    (place / "images" / "2.jpg").unlink()
    with pytest.raises(
        ca.errors.BadInput, match="none of the 3 pictures of .* could be measured. The first, 0: the mask"
    ):
        run_protocol(clip, "coco-sample", place, **SMALL)


def test_a_stopped_run_tells_what_it_knows(clip: Any, mini: Any) -> None:
    place = mini("coco-sample")
    calls: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        calls.append(what)
        if what.startswith("measuring") and done == 2:
            raise KeyboardInterrupt

    found = run_protocol(clip, "coco-sample", place, progress=report, **SMALL)
    assert found.partial
    assert found.pictures == 2
    alone = run_protocol(clip, "coco-sample", place, limit=3, **SMALL)
    assert alone.pictures == 3
    assert not alone.partial

    def at_once(what: str, done: int, total: int) -> None:
        if what.startswith("measuring"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_protocol(clip, "coco-sample", place, progress=at_once, **SMALL)


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
        run_protocol(clip, "coco-sample", mini("coco-sample"), **{"prompts": 1, **settings})
    with pytest.raises(ca.errors.BadSpec, match="protocol 'imagenet' is not known. Type one of: imagenet-seg-paper"):
        run_protocol(clip, "imagenet", ".")
