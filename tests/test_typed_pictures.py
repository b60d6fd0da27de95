"""One rule for all verbs: folders recurse, `-` reads paths, files that are no pictures are counted by reason, nothing found is an error."""

import importlib
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture_files import passed_over_note
from clip_anatomy.data.typed_pictures import typed_pictures
from clip_anatomy.edits.edit import Edit
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.store.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = ca.load("demo", parity=False)
NAMES = ["a.png", "scan", "dogs/b.JPE", "dogs/young/c.ppm"]
NOTE = "passed over: 3 files that are no pictures (2 .txt, 1 without an ending), 1 hidden"


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures in three folders, with endings that few expect or none, among other files."""
    folder = tmp_path / "photos"
    (folder / "dogs/young").mkdir(parents=True)
    for at, (name, kind) in enumerate(zip(NAMES, ["PNG", "GIF", "JPEG", "PPM"], strict=True)):
        picture(at).save(folder / name, kind)
    for name in ("notes.txt", "dogs/more.txt", "dogs/Makefile", ".DS_Store"):
        (folder / name).write_text("P1 BMW GIF")
    return folder


def lines_on_stdin(monkeypatch: pytest.MonkeyPatch, lines: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))


def test_python_looks_at_a_folder_as_the_command_line_does(photos: Path) -> None:
    names = tuple(f"{photos}/{name}" for name in NAMES)
    explained = ca.explain(CLIP, str(photos), ["a bird"])
    maps = ca.heatmap(CLIP, photos, ["a bird"])
    masks = ca.segment(CLIP, [photos], ["a bird"])
    assert explained.names == maps.names == masks.names == names
    assert NOTE in explained.notes
    assert NOTE in maps.notes()
    assert NOTE in masks.all_notes


@pytest.mark.parametrize("verb", ["explain", "heatmap", "segment"])
def test_verbs_recurse_count_and_pass_over_their_own_drawings(
    verb: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos / "drawn"
    for _ in range(2):  # the second time the drawings of the first lie below the folder
        assert main([verb, str(photos), "--text", "a bird", "--out", str(out)]) == 0
        said = capsys.readouterr().err
        assert NOTE in said
        assert sum(name.endswith(("png", "jpg")) and "sheet" not in name for name in map(str, out.iterdir())) >= len(
            NAMES
        )
    assert "1 folders that clip-anatomy made" in said


def test_index_and_apply_count_too_and_name_what_they_indexed(photos: Path, tmp_path: Path, capsys: Any) -> None:
    done = ca.index(CLIP, photos, tmp_path / "store")
    assert (done.done, dict(done.passed_over)) == (
        4,
        {"hidden": 1, "no picture: .txt": 2, "no picture: without an ending": 1},
    )
    assert sorted(row.id for row in Store.open(tmp_path / "store").rows()) == sorted(NAMES)
    assert main(["index", str(photos), str(tmp_path / "store")]) == 0
    assert NOTE in capsys.readouterr().out
    edit = Edit.of(CLIP, "7.0", by="zero")
    assert NOTE in ca.apply(edit, photos, out=tmp_path / "e.npz", model=CLIP).notes


@pytest.mark.parametrize("between", [b"\n", b"\0", b"\r\n"])
def test_a_hyphen_reads_paths_folders_among_them(photos: Path, monkeypatch: pytest.MonkeyPatch, between: bytes) -> None:
    lines_on_stdin(monkeypatch, between.join(str(photos / name).encode() for name in ("a.png", "dogs")) + between)
    assert ca.explain(CLIP, "-", ["a bird"]).names == tuple(f"{photos}/{name}" for name in [NAMES[0], *NAMES[2:]])


def test_a_hyphen_on_the_command_line(photos: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    lines_on_stdin(monkeypatch, f"{photos}/a.png\n{photos}/dogs\n".encode())
    assert main(["index", "-", str(tmp_path / "store")]) == 0
    assert [Path(row.id).name for row in Store.open(tmp_path / "store").rows()] == ["a.png", "b.JPE", "c.ppm"]
    lines_on_stdin(monkeypatch, b"")
    assert main(["heatmap", "-", "--text", "a bird", "--json"]) == 2
    assert "reads paths from standard input, and none came" in capsys.readouterr().err


def test_nothing_found_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("x")
    for run in (
        lambda: ca.explain(CLIP, tmp_path / "empty", ["a"]),
        lambda: ca.heatmap(CLIP, tmp_path / "empty", ["a"]),
        lambda: ca.index(CLIP, tmp_path / "empty", tmp_path / "store"),
    ):
        with pytest.raises(BadImage, match=r"holds no picture \(passed over: 1 file that is no picture \(1 \.txt\)\)"):
            run()
    assert not (tmp_path / "store").exists()


def test_lists_tables_tars_and_worlds_are_looked_at(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("photos/a.png\n")
    (tmp_path / "list.csv").write_text("path,caption\nphotos/scan,a scan\n")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(photos / "a.png", "x.png")
    words = [tmp_path / "list.txt", str(tmp_path / "list.csv"), tmp_path / "some.tar", "world:1:test", photos / "a.png"]
    found = list(typed_pictures(words))
    assert [one.name for one in found] == [
        "photos/a.png",
        "photos/scan",
        "some/x",
        "world-0-test-0",
        str(photos / "a.png"),
    ]
    assert found[1].caption == "a scan"
    assert len(ca.explain(CLIP, words, ["a bird"])) == 5


def test_odd_members_of_tars_are_pictures_or_counted(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as tar:
        tar.add(photos / "a.png", "x.png")
        tar.add(photos / "dogs/b.JPE", "x.PNG")  # another picture than x.png
        tar.add(photos / "scan", "scan")  # no ending at all
        tar.add(photos / "a.png", "y.v2.dat")
        tar.add(photos / "notes.txt", "y.v2.npy")
        tar.add(photos / "notes.txt", "alone.txt")
        tar.add(photos / "a.png", "._a.png")
        link = tarfile.TarInfo("z.png")
        link.type, link.linkname = tarfile.SYMTYPE, "x.png"
        tar.addfile(link)
    source = open_dataset(tmp_path / "odd.tar.gz")
    assert [one.id.partition("/")[2] for one in source] == ["x.png", "x.PNG", "scan", "y"]
    assert source.passed_over == {"no picture: .npy": 1, "no picture: .txt": 1, "hidden": 1, "link": 1}  # pyright: ignore


def test_endings_of_tables_and_of_captions_a_row(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\na.png| 0| two dogs\na.png| 1| dogs play\n"
    )
    picture(0).save(tmp_path / "a.png")
    (one,) = open_dataset(tmp_path / "results.csv")
    assert one.captions == ("two dogs", "dogs play")


def test_heic_opens_with_the_plugin_and_says_so_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(BadImage, match=r"is a HEIC picture.*Type: pip install 'clip-anatomy\[heif\]'"):
            ca.explain(CLIP, tmp_path / "a.jpg", ["a bird"])
        return
    plugin = importlib.import_module("pillow_heif")
    plugin.from_pillow(picture(0)).save(tmp_path / "b.heic", quality=90)
    found = ca.explain(CLIP, tmp_path / "b.heic", ["a bird"])
    assert found.geometries is not None
    assert found.geometries[0].picture == (40, 50)


def test_avif_opens(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.avif")
    (tmp_path / "a.avif").rename(tmp_path / "a")
    assert len(ca.explain(CLIP, tmp_path, ["a bird"])) == 1


def test_a_folder_that_may_not_be_read_is_counted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = importlib.import_module("os").scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("young"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("clip_anatomy.data.folders.os.scandir", refuse)
    source = open_dataset(photos)
    assert [one.id for one in source] == NAMES[:3]
    assert source.passed_over["not to be read"] == 1  # pyright: ignore
    with pytest.raises(BadInput, match="cannot be read"):
        list(open_dataset(photos / "dogs/young"))


def test_reasons_in_one_line() -> None:
    assert passed_over_note({}) == passed_over_note({"hidden": 0}) == ""
    many = {f"no picture: .{at}": 1 for at in range(9)}
    assert passed_over_note(many).endswith("1 .4, 1 .5, …)")
