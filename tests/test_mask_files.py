"""Masks as files: run lengths and JSON against pycocotools, PNG and npz read back."""

import contextlib
import io
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from clip_anatomy.data.picture_batches import NamedPicture
from clip_anatomy.maps.coco_masks import run_lengths
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.masks import Masks, MaskSettings
from clip_anatomy.maps.thresholds import UNSEEN
from clip_anatomy.report.mask_files import class_colours, painted, png, write_npz

pytestmark = pytest.mark.usefixtures("one_thread")

# pycocotools 2.0's own arrays do not take numpy 2's `copy` argument.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def masks_of(*labels: np.ndarray, texts: tuple[str, ...] = ("a cat", "ein Bär 熊")) -> Masks:
    how = MaskSettings("decomposition", {}, "otsu", (), "whole", "picture", None)
    maps = Maps(torch.zeros(len(labels), len(texts), 2, 2), "decomposition", texts)
    return Masks(tuple(x.astype(np.int16) for x in labels), texts, maps, (0.0,) * len(labels), how)


@given(arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans()))
@settings(max_examples=200, deadline=None)
def test_run_lengths_equal_pycocotools(mask: np.ndarray) -> None:
    pycocotools = pytest.importorskip("pycocotools.mask")
    theirs = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = run_lengths(mask)
    assert ours["counts"].encode() == theirs["counts"]
    assert ours["size"] == list(theirs["size"])
    assert np.array_equal(pycocotools.decode(ours).astype(bool), mask)


def test_run_lengths_of_a_large_mask() -> None:
    pycocotools = pytest.importorskip("pycocotools.mask")
    rows, cols = np.mgrid[:1200, :1600]
    mask = (rows - 600) ** 2 + (cols - 800) ** 2 < 300**2
    assert (
        run_lengths(mask)["counts"].encode() == pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    )


def test_pycocotools_loads_the_json(tmp_path: Path) -> None:
    module = pytest.importorskip("pycocotools.coco")
    first = np.zeros((30, 50), int)
    first[5:20, 10:30], first[22:, :4], first[:, 45:] = 1, 2, UNSEEN
    second = np.zeros((20, 20), int)
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(masks_of(first, second).to_coco(["a.jpg", "b.jpg"])))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = module.COCO(str(path))
    assert [theirs.cats[k]["name"] for k in (1, 2)] == ["a cat", "ein Bär 熊"]
    found = theirs.loadAnns(theirs.getAnnIds(imgIds=[1]))
    assert len(found) == 2
    assert theirs.getAnnIds(imgIds=[2]) == []
    for annotation in found:
        mask = theirs.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, first == annotation["category_id"])
        assert annotation["area"] == mask.sum()
        x, y, w, h = annotation["bbox"]
        assert mask[y : y + h, x : x + w].sum() == mask.sum()
    assert found[0]["bbox"] == [10, 5, 20, 15]


def test_a_png_holds_the_labels_and_their_words() -> None:
    labels = np.array([[0, 1, 2], [2, UNSEEN, 0]], np.int16)
    image = Image.open(BytesIO(png(labels, ["a cat", "ein Bär 熊"])))
    assert image.mode == "P"
    assert np.asarray(image).tolist() == [[0, 1, 2], [2, 255, 0]]
    assert json.loads(image.text["labels"]) == ["a cat", "ein Bär 熊"]  # pyright: ignore
    assert image.convert("RGB").getpixel((1, 0)) == class_colours(1)[0]
    assert image.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


def test_a_png_of_many_classes_is_16_bit() -> None:
    labels = np.array([[0, 299], [300, UNSEEN]], np.int16)
    image = Image.open(BytesIO(png(labels, [f"class {k}" for k in range(300)])))
    assert np.asarray(image).tolist() == [[0, 299], [300, 65535]]


def test_an_npz_is_read_without_pickle() -> None:
    labels = np.array([[0, 1], [2, UNSEEN]])
    masks = masks_of(labels, labels.T)
    pictures = tuple(NamedPicture(name, name) for name in ("a.jpg", "ü.jpg"))
    file = BytesIO()
    write_npz(file, replace(masks, maps=replace(masks.maps, pictures=pictures)))
    file.seek(0)
    held = np.load(file, allow_pickle=False)
    assert held["images"].tolist() == ["a.jpg", "ü.jpg"]
    assert held["texts"].tolist() == ["a cat", "ein Bär 熊"]
    assert np.array_equal(held["labels_1"], labels.T)
    assert "otsu" in str(held["how"])


def test_colours_tell_classes_apart() -> None:
    colours = np.array(class_colours(20), float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 999 * np.eye(20)
    assert apart.min() > 25
    assert apart[:8, :8].min() > 60


def test_painted_pictures_show_their_labels() -> None:
    labels = np.zeros((60, 80), np.int16)
    labels[10:30, 10:40], labels[40:, 60:] = 1, UNSEEN
    out = painted(Image.new("RGB", (80, 60), (90, 120, 90)), labels, 2)
    assert out.shape == (60, 80, 3)
    inside, outside, unseen = out[20, 25].astype(int), out[5, 70].astype(int), out[50, 70].astype(int)
    assert inside[0] - inside[2] > 60  # orange
    assert abs(outside[0] - outside[2]) < 20  # pale
    assert unseen.min() > 190
