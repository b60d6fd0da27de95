"""A picture that changed under its name is done again, and pruning asks before it empties a store."""

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import encoded, noise, written
from stores import clip, photos, same

from clip_anatomy.data import picture as pictures
from clip_anatomy.errors import BadInput
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "photos"]  # fixtures


def by_id(folder: Path) -> dict[str, torch.Tensor]:
    store = Store.open(folder)
    return {row.id: store.embeddings([row.index])[0] for row in store.rows()}


def test_a_changed_picture_is_done_again_and_the_others_are_not_read(
    clip, photos: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    store = tmp_path / "store"
    index(clip, photos, store)
    before = by_id(store)
    written(photos / "03.png", encoded(noise(90, 41), "PNG"))  # another size
    old = photos / "05.png"
    facts, size = old.stat(), old.stat().st_size
    old.write_bytes(old.read_bytes()[:-4] + b"\0\0\0\0")  # the same size, and put back to the same time
    os.utime(old, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert old.stat().st_size == size
    os.utime(photos / "07.png", ns=(1, 1))  # touched, not changed
    read: list[str] = []
    decode = pictures.decode
    monkeypatch.setattr(
        "clip_anatomy.store.index_run.decode", lambda one, how: (read.append(one.id), decode(one, how))[1]
    )
    done = index(clip, photos, store)
    assert (done.done + done.failed, done.changed, done.known) == (2, 2, 18)
    assert sorted(read) == ["03.png", "05.png"]
    fresh = tmp_path / "fresh"
    index(clip, photos, fresh)
    now, again, after = Store.open(store), Store.open(fresh), by_id(store)
    for id, embedding in by_id(fresh).items():
        if id in ("03.png", "05.png"):  # in a batch of their own, which some processors round otherwise
            assert torch.allclose(after[id], embedding, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(after[id], embedding)
            assert torch.equal(after[id], before[id])
    assert not torch.allclose(after["03.png"], before["03.png"], rtol=1e-2)
    assert {row.id: row.digest for row in now.rows()} == {row.id: row.digest for row in again.rows()}
    assert torch.allclose(now.moments().mean, again.moments().mean, atol=1e-12)
    assert verify(store).holds
    assert index(clip, photos, store).changed == 0


def test_a_store_of_before_learns_the_times_and_does_nothing_twice(clip, photos: Path, tmp_path: Path) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    index(clip, photos, store)
    shutil.copytree(store, copy)
    with sqlite3.connect(copy / "rows.sqlite") as rows:
        rows.execute("ALTER TABLE images DROP COLUMN time")
    rows.close()
    assert len(Store.open(copy).rows()) == 20  # read as it is
    done = index(clip, photos, copy)
    assert (done.known, done.changed, done.done) == (20, 0, 0)
    same(store, copy)
    with sqlite3.connect(copy / "rows.sqlite") as rows:
        assert rows.execute("SELECT count(*) FROM images WHERE time IS NULL").fetchone()[0] == 0
    rows.close()


def test_pruning_refuses_to_take_out_most_of_a_source(clip, photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    index(clip, photos, store)
    for at in range(11):
        (photos / f"{at:02d}.png").unlink()
    with pytest.raises(BadInput, match=r"11 of the 20 images of .* none was taken out.*type: prune_all=True"):
        index(clip, photos, store, prune=True)
    assert len(Store.open(store)) == 20
    assert index(clip, photos, store, prune_all=True).gone == 11
    (photos / "11.png").unlink()
    assert index(clip, photos, store, prune=True).gone == 1
    for path in photos.iterdir():
        path.unlink()
    with pytest.raises(BadInput):  # a drive that is not mounted
        index(clip, photos, store, prune=True)
    assert len(Store.open(store)) == 8
