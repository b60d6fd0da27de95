"""Large pictures: files that are opened without being read, maps at any rectangle, image pyramids, places in coordinates, constant memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.tile_source import Slide, open_slide
from clip_anatomy.data.world.scenes import World
from clip_anatomy.errors import BadImage
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.thresholds import cut
from clip_anatomy.report.deep_zoom import overview, write_pyramid

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a red circle", "a blue star"]
SCALE, TIE = (2.0, 2.0, 0.0), (0.0, 0.0, 0.0, 4000.0, 9000.0, 0.0)


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Many drawn pictures side by side: 336 × 600 pixels, with a rest that is no whole patch."""
    images = World(split="test", length=54).batch(np.arange(54)).images
    rows = [np.concatenate(list(images[9 * k : 9 * k + 9]), 1) for k in range(6)]
    return np.ascontiguousarray(np.concatenate(rows)[:339, :603][:, :571])


@pytest.fixture(scope="module")
def tiff(scene: np.ndarray, tmp_path_factory: Any) -> Path:
    """A geo-TIFF of two levels, in tiles."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    file = tmp_path_factory.mktemp("slides") / "scene.tif"
    tags = [(33550, "d", 3, SCALE, False), (33922, "d", 6, TIE, False), (34735, "H", 4, (1, 1, 0, 0), False)]
    with tifffile.TiffWriter(file) as out:
        shared = {"tile": (64, 64), "photometric": "rgb"}
        out.write(scene, subifds=1, extratags=tags, **shared)
        out.write(np.ascontiguousarray(scene[:338:2, :570:2]), subfiletype=1, **shared)
    return file


@pytest.fixture(scope="module")
def tiled(clip: ca.Clip, tiff: Path, tmp_path_factory: Any) -> Any:
    return ca.tiled_maps(clip, tiff, TEXTS, tmp_path_factory.mktemp("maps") / "maps.npy", stride=32)


def test_files_are_opened_without_being_read(scene: np.ndarray, tiff: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    zarr = pytest.importorskip("zarr")
    place = slice(40, 111), slice(200, 333)
    np.save(tmp_path / "a.npy", scene)
    Image.fromarray(scene).save(tmp_path / "a.png")
    zarr.save_array(str(tmp_path / "a.zarr"), scene)
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(scene, -1, 0), photometric="rgb", planarconfig="separate")
    for name in ("a.npy", "a.png", "a.zarr", "planes.tif", tiff):
        opened = open_slide(tmp_path / name)
        assert opened.shape == scene.shape
        np.testing.assert_array_equal(opened[place], scene[place])
        assert opened.place(1.0, 1.0) == (None if name != tiff else (4002.0, 8998.0))
    grey = scene[..., 0]
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    np.testing.assert_array_equal(open_slide(tmp_path / "grey.tif")[place], np.repeat(grey[place][..., None], 3, -1))
    coarse = open_slide(tiff, 1)
    assert coarse.shape == (169, 285, 3)
    np.testing.assert_array_equal(coarse[place[0], slice(0, 9)], scene[:338:2, :570:2][place[0], :9])
    there = coarse.place(10.0, 10.0)
    assert there is not None
    assert there[0] == pytest.approx(4000 + 2 * 10 * 571 / 285)


def test_what_cannot_be_opened_says_why(tiff: Path, clip: ca.Clip, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((64, 64, 3), np.uint16))
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((5, 32, 32, 3), np.uint8), photometric="rgb")
    (tmp_path / "broken.tif").write_bytes(b"II*\0nothing")
    for file, level, says in (
        (tmp_path / "gone.tif", 0, "there is no file"),
        (tiff, 2, "has levels 0 to 1"),
        (tmp_path / "many.tif", 0, "has axes"),
        (tmp_path / "broken.tif", 0, "broken.tif"),
    ):
        with pytest.raises(BadImage, match=says):
            open_slide(file, level)
    with pytest.raises(BadImage, match="8 bits a channel were expected"):
        ca.tiled_maps(clip, tmp_path / "deep.tif", TEXTS, tmp_path / "maps.npy")


def test_maps_at_a_rectangle_are_those_laid_on_the_whole_picture(tiled: Any) -> None:
    size = tiled.size
    assert size == (336, 568)
    whole = Maps(torch.tensor(np.array(tiled.values))[None], "raw", tiled.texts, (Geometry(size, size, (0, 0), size),))
    laid = whole.on_picture()
    for rows, cols in (
        (slice(0, 336), slice(0, 568)),
        (slice(0, 7), slice(560, 568)),
        (slice(100, 201), slice(33, 34)),
    ):
        torch.testing.assert_close(tiled.at(rows, cols), laid[:, rows, cols], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        tiled.at(slice(5, 9), slice(5, 9), slice(1, 2)), laid[1:, 5:9, 5:9], atol=1e-6, rtol=1e-5
    )


def test_places_are_told_in_coordinates(tiled: Any) -> None:
    for k, one in enumerate(tiled.to_dict()["maps"]):
        row, col = np.unravel_index(int(tiled.values[k].argmax()), tiled.values[k].shape)
        assert one["peak"] == [8 * (col + 0.5), 8 * (row + 0.5)]
        assert one["peak_in_coordinates"] == [4000 + 2 * one["peak"][0], 9000 - 2 * one["peak"][1]]
        assert f"highest at x {one['peak'][0]:,.0f}" in tiled.summary()


def test_a_pyramid_is_the_picture_at_every_level(tmp_path: Path) -> None:
    yy, xx = np.mgrid[:531, :1030]
    pixels = np.stack([xx // 5, yy // 3, (xx + yy) // 8], -1).astype(np.uint8)
    asked: list[int] = []
    write_pyramid(tmp_path / "p.dzi", pixels.shape[:2], lambda rows, cols: pixels[rows, cols], asked.append)
    assert asked == list(range(1, 3 * 5 + 1))
    about = (tmp_path / "p.dzi").read_text()
    assert 'TileSize="256"' in about
    assert '<Size Height="531" Width="1030"/>' in about
    levels = sorted((tmp_path / "p_files").iterdir(), key=lambda one: int(one.name))
    assert [int(one.name) for one in levels] == list(range(12))
    expected = Image.fromarray(pixels)
    for level in reversed(levels):
        found = np.zeros((expected.height, expected.width, 3))
        for path in level.iterdir():
            col, row = map(int, path.stem.split("_"))
            tile = np.asarray(Image.open(path))
            found[256 * row : 256 * row + tile.shape[0], 256 * col : 256 * col + tile.shape[1]] = tile
        if (
            max(expected.size) > 64
        ):  # JPEG spreads colours over blocks of 16 pixels: of the smallest levels little is left
            assert np.abs(found - np.asarray(expected)).mean() < 4
        expected = expected.reduce(2)
    assert (expected.width, expected.height) == (1, 1)
    small = overview(tmp_path / "p.dzi", 600)
    assert small.size == (258, 133)


def test_what_is_written(tiled: Any, scene: np.ndarray, tmp_path: Path) -> None:
    tiled.save(tmp_path / "drawn")
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    texts = ["00-a-red-circle", "01-a-blue-star"]
    ends = (".dzi", "_files", ".jpg", ".jgw")
    assert names == {"index.html", "tiles.json", *(f"{name}{end}" for name in texts for end in ends)}
    known = json.loads((tmp_path / "drawn" / "tiles.json").read_text())
    assert known["transform"] == [2.0, 0.0, 4000.0, 0.0, -2.0, 9000.0]
    assert known["options"] == {"window": 64, "stride": 32}
    drawn = overview(tmp_path / "drawn" / f"{texts[0]}.dzi")
    assert drawn.size == (568, 336)
    place = list(map(float, (tmp_path / "drawn" / f"{texts[0]}.jgw").read_text().split()))
    assert place == [2.0, 0.0, 0.0, -2.0, 4001.0, 8999.0]  # the middle of the first pixel
    # Seams: what is drawn in tiles is what one overlay of the whole picture is, where the tones are the same.
    from clip_anatomy.report.map_overlay import blended, shades_of
    from clip_anatomy.report.tiles_folder import _tones

    maps = Maps(torch.tensor(np.array(tiled.values))[None], tiled.method, tiled.texts, None, None, tiled.run)
    shades = shades_of(maps)
    whole = blended(
        scene[:336, :568].astype(np.float32),
        tiled.at(slice(0, 336), slice(0, 568))[0],
        shades.limits[0],
        tones=_tones(tiled),
    )
    assert np.abs(np.asarray(drawn, float) - whole).mean() < 3


def test_masks_have_one_level(tiled: Any, tmp_path: Path) -> None:
    tiled.save(tmp_path / "masks", threshold="lenient", pictures=False)
    found = np.load(tmp_path / "masks" / "labels.npy")
    expected, level = cut(torch.tensor(np.array(tiled.values)), 2, "lenient")
    np.testing.assert_array_equal(found, expected)
    known = json.loads((tmp_path / "masks" / "tiles.json").read_text())["masks"]
    assert known["level"] == pytest.approx(level)
    assert known["shares"] == {text: round(float((expected == k + 1).mean()), 6) for k, text in enumerate(TEXTS)}
    tiled.save(tmp_path / "masks", threshold="lenient", background=1)
    assert (tmp_path / "masks" / "masks.dzi").exists()
    assert json.loads((tmp_path / "masks" / "tiles.json").read_text())["masks"]["texts"] == 1


class Endless:
    """A picture of any height that is not there: pixels are made where they are asked for."""

    def __init__(self, rows: int) -> None:
        self.shape, self.largest = (rows, 128, 3), 0

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        size = [one.stop - one.start for one in place]
        self.largest = max(self.largest, size[0] * size[1])
        return np.full((*size, 3), place[0].start // 7 % 251, np.uint8)


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_the_picture(clip: ca.Clip, tmp_path: Path) -> None:
    grown = {}
    for rows in (1024, 16384):  # the first also warms up; of the second the pixels alone are 6 MB, as floats 25
        source, before = Endless(rows), resident()
        found = ca.tiled_maps(clip, source, TEXTS[:1], tmp_path / f"{rows}.npy", window=64, stride=64)
        found.save(tmp_path / f"drawn-{rows}")
        grown[rows] = resident() - before
        assert found.values.shape == (1, rows // 8, 16)
        assert source.largest <= 256 * 256
    assert grown[16384] < 8


def test_from_the_command_line(tiff: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = [str(tiff), "-t", "a red circle", "--tiles", "1", "--out", str(out)]
    assert main(["heatmap", *words, "--method", "naclip", "--window", "64", "--stride", "64"]) == 0
    told = capsys.readouterr()
    assert "naclip: maps of 280 × 168 pixels, 21 × 35 patches" in told.out
    assert (out / "00-a-red-circle.dzi").exists()
    assert json.loads((out / "tiles.json").read_text())["level"] == 1
    assert main(["segment", *words, "--background", "grass"]) == 0
    assert not (out / "00-a-red-circle.dzi").exists()
    assert (out / "masks.dzi").exists()
    assert main(["heatmap", *words, "--size", "512"]) == 2
    assert "Type --window 224" in capsys.readouterr().err
    assert main(["heatmap", str(tiff), *words]) == 2
    assert "Type one at a time" in capsys.readouterr().err


def test_a_slide_is_a_source_like_any_other(scene: np.ndarray, clip: ca.Clip, tmp_path: Path) -> None:
    plain = ca.tiled_maps(clip, scene, TEXTS, tmp_path / "a.npy", stride=32)
    as_slide = ca.tiled_maps(clip, Slide(scene, "YXS", "scene"), TEXTS, tmp_path / "b.npy", stride=32)
    np.testing.assert_array_equal(plain.values, as_slide.values)
