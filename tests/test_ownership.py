"""A store is known by its mark, never by its names; links in one are not followed; what is kept beside it is of what it holds."""

import shutil
from pathlib import Path

import pytest
from stores import clip, photos

from clip_anatomy.errors import OutputError, StoreError
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "photos"]  # fixtures


@pytest.mark.parametrize(
    "name", ["blocks/work/precious.txt", "moments/diary.txt", "lock", "rows.sqlite", "basis.safetensors"]
)
def test_a_folder_that_only_looks_like_a_store_is_refused(name: str, clip, tmp_path: Path) -> None:
    mine = tmp_path / "project" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(OutputError, match=r"is no store and not empty.*Type the path of a new folder"):
        index(clip, "world:2", tmp_path / "project")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["years of work"]


def test_what_a_person_put_into_a_store_stays(clip, photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    index(clip, photos, store)
    mine = [
        store / name for name in ("notes.txt", "blocks/readme.txt", "moments/all-1.mine.safetensors", "blocks/old/a")
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    left = [store / "blocks/999999/zarr.json", store / ".store.json.partial-0123abcd"]  # of a killed run
    left[0].parent.mkdir()
    for path in left:
        path.write_text("half")
    index(clip, photos, store)
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert [path.exists() for path in left] == [False, False]
    assert verify(store).holds


@pytest.mark.parametrize("name", ["blocks", "moments", "lock", "rows.sqlite", "basis.safetensors"])
def test_links_in_a_store_are_not_followed_by_a_writer(name: str, clip, photos: Path, tmp_path: Path) -> None:
    store, home = tmp_path / "store", tmp_path / "home"
    index(clip, photos, store)
    shutil.move(store / name, home)
    if home.is_dir():
        (home / "thesis").mkdir()
        (home / "thesis" / "thesis.tex").write_text("years")
    (store / name).symlink_to(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} or home.read_bytes()
    with pytest.raises(StoreError, match=rf"{name} is a link; nothing is written or deleted where it leads"):
        index(clip, photos, store)
    assert ({path: path.read_bytes() for path in home.rglob("*") if path.is_file()} or home.read_bytes()) == before


def test_a_link_among_the_blocks_is_taken_away_and_not_what_it_leads_to(clip, photos: Path, tmp_path: Path) -> None:
    store, home = tmp_path / "store", tmp_path / "home"
    index(clip, photos, store)
    home.mkdir()
    (home / "thesis.tex").write_text("years")
    (store / "blocks" / "999999").symlink_to(home)
    (store / "tokens").symlink_to(home)
    index(clip, photos, store)
    assert not (store / "blocks" / "999999").is_symlink()
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]
    with pytest.raises(NotADirectoryError, match="is a link"):
        Store.open(store).beside("tokens")


def test_stores_of_the_same_size_do_not_hold_the_same(clip, photos: Path, tmp_path: Path) -> None:
    others = shutil.copytree(photos, tmp_path / "others")
    shutil.copy(photos / "01.png", others / "00.png")
    for folder, store in ((photos, "a"), (others, "b"), (photos, "c")):
        index(clip, folder, tmp_path / store)
    a, b, c = (Store.open(tmp_path / name) for name in "abc")
    assert (len(a), a.epoch, a.manifest.digest) == (len(b), b.epoch, b.manifest.digest)
    assert a.content != b.content
    assert a.content == c.content
