"""`clip-anatomy heatmap`: files, numbers, colours on the right pixels, methods side by side, layers, words, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.layer_maps import cumulative, layer_maps
from clip_anatomy.maps.registry import METHODS
from clip_anatomy.report import contact_sheet as sheet
from clip_anatomy.report.contact_sheet import Cell, SheetRow, contact_sheets
from clip_anatomy.report.map_overlay import colours_of, overlay, shades_of

pytestmark = pytest.mark.usefixtures("one_thread")

ENDS = {".png", ".jpg", ".gif"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for name in ("two_kinds.png", "bird_on_water.png"):
        shutil.copy(next(p for p in examples() if p.name == name), place)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8)).save(place / "wide.png")
    return place


def test_a_folder_of_pictures_is_drawn_and_counted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert main(["heatmap", str(folder), "-t", "a bird", "-t", "a moon", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "bird_on_water.png" in told.out
    assert f"maps: {out / 'index.html'}" in told.err
    held = json.loads((out / "heatmap.json").read_text())
    assert [Path(one["image"]).name for one in held["images"]] == ["bird_on_water.png", "two_kinds.png", "wide.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*held["files"], "heatmap.json", "run.json"])
    overlays = [name for name in held["files"] if name[:3].isdecimal()]
    assert len(overlays) == 6
    for name in overlays:  # on the original pixels, small ones as squares, with a legend below
        one = held["images"][int(name[:3])]
        times = -(-320 // max(one["width"], one["height"]))
        with Image.open(out / name) as image:
            assert image.width == max(320, times * one["width"])
            assert 30 < image.height - times * one["height"] < 80
    with Image.open(out / "contact-sheet.png") as drawn:
        assert drawn.width > 600
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_numbers_are_the_python_apis(folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(folder / "bird_on_water.png")
    assert main(["heatmap", path, "-t", "a bird", "-t", "a moon", "--method", "surgery,raw", "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    clip = ca.load("demo")
    for method in ("surgery", "raw"):
        maps = ca.heatmap(clip, [path], ["a bird", "a moon"], method)
        for k, text in enumerate(maps.texts):
            one = next(m for m in held["images"][0]["maps"] if (m["method"], m["text"]) == (method, text))
            np.testing.assert_allclose(one["values"], maps.values[0, k].numpy(), rtol=1e-4, atol=1e-6)
            row, col = divmod(int(maps.values[0, k].argmax()), 8)
            assert one["peak"] == [8 * col + 4, 8 * row + 4]


def test_all_methods_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["heatmap", str(folder / "two_kinds.png"), "-t", "a green circle", "--method", "all", "--out", str(out)]
    assert main(words) == 0
    held = json.loads((out / "heatmap.json").read_text())
    assert held["methods"] == [name for name, method in METHODS.items() if not method.needs]
    page = (out / "index.html").read_text()
    for name in held["methods"]:
        assert f"<h3>{name}</h3>" in page
        assert METHODS[name].description.split("(")[0].strip().split(" – ")[0][:20] in page.replace("&amp;", "&")


def test_layers_and_words(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = str(folder / "bird_on_water.png")
    assert main(["heatmap", path, "-t", "a blue bird", "-t", "a moon", "--layers", "--words", "--out", str(out)]) == 0
    held = json.loads((out / "heatmap.json").read_text())["images"][0]
    assert len(held["layers"]) == 2 * ca.load("demo").image_tower.layers
    total = sum(np.array(one["values"]) for one in held["layers"] if one["text"] == "a blue bird")
    whole = next(one for one in held["maps"] if one["text"] == "a blue bird")
    np.testing.assert_allclose(total, whole["values"], atol=1e-5)
    assert [one["text"] for one in held["words"]][:5] == ["a blue bird", "a", "blue", "bird", "(rest)"]
    np.testing.assert_allclose(
        sum(np.array(one["values"]) for one in held["words"][1:5]), held["words"][0]["values"], atol=1e-5
    )
    with Image.open(next(out.glob("*.gif"))) as film:
        assert film.n_frames == ca.load("demo").image_tower.layers  # pyright: ignore
    page = (out / "index.html").read_text()
    assert 'type="range"' in page
    assert "Word by word" in page


def test_layers_sum_to_the_whole_map_whatever_the_shapes(folder: Path) -> None:
    clip = ca.load("demo")
    paths = [folder / "wide.png", folder / "two_kinds.png"]
    each = layer_maps(clip, paths, ["a bird", "a moon"], size=64)
    whole = ca.heatmap(clip, paths, ["a bird", "a moon"], size=64)
    torch.testing.assert_close(
        cumulative(each)[-1].values.nan_to_num(), whole.values.nan_to_num(), atol=1e-5, rtol=1e-4
    )
    assert each[0].geometries == whole.geometries


def test_an_overlay_colours_the_right_pixels_and_veils_what_was_not_seen() -> None:
    clip = ca.load("demo")
    picture = Image.new("RGB", (200, 100), (128, 128, 128))
    maps = ca.heatmap(clip, [picture], ["a bird", "a moon"])
    marked = torch.zeros_like(maps.values)
    marked[0, 0, 6, 1] = 5.0  # row 6, column 1 of 8, in the middle 100 × 100 pixels
    from dataclasses import replace

    drawn = np.asarray(overlay(picture, shades_of(replace(maps, values=marked)), 0)).astype(int)
    assert drawn.shape == (100, 200, 3)
    warmth = drawn[..., 0] - drawn[..., 2]
    y, x = (places.mean() + 0.5 for places in np.nonzero(warmth > 0.95 * warmth.max()))
    assert y == pytest.approx(6.5 * 12.5, abs=0.6)
    assert x == pytest.approx(50 + 1.5 * 12.5, abs=0.6)
    assert drawn[50, 20].min() > 200  # cut off by the crop
    assert drawn[50, 100].max() < 200


def test_heat_runs_from_the_lowest_to_the_highest_value() -> None:
    values = torch.tensor([[0.0, 5.0], [10.0, torch.nan]])
    painted = colours_of(values, 1.0, "heat").astype(int)
    assert painted[0, 0, :3].sum() < painted[0, 1, :3].sum() < painted[1, 0, :3].sum()


def test_long_contact_sheets_are_cut_into_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "TALLEST", 900)
    cell = Cell(Image.new("RGB", (50, 50)), "x" * 300)
    sheets = contact_sheets("title − “é”", "熊", [SheetRow(f"row {i}", [cell] * 9) for i in range(4)])
    assert len(sheets) == 4
    assert all(one.startswith(b"\x89PNG") for one in sheets)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "x"], "no picture was given. Type: clip-anatomy heatmap photo.jpg"),
        (["PHOTO"], "no text was given"),
        (
            ["PHOTO", "-t", "x", "--method", "lime"],
            "method 'lime' is not known for this model. Type one of: all, decomp",
        ),
        (["PHOTO", "-t", "x", "--method", "proxyclip"], "needs an argument that only Python can give"),
        (["PHOTO", "-t", "x", "--size", "big"], "Type --size 336"),
        (["PHOTO", "-t", "x", "--colours", "jet"], "--colours signed or --colours heat"),
        (["PHOTO", "-t", "x", "--stride", "8"], "Type --window"),
        (["PHOTO", "-t", "x", "--window", "32", "--layers"], "Type --layers --size"),
        (["missing.png", "-t", "x"], "no such file"),
        (["EMPTY", "-t", "x"], "holds no picture"),
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
    (tmp_path / "empty").mkdir()
    named = {"PHOTO": str(folder / "wide.png"), "EMPTY": str(tmp_path / "empty")}
    assert main(["heatmap", *(named.get(word, word) for word in words)]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_bad_pictures_and_texts_are_named_and_the_rest_is_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (2, 3)).save(tmp_path / "tiny.png")  # smaller than a patch
    pictures = [str(folder / "wide.png"), str(tmp_path / "broken.jpg"), str(tmp_path / "tiny.png")]
    words = ["heatmap", *pictures, "-t", "a bird", "-t", "a bird", "-t", " ", "-t", "a moon", "--json"]
    assert main(words) == 0
    told = capsys.readouterr()
    held = json.loads(told.out)
    assert len(held["images"]) == 2
    assert [Path(one["image"]).name for one in held["failed"]] == ["broken.jpg"]
    assert [one["text"] for one in held["texts"]] == ["a bird", "a moon"]
    small = "tiny.png is 2 × 3 pixels, less than one patch of the model (8 × 8)"
    assert any(small in said for said in held["notes"])
    for said in ("not read: ", "text 3 is empty and was left out", "“a bird” was given 2 times", small):
        assert said in told.err
    assert main([*words, "--strict"]) == 1


def test_a_second_run_leaves_nothing_of_the_first_and_nothing_else_is_touched(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["heatmap", str(folder), "-t", "a bird", "--layers", "--out", str(out)]) == 0
    (out / "mine.png").write_bytes(b"mine")
    held = json.loads((out / "heatmap.json").read_text())
    (tmp_path / "beside.png").write_bytes(b"beside")
    held["files"] += ["../beside.png", 7]  # a file that was tampered with takes nothing away elsewhere
    (out / "heatmap.json").write_text(json.dumps(held))
    assert main(["heatmap", str(folder / "wide.png"), "-t", "a moon", "--out", str(out)]) == 0
    names = {p.name for p in out.iterdir()}
    drawn = {"000-wide-00-a-moon.jpg", "contact-sheet.png", "index.html"}
    assert names == {*drawn, "heatmap.json", "run.json", "mine.png"}
    assert (tmp_path / "beside.png").read_bytes() == b"beside"


def test_texts_are_embedded_once_however_many_pictures_and_methods(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_anatomy.loading.clip import Clip

    asked: list[object] = []
    encode = Clip.encode_text
    monkeypatch.setattr(
        Clip,
        "encode_text",
        lambda clip, texts, *rest, **more: (asked.append(texts), encode(clip, texts, *rest, **more))[1],
    )
    assert main(["heatmap", str(folder), "-t", "a bird", "-t", "a moon", "--method", "raw,surgery", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3
    assert asked.count(("a bird", "a moon")) == 1


def test_tables_fit_a_hundred_columns_and_end(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_anatomy.maps.map_set.MOST_ROWS", 2)
    monkeypatch.setattr("clip_anatomy.maps.masks.MOST_ROWS", 2)
    for i in range(4):
        shutil.copy(folder / "wide.png", tmp_path / f"{'long name ' * 6}{i}.png")
    for verb in ("heatmap", "segment"):
        assert main([verb, str(tmp_path), "-t", "a bird " * 20, "-t", "a moon", "--out", str(tmp_path / verb)]) == 0
        told = capsys.readouterr().out
        whole = str(tmp_path / verb / verb) + ".json"  # a path is on a line of its own, never broken: people copy it
        assert max(len(line) for line in told.splitlines() if line != whole) <= 100
        assert told.count("moon") == 2
        assert f"and 2 more pictures:\n{whole}\n" in told


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "index.html").write_text("mine")
    assert main(["heatmap", str(folder), "-t", "a bird", "--out", str(tmp_path)]) == 2
    assert "Type another folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize("verb", ["heatmap", "segment"])
def test_drawings_do_not_go_among_the_pictures(
    verb: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    for pictures, out in ((str(folder), str(folder)), ("wide.png", "."), (".", str(folder / ".." / folder.name))):
        assert main([verb, pictures, "-t", "a bird", "--out", out]) == 2
        assert "holds the pictures" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_ctrl_c_leaves_nothing_half_written(folder: Path, tmp_path: Path) -> None:
    many = [str(folder / "wide.png")] * 400
    command = [sys.executable, "-m", "clip_anatomy.cli.main", "heatmap", *many, "-t", "a bird", "--out", "out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stderr=pipe, stdout=pipe, text=True, env=env)
    end = time.monotonic() + 90
    while time.monotonic() < end and not list(tmp_path.glob(".out.partial-*/*.png")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    lines = [
        line for line in err.splitlines() if not line.startswith(("looking at pictures", "drawing"))
    ]  # a log's progress
    assert (out, lines) == ("", ["clip-anatomy: stopped; nothing half-written"])
    assert list(tmp_path.iterdir()) == []


def test_the_page_in_a_browser(folder: Path, tmp_path: Path, browser: Any) -> None:
    out = tmp_path / "out"
    assert main(["heatmap", str(folder), "-t", "a bird", "--layers", "--words", "--out", str(out)]) == 0
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((out / "index.html").as_uri())
    assert page.locator("section").count() == 3
    block = page.locator(".layers").first
    assert block.locator("img.map.now").first.get_attribute("data-layer") == "7"
    block.locator("input").evaluate("e => { e.value = 2; e.dispatchEvent(new Event('input')) }")
    assert block.locator("img.map.now").first.get_attribute("data-layer") == "2"
    assert block.locator("output").inner_text() == "layer 2 (of 0 to 7)"
    page.locator("#maps").uncheck()
    page.wait_for_function("getComputedStyle(document.querySelector('img.map')).opacity == '0'")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert errors == []


def test_photographs_run_through_every_method(shared: Path, tmp_path: Path) -> None:
    pictures = [str(p) for p in sorted((shared / "data" / "coco" / "images").glob("*.jpg"))[:1]]
    words = ["heatmap", *pictures, "-t", "wood", "--method", "all", "--size", "whole"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    held = json.loads((tmp_path / "out" / "heatmap.json").read_text())
    assert len(held["images"]) == 1
    for one in held["images"]:
        for maps in one["maps"]:
            assert np.isfinite(maps["values"]).all()
        assert one["visible"] == pytest.approx([0, 0, one["height"], one["width"]], abs=0.01)


def test_maps_with_nothing_to_show_are_named_at_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """No patch of a black picture has anything to do with a bird."""
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    black, bird = str(tmp_path / "black.png"), str(next(p for p in examples() if p.name == "bird_on_water.png"))
    assert main(["heatmap", black, bird, "-t", "a bird", "--method", "grad_eclip", "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "nothing to show on the scale of its method: grad_eclip of “a bird” in black.png" in said
