"""Damage of every kind is found: flipped bytes, rows without data, missing and cut files."""

import re
import shutil
import sqlite3

import numpy as np
import pytest
from store_of_photos import clip, made, mine, other, photos

from clip_anatomy.errors import StoreError
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "made", "mine", "other", "photos"]  # fixtures


def test_a_flipped_byte_in_any_file_is_found(made, tmp_path):
    assert verify(made).holds
    rng = np.random.default_rng(0)
    names = [
        p.relative_to(made) for p in sorted(made.rglob("*")) if p.is_file() and p.name not in ("lock", "rows.sqlite")
    ]
    assert len(names) > 15
    for name in names:
        copy = shutil.copytree(made, tmp_path / "copy")
        data = bytearray((copy / name).read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (copy / name).write_bytes(data)
        if name.name == "store.json" and broken(copy):
            pass  # the description itself can no longer be read, and that is said
        else:
            problems = verify(copy).problems
            assert any(name.name in problem for problem in problems), (name, problems)
        shutil.rmtree(copy)


def broken(store):
    try:
        Store.open(store)
    except StoreError:
        return True
    return False


def test_a_flipped_byte_in_the_rows_is_found(mine):
    data = (mine / "rows.sqlite").read_bytes()
    for text in (b"class 1/twin.png", b"class 2"):
        at = data.rindex(text)
        changed = bytearray(data)
        changed[at + 3] ^= 1
        (mine / "rows.sqlite").write_bytes(changed)
        assert not verify(mine).holds, text
    (mine / "rows.sqlite").write_bytes(b"no database at all" * 500)
    with pytest.raises(StoreError, match="cannot be read"):
        verify(mine)
    with pytest.raises(StoreError, match="cannot be read"):
        Store.open(mine)
    (mine / "rows.sqlite").unlink()
    with pytest.raises(StoreError, match="is missing"):
        verify(mine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE images SET place = 999 WHERE id LIKE '%twin%'", "has a row but no data"),
        ("UPDATE images SET block = NULL WHERE id LIKE '%twin%'", "has a row but no data"),
        ("UPDATE images SET place = 0 WHERE id LIKE '%twin%'", "data of another image"),
        ("DELETE FROM images WHERE id LIKE '%twin%'", "holds 61 images, rows name 60"),
        ("UPDATE images SET label = 'other' WHERE id LIKE '%twin%'", "not what was written"),
        ("UPDATE blocks SET count = 60", "rows name|no data"),
    ],
)
def test_rows_without_data_and_data_without_rows_are_found(mine, change, says):
    rows = sqlite3.connect(mine / "rows.sqlite")
    rows.execute(change)
    rows.commit()
    rows.close()
    assert any(re.search(says, problem) for problem in verify(mine).problems)


def test_a_missing_shard_is_found_and_said_when_read(mine):
    shutil.rmtree(Store.open(mine).blocks[0].folder / "heads" / "c" / "1")
    assert ["missing" in problem for problem in verify(mine).problems] == [True]
    with pytest.raises(StoreError, match="clip-anatomy verify"):
        Store.open(mine).heads(1, 0)
    assert Store.open(mine).heads(0, 0).any()


def test_a_shard_cut_short_is_not_read(mine):
    store = Store.open(mine)
    shard = store.blocks[0].folder / "heads" / "c" / "2" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(StoreError, match="instead of"):
        store.heads(2, 0)
