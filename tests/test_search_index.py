"""The approximate index: its recall is measured, and it serves what it was built for."""

import numpy as np
import pytest
from pictures import encoded, written
from searching import PAIRS, clip, photos, spots, store, world

from clip_anatomy.errors import BadInput
from clip_anatomy.retrieval.approximate import _recall, build_index
from clip_anatomy.retrieval.search import search
from clip_anatomy.retrieval.subspace import space_of
from clip_anatomy.store.index import index
from clip_anatomy.store.remove import remove
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "photos", "store", "world"]  # fixtures

# ---- approximate


def test_an_approximate_index_says_its_recall(store):
    pytest.importorskip("faiss", exc_type=ImportError)
    record = build_index(store, space_of(store, "heads", PAIRS), lists=4, k=5, queries=20).record
    assert record.recall[-1][0] == record.lists
    assert record.recall[-1][1] > 0.9, "all lists: only 8-bit numbers are lost"
    assert [r[1] for r in record.recall] == sorted(r[1] for r in record.recall)
    assert "recall@5 against the exact scan" in record.summary
    exact = search(store, "07.png", PAIRS, k=5)
    near = search(store, "07.png", PAIRS, k=5, approximate=True)
    assert not near.exact
    assert record.summary in near.notes, "the one that was built is asked"
    assert len({*exact.ids} & {*near.ids}) >= 4
    with pytest.raises(BadInput, match="cannot filter"):
        search(store, "07.png", PAIRS, where="1", approximate=True)
    with pytest.raises(BadInput, match="fixed heads"):
        search(store, "07.png", "auto", approximate=True)
    with pytest.raises(BadInput, match="serves whole heads"):
        search(store, "07.png", mode="whole", approximate=True)


def test_an_index_is_built_on_first_use_and_anew_when_the_store_changes(clip, photos, tmp_path):
    pytest.importorskip("faiss", exc_type=ImportError)
    index(clip, photos, tmp_path / "store")

    def asked(measure):
        opened = Store.open(tmp_path / "store")
        found = search(opened, "07.png", PAIRS, k=3, measure=measure, approximate=True)
        assert set(found.ids) <= set(opened.column("id"))
        folder = tmp_path / "store" / "approximate" / f"1.0,0.1-{measure}"
        return (folder / "index.json").stat().st_mtime_ns, folder

    built, folder = asked("cosine")
    assert asked("cosine")[0] == built, "kept"
    asked("dot")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1.0,0.1-cosine", "1.0,0.1-dot"]
    remove(tmp_path / "store", ids=["03.png"])
    assert asked("cosine")[0] > built
    (folder / "index.faiss").write_bytes(b"damaged")
    asked("cosine")
    assert (folder / "index.faiss").stat().st_size > 100
    assert verify(tmp_path / "store").holds
    written(photos / "new.png", encoded(spots(20), "PNG"))
    assert index(clip, photos, tmp_path / "store").done == 1, "and the store can be written on"


def test_recall_does_not_count_the_image_itself(store):
    """An index that finds nothing but the image itself has found nothing."""

    class Narrow:
        nlist = 1
        nprobe = 1

        def search(self, vectors, k):
            return None, np.array([[7]])

    space = space_of(store, "heads", PAIRS)
    steps = []
    found, _ = _recall(store, space, Narrow(), np.array([7]), 3, cosine=True, progress=lambda *step: steps.append(step))
    assert [(width, share) for width, share, _ in found] == [(1, 0.0)]
    assert steps == [("measuring recall", 1, 1)]


def test_a_k_beyond_what_the_lists_hold_ends(store):
    pytest.importorskip("faiss", exc_type=ImportError)
    build_index(store, space_of(store, "heads", PAIRS), lists=20, k=1, queries=5)
    found = search(store, "07.png", PAIRS, k=400, approximate=True)
    assert 0 < len(found) <= 40
