"""Stores change: images are appended, removed, pruned and come back."""

import shutil
import sqlite3

import pytest
import torch
from pictures import encoded, noise, written
from store_of_photos import check_moments, clip, from_scratch, made, mine, other, photos, walked

from clip_anatomy.errors import BadInput, StoreError
from clip_anatomy.store.index import index
from clip_anatomy.store.remove import remove
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "made", "mine", "other", "photos"]  # fixtures


def test_appending_adds_only_what_is_new(clip, photos, mine, tmp_path):
    before = Store.open(mine)
    known = before.heads(1, 0)
    more = shutil.copytree(photos, tmp_path / "more")
    written(more / "class 2" / "zz.png", encoded(noise(40, 40), "PNG"))
    written(more / "class 0" / "000b.png", encoded(noise(50, 40), "PNG"))
    done = index(clip, more, mine)
    assert (done.done, done.known, done.images) == (2, 61, 63)
    store = Store.open(mine)
    assert torch.equal(store.heads(1, 0)[:61], known)
    assert [row.id for row in store.rows()][61:] == ["class 0/000b.png", "class 2/zz.png"]
    check_moments(store.moments(), from_scratch(store))
    assert verify(mine).holds
    with pytest.raises(StoreError, match="changed since it was opened"):
        before.rows()
    with pytest.raises(StoreError, match="Open it again"):
        before.heads(0, 0)


@pytest.mark.parametrize("wipe", [True, False])
def test_removing_takes_images_out_of_everything(clip, photos, mine, wipe):
    before = Store.open(mine)
    out = [row.index for row in before.rows("label = 'class 1'")][:5]
    left = [at for at in range(61) if at not in out]
    ids = [before.rows()[at].id for at in out]
    assert remove(mine, ids, wipe=wipe) == 5
    store = Store.open(mine)
    assert len(store) == len(store.rows()) == 56
    assert [row.index for row in store.rows()] == list(range(56))
    with sqlite3.connect(mine / "rows.sqlite") as rows:
        assert rows.execute("SELECT count(*) FROM holes").fetchone()[0] == (0 if wipe else 5)
    rows.close()
    assert [row.id for row in store.rows()] == [row.id for at, row in enumerate(walked(photos)) if at in left]
    check_moments(store.moments(), from_scratch(store))
    assert not {row.id for row in store.rows()} & {*ids}
    assert verify(mine).holds
    done = index(clip, photos, mine)
    assert (done.done, done.known) == (0, 61)  # removed stays removed
    assert len(Store.open(mine).rows(status="removed")) == 5


def test_reading_with_holes_is_aligned(mine, made):
    full = Store.open(made)
    remove(mine, where="label = ?", parameters=["class 2"], wipe=False)
    store = Store.open(mine)
    left = [row.index for row in full.rows("label <> 'class 2'")]
    assert torch.equal(store.heads(2, 1), full.heads(2, 1)[left])
    assert torch.equal(store.mlps(0), full.mlps(0)[left])
    assert torch.equal(store.embeddings(), full.embeddings()[left])
    assert torch.equal(torch.cat([p for _, p in store.batches(9)])[:, 1, 1], full.heads(1, 1)[left])
    assert store.places("label = 'class 1'").tolist() == [row.index for row in store.rows("label = 'class 1'")]
    some = store.rows("label = 'class 1'")
    names = [row.id for row in full.rows("label = 'class 1'")]
    assert [row.id for row in some] == names
    assert torch.equal(
        store.heads(0, 1, [row.index for row in some]),
        full.heads(0, 1)[[row.index for row in full.rows("label = 'class 1'")]],
    )


def test_everything_can_be_removed(mine):
    assert remove(mine, where="1") == 61
    store = Store.open(mine)
    assert len(store) == 0
    assert store.rows() == []
    assert store.heads(0, 0).shape == (0, 8)
    assert store.moments().count == 0
    assert verify(mine).holds


def test_removing_asks_for_what_is_there(mine):
    for given in [{}, {"ids": ["a"], "where": "1"}, {"ids": ["nothing"]}, {"where": "no sql at all"}]:
        with pytest.raises(BadInput):
            remove(mine, **given)
    assert len(Store.open(mine)) == 61


def test_pruning_follows_the_source_and_lets_images_come_back(clip, photos, tmp_path):
    source = shutil.copytree(photos, tmp_path / "photos")
    index(clip, source, tmp_path / "s")
    shutil.move(source / "class 0", tmp_path / "aside")
    assert index(clip, source, tmp_path / "s").gone == 0
    done = index(clip, source, tmp_path / "s", prune=True)
    assert (done.gone, done.images) == (20, 41)
    shutil.move(tmp_path / "aside", source / "class 0")
    done = index(clip, source, tmp_path / "s")
    assert (done.done, done.images) == (20, 61)
    store = Store.open(tmp_path / "s")
    check_moments(store.moments(), from_scratch(store))
    assert sorted(row.id for row in store.rows()) == sorted(p.id for p in walked(source))
    assert verify(tmp_path / "s").holds
