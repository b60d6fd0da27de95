"""The one picture loop, and the results that are made with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture_batches import NamedPicture, picture_batches
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.maps.map_set import map_set
from clip_anatomy.maps.masks import PackedLabels

SIZES = [(40, 40), (40, 80), (40, 40), (30, 30), (40, 80)]


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(len(SIZES))]
    for i, (path, (row, col)) in enumerate(zip(paths, SIZES, strict=True)):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (row, col, 3), np.uint8)).save(path)
    return paths


def test_batches_have_one_shape_and_bad_pictures_are_named(clip: ca.Clip, photos: list[Path]) -> None:
    photos[2].write_bytes(b"no picture")
    told: list[tuple[int, int | None]] = []
    failed: list[tuple[str, str]] = []
    found = list(
        picture_batches(
            clip, photos, "whole", 2, failed=failed, progress=lambda what, done, total: told.append((done, total))
        )
    )
    assert [batch.places for batch in found] == [(0, 3), (1, 4)]
    for batch in found:
        assert batch.pictures is not None
        assert [Path(one.name).name for one in batch.pictures] == [f"{place}.png" for place in batch.places]
    assert [Path(name).name for name, _ in failed] == ["2.png"]
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)
    with pytest.raises(BadImage, match=r"^image 2: "):
        list(picture_batches(clip, photos))
    with pytest.raises(BadImage, match="none of the 2 pictures could be read"):
        list(picture_batches(clip, ["missing.png", "gone.png"], failed=[]))
    with pytest.raises(BadImage, match="no picture was given"):
        list(picture_batches(clip, []))


def test_a_batch_is_handed_on_and_a_picture_may_have_a_name(clip: ca.Clip, photos: list[Path]) -> None:
    (batch,) = picture_batches(clip, [NamedPicture(photos[0], "mine", "a drawing")])
    assert list(picture_batches(clip, batch)) == [batch]
    maps = ca.heatmap(clip, batch, ["a bird"])
    assert maps.names == ("mine",)
    torch.testing.assert_close(maps.values, ca.heatmap(clip, photos[0], ["a bird"]).values)


def test_many_methods_read_each_picture_once(
    clip: ca.Clip, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    once = NamedPicture.read
    monkeypatch.setattr(NamedPicture, "read", lambda self, **more: (read.append(self.name), once(self, **more))[1])
    found = map_set(clip, photos, ["a bird", "a moon"], ["raw", "surgery"], size="whole", layers=True, words=True)
    assert sorted(read) == sorted(map(str, photos))
    for maps in found.methods:
        alone = ca.heatmap(clip, photos, ["a bird", "a moon"], maps.method, size="whole")
        torch.testing.assert_close(maps.values, alone.values, equal_nan=True)
    total = sum(layer.values for layer in found.layers)
    exact = ca.heatmap(clip, photos, ["a bird", "a moon"], size="whole").values
    torch.testing.assert_close(total, exact, equal_nan=True, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collection_is_read_by_the_same_loop(workers: int, clip: ca.Clip, photos: list[Path], tmp_path: Path) -> None:
    photos[2].write_bytes(b"no picture")
    failed: list[tuple[str, str]] = []
    found = list(picture_batches(clip, open_dataset(str(tmp_path)), None, 3, failed=failed, workers=workers))
    assert [batch.places for batch in found] == [(0, 1, 3), (4,)]
    assert [name for name, _ in failed] == ["2.png"]
    names = [one.name for batch in found for one in batch.pictures or ()]
    assert names == ["0.png", "1.png", "3.png", "4.png"]
    good = [path for path in photos if path.name != "2.png"]
    assert torch.equal(torch.cat([batch.pixels for batch in found]), clip.pixels(good))
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="holds no picture. Type a collection with"):
        list(picture_batches(clip, open_dataset(str(tmp_path / "none"))))


@pytest.mark.parametrize("verb", ["heatmap", "segment"])
def test_maps_and_masks_have_the_manner_of_results(verb: str, photos: list[Path], tmp_path: Path) -> None:
    photos[1].write_bytes(b"no picture")
    run = {"heatmap": ca.heatmap, "segment": ca.segment}[verb]
    found = run("demo", photos[:3], ["a bird", "a moon"], skip_bad=True)
    assert repr(found) == found.summary()
    assert len(json.loads(json.dumps(found.to_dict()))["images"]) == 2
    out = found.save(tmp_path / "out")
    held = json.loads((out / f"{verb}.json").read_text())
    assert [Path(one["image"]).name for one in held["failed"]] == ["1.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*held["files"], f"{verb}.json"])
    assert found.figure().width > 200
    assert found._repr_html_().startswith("<iframe srcdoc=")
    tensor = run("demo", torch.randn(1, 3, 64, 64), ["a bird"])
    assert tensor.summary()
    with pytest.raises(BadInput, match="cannot be drawn"):
        tensor.save(tmp_path / "other")


def test_masks_are_in_the_order_of_the_pictures(clip: ca.Clip, photos: list[Path]) -> None:
    masks = ca.segment(clip, photos, ["a bird", "a moon"], together=[("a bird", "a moon")])
    for i, path in enumerate(photos):
        alone = ca.segment(clip, path, ["a bird", "a moon"])
        assert np.array_equal(masks.labels[i], alone.labels[0])
        assert masks.thresholds[i] == pytest.approx(alone.thresholds[0])
        assert masks.names[i] == str(path)
    assert masks.to_dict()["images"][0]["together"][0]["text"] == "a bird + a moon"


def test_packed_labels_are_the_labels() -> None:
    packed, given = PackedLabels(), [np.full((3, 4), k, np.int16) for k in (-1, 0, 300)]
    for one in given:
        packed.add(one)
    assert all(np.array_equal(a, b) for a, b in zip(packed, given, strict=True))
    packed[1][:] = 9  # what is unpacked is one's own
    assert packed[1].max() == 0
    assert len(packed[1:]) == 2
