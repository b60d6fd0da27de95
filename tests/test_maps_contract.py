"""`Maps`: from cells to original pixels through resize and crop, shown with marked pixels; shapes that differ; what is refused."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.picture_batches import picture_batches
from clip_anatomy.errors import BadImage, BadInput, BadSpec, BadText
from clip_anatomy.images.pixels import Preprocess
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.heatmap import METHODS, heatmap
from clip_anatomy.maps.map_result import Maps

pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[1, 2 + len(t), 99] for t in texts])


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=3), tokenizer=tokenizer)


def picture(rows: int, cols: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (rows, cols, 3), dtype=np.uint8))


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("rows", "cols"), [(200, 300), (333, 201), (64, 64), (480, 641), (40, 30)])
def test_a_marked_pixel_is_brightest_where_it_stands_in_the_picture(rows: int, cols: int, resize: str) -> None:
    """The brightness of each patch is a map; laid back on the picture its maximum is at the mark, within a patch."""
    preprocess = Preprocess((64, 64), (0.0,) * 3, (1.0,) * 3, resize=resize)
    where = preprocess.geometry(cols, rows)
    rng = np.random.default_rng(rows)
    for _ in range(8):
        row, col = int(rng.integers(3, rows - 3)), int(rng.integers(3, cols - 3))
        marked = np.zeros((rows, cols, 3), np.uint8)
        marked[row - 3 : row + 4, col - 3 : col + 4] = 255
        light = preprocess(Image.fromarray(marked))[0].view(8, 8, 8, 8).mean((1, 3))
        maps = Maps(light[None, None], "light", ("mark",), (where,))
        on = maps.on_picture(0)[0]
        assert on.shape == (rows, cols)
        assert torch.equal(on.isnan(), ~maps.visible(0))
        patch = where.patch_at(row, col, (8, 8))
        assert (patch is None) == bool(on[row, col].isnan())
        if patch is None:
            continue
        peak = divmod(int(on.nan_to_num(-1).argmax()), cols)
        reach = [8 / s + 4 for s in where.scale]  # a patch, and the mark's own half
        assert abs(peak[0] - row) <= reach[0]
        assert abs(peak[1] - col) <= reach[1]


def test_inside_the_crop_it_is_plain_bilinear_interpolation_and_nan_outside() -> None:
    where = Preprocess((32, 32), (0.0,) * 3, (1.0,) * 3).geometry(
        50, 32
    )  # scaled by 1, 9 columns cropped on either side
    values = torch.rand(1, 1, 4, 4)
    on = Maps(values, "m", ("t",), (where,)).on_picture()
    assert on[0, :, :9].isnan().all()
    assert on[0, :, 41:].isnan().all()
    inside = on[0, :, 9:41]
    expected = torch.nn.functional.interpolate(values, (32, 32), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(inside, expected, atol=1e-6, rtol=0)


def test_without_a_crop_every_pixel_is_seen_and_shapes_may_differ(clip: ca.Clip) -> None:
    pictures = [picture(40, 90), picture(70, 33, 1), picture(40, 90, 2)]
    maps = heatmap(clip, pictures, ["a", "bc"], size=40)
    assert maps.values.shape == (3, 2, 11, 11)  # 5 × 11, 11 × 5 and 5 × 11 patches, padded
    assert [maps.cells(i) for i in range(3)] == [(5, 11), (11, 5), (5, 11)]
    for i, one in enumerate(pictures):
        alone = heatmap(clip, one, ["a", "bc"], size=40)
        torch.testing.assert_close(maps[i].values, alone.values, atol=1e-5, rtol=1e-4)
        assert maps[i].geometries == alone.geometries
        assert maps.visible(i).all()
        torch.testing.assert_close(maps.on_picture(i), alone.on_picture(), atol=1e-5, rtol=1e-4)
        assert maps.on_picture(i).shape == (2, one.height, one.width)
    with pytest.raises(BadSpec, match=r"Type: maps\[0\].resized\(\(8, 8\)\)"):
        maps.resized((8, 8))
    assert maps[1].resized((8, 8)).values.isfinite().all()
    assert maps.geometries is not None
    with pytest.raises(BadInput, match="padding beside a picture of another shape"):
        ca.prompts(maps.values[0], maps.texts, maps.geometries[0])
    stretched = maps.stretched()
    for i in range(3):
        rows, cols = maps.cells(i)
        torch.testing.assert_close(stretched[i, :, :rows, :cols], maps[i].stretched()[0])


def test_pictures_come_back_in_order_whatever_their_shapes(clip: ca.Clip) -> None:
    pictures = [picture(40, 40 + 20 * (i % 2), i) for i in range(5)]
    found = [batch.places for batch in picture_batches(clip, pictures, 40, 2)]
    assert found == [(0, 2), (1, 3), (4,)]
    maps = heatmap(clip, pictures, ["a"], method="raw", size=40)
    for i, one in enumerate(pictures):
        torch.testing.assert_close(maps[i].values, heatmap(clip, one, ["a"], method="raw", size=40).values)


def test_parts_of_maps(clip: ca.Clip) -> None:
    maps = heatmap(clip, [picture(40, 40), picture(60, 40)], ["a", "bc"])
    assert maps["bc"].texts == ("bc",)
    assert torch.equal(maps["bc"].values, maps.values[:, 1:])
    assert len(maps[:1]) == 1
    assert torch.equal(maps[-1].values, maps.values[1:])
    with pytest.raises(BadSpec, match="Type one of: 'a', 'bc'"):
        maps["no"]
    with pytest.raises(IndexError):
        maps[2]
    with pytest.raises(BadSpec, match="one text per map"):
        Maps(maps.values, "m", ("a",))


def test_preprocessed_tensors_have_no_original(clip: ca.Clip) -> None:
    maps = heatmap(clip, torch.randn(1, 3, 32, 32), ["a"])
    assert maps.geometries is None
    for ask in (maps.on_picture, maps.visible):
        with pytest.raises(BadSpec, match="Type: heatmap"):
            ask(0)
    assert maps.resized((32, 32)).values.shape == (1, 1, 32, 32)
    with pytest.raises(BadSpec, match="without size="):
        heatmap(clip, torch.randn(1, 3, 32, 32), ["a"], size=64)


def test_what_cannot_be_meant_is_refused(clip: ca.Clip) -> None:
    one = picture(40, 40)
    with pytest.raises(BadText, match="'a' stands twice"):
        heatmap(clip, one, ["a", "b", "a"])
    with pytest.raises(BadText, match="text 1 is blank"):
        heatmap(clip, one, ["a", " "])
    with pytest.raises(BadText, match=r"\[text, 12\] was expected"):
        heatmap(clip, one, torch.ones(12))
    with pytest.raises(BadSpec, match="has no option 'dept'. Its options and their defaults: depth=6"):
        heatmap(clip, one, ["a"], method="surgery", dept=3)
    with pytest.raises(BadImage, match="image 1: "):
        heatmap(clip, [one, "missing.png"], ["a"])
    with pytest.raises(BadSpec, match="Type: size=336"):
        heatmap(clip, one, ["a"], size=0)
    with pytest.raises(BadSpec, match="Type a smaller one"):
        heatmap(clip, one, ["a"], size=10**6)


def test_every_method_tells_people_what_it_is() -> None:
    for name, method in METHODS.items():
        assert 20 < len(method.description) <= 110, name
        assert method.needs or method.chosen(name, {}) == method.options


def test_windows_are_averaged_where_they_overlap(clip: ca.Clip) -> None:
    one = picture(64, 88)  # 8 × 11 patches
    maps = heatmap(clip, [one, one], ["a", "bc"], method="sclip", window=32, stride=24)
    assert maps.values.shape == (2, 2, 8, 11)
    pixels = clip.preprocess.at((64, 88))(one)
    total, count = torch.zeros(2, 8, 11), torch.zeros(8, 11)
    for row in (0, 3, 4):
        for col in (0, 3, 6, 7):
            part = pixels[:, row * 8 : row * 8 + 32, col * 8 : col * 8 + 32]
            total[:, row : row + 4, col : col + 4] += heatmap(clip, part[None], ["a", "bc"], method="sclip").values[0]
            count[row : row + 4, col : col + 4] += 1
    for i in range(2):
        torch.testing.assert_close(maps.values[i], total / count, atol=1e-5, rtol=1e-4)
    assert maps.visible(1).all()


def test_one_window_over_everything_is_no_window(clip: ca.Clip) -> None:
    one = picture(40, 56)
    plain = heatmap(clip, one, ["a"], size=40)
    for window in ((40, 56), 64):
        torch.testing.assert_close(heatmap(clip, one, ["a"], size=40, window=window).values, plain.values)
    pixels = torch.randn(2, 3, 48, 48)
    assert heatmap(clip, pixels, ["a"], window=32).values.shape == (2, 1, 6, 6)
    guide = torch.rand(2, 16, 16)
    both = heatmap(clip, pixels, ["a"], method="proxyclip", affinity=guide, window=32, stride=16)
    for i in range(2):
        alone = heatmap(clip, pixels[i : i + 1], ["a"], method="proxyclip", affinity=guide[i], window=32, stride=16)
        torch.testing.assert_close(both.values[i], alone.values[0], atol=1e-5, rtol=1e-4)


def test_windows_that_do_not_fit_are_refused(clip: ca.Clip) -> None:
    pixels = torch.randn(1, 3, 48, 48)
    for window, stride, told in [
        (30, None, "Type: window=32"),
        ((32, 20), None, r"Type: window=\(32, 16\)"),
        (32, 7, "Type: stride=8"),
        (16, 24, "leave gaps. Type: stride=8"),
        (None, 8, "Type also: window=32"),
    ]:
        with pytest.raises(BadSpec, match=told):
            heatmap(clip, pixels, ["a"], window=window, stride=stride)


def test_the_docs_table_is_the_registry() -> None:
    text = (Path(__file__).parents[1] / "docs" / "maps.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert method.description in row
        plain = (
            DenseAttention() if isinstance(method.options, DenseAttention) else None
        )  # of dense attentions, what differs from the plain one
        told = [f"`{f.name}={getattr(method.options, f.name)!r}`" for f in fields(method.options)]
        shown = (
            told
            if plain is None
            else [t for t in told if t.split("=", 1)[1][:-1] != repr(getattr(plain, t.split("=")[0][1:]))]
        )
        assert all(one in row for one in shown)


def test_the_docs_name_the_cost_and_the_test_of_every_method() -> None:
    folder = Path(__file__).parent
    text = (folder.parent / "docs" / "maps.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.split("## What it costs")[1].splitlines() if line.startswith("| ")]
    table = [row for row in rows if "test_" in row[-1]]
    for name in METHODS:
        row = next(row for row in table if re.search(rf"(?<!\w){name}(?!\w)", row[0]))
        assert row[1].strip()
        tests = re.findall(r"`(test_\w+\.py)`", row[2])
        assert tests
        assert all(
            re.search(rf"\b{name}\b|METHODS|VARIANTS", (folder / one).read_text(encoding="utf-8")) for one in tests[:1]
        )
