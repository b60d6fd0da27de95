"""Odd tables, links, names and tars: each is named, and the rest of a collection is walked all the same."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadImage, BadInput


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_rows_of_one_picture_keep_all_their_captions(photos: Path, tmp_path: Path) -> None:
    names = [source_picture.id for source_picture in open_dataset(photos)][:2]
    rows = [f"{name},caption {at} of {name}" for at in range(5) for name in names]  # not even side by side
    (tmp_path / "list.csv").write_text("image,caption\n" + "\n".join(f"{photos}/{row}" for row in rows) + "\n")
    (tmp_path / "table.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    listed = list(open_dataset(tmp_path / "list.csv"))
    assert [len(one.captions) for one in listed] == [5, 5]
    in_folder = [one for one in open_dataset(photos, tmp_path / "table.csv") if one.id in names]
    assert [one.captions for one in in_folder] == [one.captions for one in listed]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"images":[{"file_name":"a.png"}],"annotations":5}',
        b'{"images":[5],"annotations":[]}',
        b"\x00\xff",
    ],
)
def test_odd_tables_are_bad_input_never_a_traceback(photos: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(BadInput, match="t.json"):
        open_dataset(photos, tmp_path / "t.json")


def test_a_link_in_a_circle_and_a_name_like_a_home_are_pictures_like_others(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "~$b.png")
    (tmp_path / "l1.jpg").symlink_to("l2.jpg")
    (tmp_path / "l2.jpg").symlink_to("l1.jpg")
    assert [one.id for one in open_dataset(tmp_path)] == ["l1.jpg", "l2.jpg", "~$b.png"]
    (tmp_path / "list.txt").write_text("~$b.png\n")
    assert [one.data for one in open_dataset(tmp_path / "list.txt")] == [tmp_path / "~$b.png"]


@pytest.mark.parametrize("notes", [b"[" * 100_000, b'{"\\ud800":"x"}'])
def test_one_members_odd_json_does_not_end_a_tar(tmp_path: Path, notes: bytes) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("a.png", picture.getvalue()), ("a.json", notes), ("b.png", picture.getvalue())):
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))
    assert [one.id for one in open_dataset(tmp_path / "t.tar")] == ["t/a", "t/b"]


def test_a_member_that_claims_gigabytes_is_named_and_not_read(tmp_path: Path) -> None:
    facts = tarfile.TarInfo("big.png")
    facts.size = 3 << 30
    with gzip.open(tmp_path / "t.tar", "wb", compresslevel=1) as file:
        file.write(facts.tobuf(tarfile.GNU_FORMAT))
        file.write(b"\0" * 4096)
    first = next(iter(open_dataset(tmp_path / "t.tar")))
    assert isinstance(first.data, BadImage)
