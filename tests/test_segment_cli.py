"""`clip-anatomy segment`: files that agree with each other and with the Python API, and bad input."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.point_prompts import Prompts
from clip_anatomy.maps.segment import segment
from clip_anatomy.report.point_marks import marked

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["-t", "a green circle", "-t", "a yellow moon"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    shutil.copy(next(p for p in examples() if p.name == "two_kinds.png"), place)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8)).save(place / "wide.png")
    return place


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert main(["segment", str(folder), *TEXTS, "--background", "brick", "--refine", "pamr", "--out", str(out)]) == 0
    return out


def test_every_file_says_the_same(folder: Path, done: Path) -> None:
    held = json.loads((done / "segment.json").read_text())
    assert sorted(p.name for p in done.iterdir()) == sorted([*held["files"], "segment.json", "run.json"])
    arrays = np.load(done / "masks.npz", allow_pickle=False)
    assert [Path(name).name for name in arrays["images"]] == ["two_kinds.png", "wide.png"]
    assert arrays["texts"].tolist() == ["a green circle", "a yellow moon"]
    clip = ca.load("demo")
    for i, name in enumerate(["two_kinds.png", "wide.png"]):
        labels = arrays[f"labels_{i}"]
        with (
            Image.open(done / f"{i:03d}-{name[:-4].replace('_', '-')}-mask.png") as mask,
            Image.open(folder / name) as seen,
        ):
            assert mask.size == seen.size
            assert np.array_equal(np.asarray(mask), labels)
        masks = segment(clip, folder / name, arrays["texts"].tolist(), background=["brick"], refine="pamr")
        assert np.array_equal(masks.labels[0], labels)
        for k, text in enumerate(masks.texts):
            assert held["images"][i]["shares"][text] == pytest.approx((labels == k + 1).mean(), abs=1e-5)
    assert "refined by pamr" in held["how"]
    assert "background texts 'brick'" in held["how"]
    assert "refined by pamr" in (done / "index.html").read_text()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_pycocotools_reads_the_masks(done: Path) -> None:
    module = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = module.COCO(str(done / "masks.coco.json"))
    arrays = np.load(done / "masks.npz", allow_pickle=False)
    assert theirs.anns
    for annotation in theirs.anns.values():
        labels = arrays[f"labels_{annotation['image_id'] - 1}"]
        assert np.array_equal(theirs.annToMask(annotation).astype(bool), labels == annotation["category_id"])
    assert sum(a["area"] for a in theirs.anns.values()) == sum((arrays[f"labels_{i}"] > 0).sum() for i in (0, 1))


def test_prompts_lie_in_the_pictures(done: Path) -> None:
    held = json.loads((done / "prompts.json").read_text())
    for one in held["images"]:
        asked = [*one["prompts"], *one["together"]]
        assert [p["text"] for p in asked] == ["a green circle", "a yellow moon", "a green circle + a yellow moon"]
        for prompts in asked:
            assert len(prompts["point_coords"]) == len(prompts["point_labels"])
            for x, y in prompts["point_coords"]:
                assert 0 <= x <= one["width"]
                assert 0 <= y <= one["height"]


def test_groups_of_texts_are_prompted_together(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["segment", str(folder / "two_kinds.png"), *TEXTS, "-t", "brick", "--json"]
    assert main([*words, "--together", "brick + a green circle", "--together", "a yellow moon"]) == 0
    told = json.loads(capsys.readouterr().out)["images"][0]
    assert [p["text"] for p in told["together"]] == ["brick + a green circle", "a yellow moon"]
    masks = segment(ca.load("demo"), folder / "two_kinds.png", ["a green circle", "a yellow moon", "brick"])
    assert told["together"][0] == masks.prompts(0, "brick", "a green circle").to_dict()
    assert told["together"][1] == told["prompts"][1]
    assert main([*words, "--together", "brick + wood"]) == 2
    assert "'wood' is not among the texts. Type also: --text \"wood\"" in capsys.readouterr().err


def test_json_alone_writes_nothing_and_equals_the_files(
    folder: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["segment", str(folder), *TEXTS, "--background", "brick", "--refine", "pamr", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["coco"] == json.loads((done / "masks.coco.json").read_text())
    assert [one["prompts"] for one in told["images"]] == [
        one["prompts"] for one in json.loads((done / "prompts.json").read_text())["images"]
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_crop_leaves_pixels_unlabelled(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["segment", str(folder / "wide.png"), "-t", "a bird", "--size", "crop", "--out", str(out)]
    assert main(words) == 0
    assert "looked at: the model's crop" in capsys.readouterr().err
    with Image.open(out / "000-wide-mask.png") as mask:
        levels = np.asarray(mask)
    assert (levels[:, :20] == 255).all()
    assert (levels[:, 40:50] != 255).all()
    assert json.loads((out / "segment.json").read_text())["images"][0]["unseen"] == pytest.approx(50 / 90, abs=0.01)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "x"], "Type: clip-anatomy segment photo.jpg"),
        (["PHOTO", "-t", "x", "--threshold", "ostu"], "Type one of: otsu, mean"),
        (["PHOTO", "-t", "x", "--refine", "crf"], "Type one of: pamr"),
        (["PHOTO", "-t", "x", "--method", "all"], "one method's maps"),
        (["PHOTO", "-t", "x", "--background", "x"], "a text and a background text"),
        (["PHOTO", "-t", " "], "text 1 is empty"),
        (["missing.png", "-t", "x"], "no such file"),
    ],
)
def test_bad_input_is_one_line(  # noqa: PLR0917
    words: list[str],
    says: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["segment", *(str(folder / "wide.png") if word == "PHOTO" else word for word in words)]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_pictures_are_named_and_the_rest_is_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (2, 3)).save(tmp_path / "tiny.png")
    pictures = [str(tmp_path / "broken.jpg"), str(folder / "wide.png"), str(tmp_path / "tiny.png")]
    assert main(["segment", *pictures, "-t", "a bird", "--out", str(tmp_path / "out"), "--strict"]) == 1
    assert "not read: " in capsys.readouterr().err
    held = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert [Path(one["image"]).name for one in held["images"]] == ["wide.png", "tiny.png"]
    assert np.load(tmp_path / "out" / "masks.npz")["labels_1"].shape == (3, 2)


def test_marks_stand_where_the_prompts_are() -> None:
    asked = Prompts("a", ((20.0, 10.0), (90.0, 50.0)), (1, 0), ((10.0, 5.0, 40.0, 30.0),), (60, 120))
    drawn = np.asarray(marked(Image.new("RGB", (120, 60), (128, 128, 128)), asked)).astype(int)
    scale = drawn.shape[1] / 120
    green, red = drawn[..., 1] - drawn[..., 0] > 60, drawn[..., 0] - drawn[..., 1] > 100
    red[: int(32 * scale), : int(42 * scale)] = False  # the box is orange
    for found, (x, y) in ((green, (20, 10)), (red, (90, 50))):
        rows, cols = np.nonzero(found)
        assert cols.mean() / scale == pytest.approx(x, abs=1)
        assert rows.mean() / scale == pytest.approx(y, abs=1)


def test_boxes_of_a_strip_and_of_a_single_pixel_are_drawn() -> None:
    for size, box in (
        ((3000, 20), (10.0, 3.0, 20.0, 18.0)),
        ((2000, 2), (5.0, 0.0, 6.0, 1.0)),
        ((1, 1), (0.0, 0.0, 1.0, 1.0)),
    ):
        asked = Prompts("a", ((0.5, 0.5),), (1,), (box,), (size[1], size[0]))
        drawn = np.asarray(marked(Image.new("RGB", size, (128, 128, 128)), asked))
        assert (drawn != 128).any()


def test_photographs_are_cut_out(shared: Path, tmp_path: Path) -> None:
    picture = sorted((shared / "data" / "coco" / "images").glob("*.jpg"))[0]
    out = tmp_path / "out"
    words = ["segment", str(picture), "-t", "a person", "-t", "wood", "--method", "surgery", "--refine", "pamr"]
    assert main([*words, "--out", str(out)]) == 0
    with Image.open(picture) as seen, Image.open(next(out.glob("*-mask.png"))) as mask:
        assert mask.size == seen.size
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
