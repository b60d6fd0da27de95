"""Collections as people have them: links, names in old encodings, tables from spreadsheets, splits as folders, tars in several folders."""

import json
import os
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from pictures import encoded, noise, written
from stores import clip

from clip_anatomy.data.open_dataset import open_dataset, picture_of
from clip_anatomy.data.picture import Picture
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

__all__ = ["clip"]  # fixture


def put(*paths: Path) -> None:
    for at, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        written(path, encoded(noise(30 + at, 31), "PNG"))


def test_linked_class_folders_are_walked_and_circles_are_not(tmp_path):
    put(tmp_path / "real/dogs/a.png", tmp_path / "real/dogs/young/b.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dog").symlink_to(tmp_path / "real/dogs")
    (tmp_path / "real/dogs/back").symlink_to(tmp_path / "mine")
    (tmp_path / "mine/self").symlink_to(tmp_path / "mine")
    source = open_dataset(tmp_path / "mine")
    assert [(p.id, p.label) for p in source] == [("dog/a.png", "dog"), ("dog/young/b.png", "dog")]
    assert source.count() == 2
    assert picture_of(source.spec, "dog/young/b.png", "it").size == (31, 31)


def test_train_and_val_folders_are_splits_not_classes(tmp_path):
    put(
        *(
            tmp_path / "d" / name
            for name in ("train/cat/a.png", "train/dog/b.png", "Validation/dog/c.png", "test/d.png")
        )
    )
    assert [(p.id, p.label, p.meta) for p in open_dataset(tmp_path / "d")] == [
        ("Validation/dog/c.png", "dog", {"split": "val"}),
        ("test/d.png", "", {"split": "test"}),
        ("train/cat/a.png", "cat", {"split": "train"}),
        ("train/dog/b.png", "dog", {"split": "train"}),
    ]
    (tmp_path / "d/metadata.csv").write_text("path,split\ntest/d.png,held out\n")
    assert {p.id: p.meta["split"] for p in open_dataset(tmp_path / "d")}["test/d.png"] == "held out"
    put(tmp_path / "d/bus/e.png")  # a train among other vehicles is a class
    assert {p.label for p in open_dataset(tmp_path / "d")} == {"Validation", "test", "train", "bus"}


def test_a_name_that_is_not_unicode_spoils_its_picture_only(clip, tmp_path):
    put(tmp_path / "p/fine.png", tmp_path / "p/b.png")
    (tmp_path / "p/b.png").rename(tmp_path / "p" / os.fsdecode(b"caf\xe9.png"))
    fine, bad = sorted(open_dataset(tmp_path / "p"), key=lambda p: p.path is None)
    assert (fine.id, bad.id, bad.path) == ("fine.png", "caf\ufffd.png", None)
    assert isinstance(bad.data, BadImage)
    found = index(clip, tmp_path / "p", tmp_path / "s")
    assert (found.done, found.failed) == (1, 1)
    assert [row.id for row in Store.open(tmp_path / "s").rows()] == ["fine.png"]
    odd = Picture("a", b"x", None, "\ud800x", "", ("\udce9",), {"who": "\udfff", "n": 3})
    assert (odd.id, odd.data, odd.label, odd.captions, odd.meta) == (
        "a",
        b"x",
        "\ufffdx",
        ("\ufffd",),
        {"who": "\ufffd", "n": 3},
    )


@pytest.mark.parametrize(
    "name",
    ["./dog/a.png", "dog//a.png", "{root}/dog/a.png", "{link}/dog/a.png", "dog\\a.png", "a.png"],
)
def test_a_table_may_write_a_path_in_any_way(tmp_path, name):
    put(tmp_path / "photos/dog/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    said = name.format(root=tmp_path / "photos", link=tmp_path / "link")
    (tmp_path / "t.csv").write_text(f"path,label\n{said},puppy\n")
    assert [p.label for p in open_dataset(tmp_path / "link", tmp_path / "t.csv")] == ["puppy"]


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_csv_of_any_spreadsheet_is_read(tmp_path, between):
    put(tmp_path / "a.png")
    rows = [("note", "path", "label"), ('"x, y; z"', "a.png", "pug")]
    (tmp_path / "t.csv").write_text("\ufeff" + "\r\n".join(between.join(row) for row in rows), encoding="utf-8")
    assert [(p.id, p.label, p.meta) for p in open_dataset(tmp_path / "t.csv")] == [
        ("a.png", "pug", {"note": "x, y; z"})
    ]


def tar(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for at, name in enumerate(names):
            data = encoded(noise(20 + at, 20), "PNG") if name.endswith("png") else json.dumps({"label": "pug"}).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, BytesIO(data))
    return path


def test_tars_of_one_name_in_several_folders_do_not_mix(tmp_path):
    tar(tmp_path / "x/s.tar", "0.png", "0.json")
    tar(tmp_path / "y/s.tar", "0.png", "1.png")
    source = open_dataset(str(tmp_path / "*/s.tar"))
    found = list(source)
    assert [(p.id, p.path, p.label) for p in found] == [
        ("x/s/0", "x/s.tar#0.png", "pug"),
        ("y/s/0", "y/s.tar#0.png", ""),
        ("y/s/1", "y/s.tar#1.png", ""),
    ]
    assert picture_of(source.spec, found[2].path, "it").size == (21, 20)


def test_brackets_in_names_are_brackets(tmp_path):
    tar(tmp_path / "trip [2020]/s-1.tar", "0.png")
    for named in (tmp_path / "trip [2020]", tmp_path / "trip [2020]/s-1.tar", str(tmp_path / "trip [2020]/s-*.tar")):
        source = open_dataset(named)
        assert [(p.id, p.path) for p in source] == [("s-1/0", "s-1.tar#0.png")]
        assert picture_of(source.spec, "s-1.tar#0.png", "it").size == (20, 20)
    one = tar(tmp_path / "one[1].tar", "0.png")
    assert [p.id for p in open_dataset(one)] == ["one[1]/0"]
    assert [p.id for p in open_dataset(str(tmp_path / "one[[]?].tar"))] == ["one[1]/0"]
    with pytest.raises(BadInput, match="no tar file"):
        open_dataset(str(tmp_path / "none[1].tar"))


def test_a_number_beyond_the_world_is_named():
    with pytest.raises(BadInput, match="'x' is no picture of world:5:train. Type a number from 0 to 4"):
        open_dataset("world:5").fetch("x")
