"""The approximate index: its recall is measured, and it serves what it was built for."""

import numpy as np
import pytest
from searching import PAIRS, clip, photos, store, world

from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.retrieval.approximate import _recall, build_index
from clip_anatomy.retrieval.search import search
from clip_anatomy.retrieval.subspace import space_of

__all__ = ["clip", "photos", "store", "world"]  # fixtures

# ---- approximate


def test_an_approximate_index_says_its_recall(store, tmp_path):
    pytest.importorskip("faiss", exc_type=ImportError)
    built = build_index(store, PAIRS, tmp_path / "index", lists=4, k=5, queries=20)
    assert built.recall[-1][0] == built.lists
    assert built.recall[-1][1] > 0.9, "all lists: only 8-bit numbers are lost"
    assert [r[1] for r in built.recall] == sorted(r[1] for r in built.recall)
    assert "recall@5 against the exact scan" in built.told
    exact = search(store, "07.png", PAIRS, k=5, fold=False)
    near = search(store, "07.png", PAIRS, k=5, fold=False, approximate=tmp_path / "index")
    assert not near.exact
    assert len({*exact.ids} & {*near.ids}) >= 4
    with pytest.raises(StoreError, match=r"serves heads 1\.0,0\.1"):
        search(store, "07.png", [(0, 0)], approximate=tmp_path / "index")
    with pytest.raises(BadInput, match="built for cosine"):
        search(store, "07.png", PAIRS, measure="dot", approximate=tmp_path / "index")
    with pytest.raises(BadInput, match="cannot filter"):
        search(store, "07.png", PAIRS, where="1", approximate=tmp_path / "index")
    with pytest.raises(StoreError, match="no search index"):
        search(store, "07.png", PAIRS, approximate=tmp_path)
    with pytest.raises(BadSpec, match="a fixed set"):
        build_index(store, "auto", tmp_path / "other")


def test_recall_does_not_count_the_image_itself(store):
    """An index that finds nothing but the image itself has found nothing."""

    class Narrow:
        nlist = 1
        nprobe = 1

        def search(self, vectors, k):
            return None, np.array([[7]])

    space = space_of(store, "heads", PAIRS, centred=True)
    told = []
    found, _ = _recall(store, space, Narrow(), np.array([7]), 3, cosine=True, tell=lambda *said: told.append(said))
    assert [(width, share) for width, share, _ in found] == [(1, 0.0)]
    assert told == [("measuring recall", 1, 1)]


def test_a_k_beyond_what_the_lists_hold_ends(store, tmp_path):
    pytest.importorskip("faiss", exc_type=ImportError)
    build_index(store, PAIRS, tmp_path / "index", lists=20, k=1, queries=5)
    found = search(store, "07.png", PAIRS, k=400, approximate=tmp_path / "index")
    assert 0 < len(found) <= 40
