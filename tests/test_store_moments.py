"""Moments of a store: kept, taken again from the arrays, per group, and always those from scratch."""

import numpy as np
import torch
from store_of_photos import check_moments, clip, from_scratch, made, mine, other, photos

from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

__all__ = ["clip", "made", "mine", "other", "photos"]  # fixtures


def test_moments_are_kept_and_equal_those_from_scratch(made):
    store = Store.open(made)
    kept = store.moments()
    assert kept.chunks == 32
    assert len(list((made / "moments").glob("all-32.*"))) == 1
    check_moments(kept, from_scratch(store))
    check_moments(store.moments(chunks=5), from_scratch(store))
    assert kept.basis is not None
    assert kept.model == store.manifest.digest
    fine, coarse = store.moments(chunks=8).counts[0], kept.counts[0]
    assert torch.equal(fine, coarse.view(4, 8).sum(0))  # the same images fall together
    labels = np.array(store.column("label"))
    grouped = store.moments(groups="label", chunks=1)
    assert store.values("label") == ("class 0", "class 1", "class 2")
    for code, name in enumerate(store.values("label")):
        check_moments(grouped.group(code), from_scratch(store, labels == name))
    assert torch.equal(store.codes("label"), torch.tensor([int(name[-1]) for name in labels]))


def test_moments_per_group_are_kept_where_there_are_groups(clip, tmp_path):
    index(clip, "world:90:test", tmp_path / "s", batch=32)
    store = Store.open(tmp_path / "s")
    assert len(list((tmp_path / "s" / "moments").glob("group-1.*"))) == 1
    groups = np.array(store.column("group"))
    found = store.moments(groups="group")
    for code, name in enumerate(store.values("group")):
        check_moments(found.group(code), from_scratch(store, groups == name))
    # New groups appear: the kept ones are renumbered, not taken again from nothing.
    index(clip, "world:500:test", tmp_path / "s", batch=32)
    store = Store.open(tmp_path / "s")
    groups = np.array(store.column("group"))
    found = store.moments(groups="group")
    for code, name in enumerate(store.values("group")):
        check_moments(found.group(code), from_scratch(store, groups == name))


def test_moments_do_not_need_the_kept_file(made, mine):
    for path in (mine / "moments").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    check_moments(Store.open(mine).moments(), from_scratch(Store.open(made)))
