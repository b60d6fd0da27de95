"""Lists, tables, captions and texts as other programs write them: byte order marks, UTF-16, line ends, NUL, backslashes, addresses of files."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from pictures import encoded, noise

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture import Picture
from clip_anatomy.loading.demo import examples
from clip_anatomy.loading.typed_texts import read_texts

TABLE = "path,label\r\ni/a.png,dög\r\ni/b.png,cat\r\n"
LABELS = [("i/a.png", "dög"), ("i/b.png", "cat")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "i").mkdir()
    for name in "ab":
        noise(20, 20).save(tmp_path / "i" / f"{name}.png")
    return tmp_path


def walked(place: Path, name: str, content: bytes | str) -> list[Picture]:
    (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(open_dataset(str(place / name)))


@pytest.mark.parametrize(
    "content",
    [
        TABLE,
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        TABLE.replace("\r\n", "\r"),
        TABLE.replace("path,label", " Path , LABEL "),
        TABLE.replace("g\r", "g \r").replace(",", ", "),
        TABLE + ",\r\n\r\n",
        TABLE.replace("d", "\0d"),
    ],
    ids=["plain", "mark", "UTF-16", "carriage returns", "headers", "spaces", "empty rows", "NUL"],
)
def test_a_table_is_read_as_spreadsheets_write_it(place: Path, content: bytes | str) -> None:
    found = walked(place, "t.csv", content)
    assert [(one.id, one.label) for one in found] == LABELS
    assert all(isinstance(one.data, Path) and one.data.is_file() for one in found)


def test_a_list_is_read_as_other_programs_write_it(place: Path) -> None:
    lines = ["i\\a.png", '"i/b.png"', (place / "i" / "a.png").as_uri(), "a.png", "https://nowhere.invalid/a.png"]
    found = walked(place, "l.txt", "\ufeff" + "\r\n".join(lines))
    (place / "images").mkdir()
    noise(8, 8).save(place / "images" / "a.png")
    *files, address = list(open_dataset(str(place / "l.txt")))
    assert [one.data.is_file() for one in files if isinstance(one.data, Path)] == [True] * 4
    assert "is an address, and the pictures of a list are files. Download it" in str(address.data)
    assert len(found) == 5


def test_json_of_a_table_is_a_list_of_paths_or_says_the_line(place: Path) -> None:
    assert [one.id for one in walked(place, "l.json", json.dumps(["i/a.png", "i/b.png"]))] == ["i/a.png", "i/b.png"]
    assert [one.id for one in walked(place, "u.json", json.dumps(["i/a.png"]).encode("utf-16"))] == ["i/a.png"]
    coco = {
        "images": [{"file_name": "i/a.png", "id": 1}, {}, "i/b.png"],
        "annotations": [{"image_id": 1, "caption": "a cat"}],
    }
    assert [(one.id, one.captions) for one in walked(place, "c.json", json.dumps(coco))] == [
        ("i/a.png", ("a cat",)),
        ("i/b.png", ()),
    ]
    with pytest.raises(ca.errors.BadInput, match=r"bad.jsonl, line 2 cannot be read .* Type one JSON object a line"):
        walked(place, "bad.jsonl", '{"path": "i/a.png"}\n{bad\n')
    with pytest.raises(
        ca.errors.BadInput, match=r"record 2: no path. A value in one of the columns .* it has: path, label"
    ):
        walked(place, "gap.csv", "path,label\ni/a.png,x\n,y\n")


def test_what_stands_beside_a_picture_in_a_tar_may_have_a_mark_and_nul(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as made:
        notes = (("a.png", encoded(noise(8, 8), "PNG")), ("a.txt", "\ufeffa cat\r\n".encode()), ("b.png", encoded(noise(8, 8), "PNG")), ("b.json", b'\xef\xbb\xbf{"label": "x", "caption": "a\\u0000 dog"}'))  # fmt: skip
        for name, content in notes:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    one, two = list(open_dataset(str(tmp_path / "t.tar")))
    assert (one.captions, two.label, two.captions) == (("a cat",), "x", ("a\ufffd dog",))


def test_texts_in_utf16_and_with_nul(tmp_path: Path) -> None:
    for content in ("a dög\r\na cat\r\n".encode("utf-16"), "\ufeffa dög\ra\0 cat".encode()):
        (tmp_path / "t.txt").write_bytes(content)
        assert list(read_texts([f"@{tmp_path / 't.txt'}"])) == ["a dög", "a cat"]


def test_a_text_of_two_lines_is_drawn_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "a\nb.png"
    photo.write_bytes(examples()[0].read_bytes())
    for verb in ("heatmap", "segment", "explain"):
        assert main([verb, str(photo), "-t", "a\nbird\u202e", "--out", str(tmp_path / verb)]) == 0, capsys.readouterr()


def test_a_place_that_is_a_link_in_a_circle_or_a_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    noise(20, 20).save("a.png")
    for words, said in (
        (["heatmap", "a.png", "-t", "x", "--out", "loop"], "loop"),
        (["heatmap", "loop", "-t", "x"], "loop: no such file"),
        (["index", "a.png", "loop"], "loop"),
        (["index", "loop", "s"], "loop"),
        (["index", ".", "/dev/null"], "/dev/null is a file. Type the path of a new folder"),
        (["heatmap", "a.png", "-t", "x", "--out", "."], "Type another folder: --out maps"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err
