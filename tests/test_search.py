"""Search against brute force on the same numbers and against the joint-space split made anew; what it refuses."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import encoded, written
from searching import PAIRS, clip, photos, spots, store, world

import clip_anatomy as ca
from clip_anatomy.errors import BadImage, BadInput, StoreError
from clip_anatomy.retrieval.hits import rows_at
from clip_anatomy.retrieval.patch_attribution import patch_attribution, patch_attributions
from clip_anatomy.retrieval.scan import AGAIN, MeasuredThreads, best, scores
from clip_anatomy.retrieval.search import search
from clip_anatomy.retrieval.subspace import space_of
from clip_anatomy.store.index import index
from clip_anatomy.store.remove import remove
from clip_anatomy.store.store import Store

__all__ = ["clip", "photos", "store", "world"]  # fixtures


def brute(store, pairs, query, *, cosine):
    """By loops, in float32, from the stored numbers."""
    moments = store.moments().mean
    x = np.concatenate(
        [store.heads(*at).float().numpy() - moments[store.layer_at(at[0]), at[1]].float().numpy() for at in pairs], 1
    )
    found = np.array([float(np.dot(row, x[query])) for row in x], dtype=np.float32)
    if cosine:
        found /= np.array([np.linalg.norm(row) * np.linalg.norm(x[query]) for row in x], dtype=np.float32)
    return found


def others(store, name):
    """Places of the images that may be found: not the one that was asked for, and the first of equal files."""
    ids = store.column("id")
    return [at for at, other in enumerate(ids) if other not in (name, "copy of 03.png")]


# ---- exact


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_results_are_those_of_brute_force(store, measure):
    name = store.column("id")[7]
    found = search(store, name, PAIRS, k=len(store), measure=measure)
    expected = brute(store, PAIRS, 7, cosine=measure == "cosine")
    order = [at for at in np.argsort(-expected, kind="stable").tolist() if at in others(store, name)]
    scale = float(np.abs(expected).max())
    assert [hit.row.index for hit in found.hits] == order
    assert np.allclose([hit.score for hit in found.hits], expected[order], atol=2e-6 * scale)
    for hit in found.hits:
        assert sum(hit.shares) == pytest.approx(hit.score, abs=1e-9)


def test_scores_are_inner_products_in_the_joint_space(store, clip):
    """Independent of frames and of the store: the split of all pictures, made anew in the joint space, less its mean."""
    parts = ca.decompose(clip, [spots(3 if name.startswith("copy") else int(name[:2])) for name in store.column("id")])
    unit = parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]
    unit -= unit.mean(0)
    ids = store.column("id")
    here, there = ids.index("02.png"), ids.index("09.png")
    expected = sum(float(unit[here, layer, head] @ unit[there, layer, head]) for layer, head in PAIRS)
    found = search(store, "02.png", PAIRS, k=40, measure="dot", clip=clip)
    score = next(hit.score for hit in found.hits if hit.row.id == "09.png")
    assert score == pytest.approx(expected, rel=3e-3, abs=2e-5)
    text = clip.encode_text(["a dog"])
    contribution = parts.toward(text).heads
    contribution = (contribution - contribution.mean(0))[there]
    found = search(store, "text:a dog", PAIRS, k=41, clip=clip)
    score = next(hit.score for hit in found.hits if hit.row.id == "09.png")
    assert found.query.measure == "dot"
    assert score == pytest.approx(sum(float(contribution[at][0]) for at in PAIRS), abs=2e-4)


def test_whole_and_without_are_the_embedding_with_heads_set_to_their_mean(store, clip):
    e = store.embeddings(unit=True).double()
    found = search(store, "05.png", mode="whole", k=3)
    expected = torch.nn.functional.normalize(e, dim=-1) @ torch.nn.functional.normalize(e[5], dim=-1)
    assert found.hits[0].score == pytest.approx(float(expected.topk(2).values[1]), abs=1e-6)
    assert found.heads == ()
    mean, rows = store.moments().mean, store.basis.rows
    left = e.clone()
    for layer, head in PAIRS:
        left -= (store.heads(layer, head).double() - mean[layer, head]) @ rows[layer, head]
    unit = torch.nn.functional.normalize(left, dim=-1)
    expected = unit @ unit[5]
    got = search(store, "05.png", PAIRS, mode="without", k=60)  # stored units are rounded to float16
    assert {hit.row.index: hit.score for hit in got.hits} == pytest.approx(
        {at: float(expected[at]) for at in others(store, "05.png")}, abs=3e-5
    )


def test_focus_compares_only_along_what_texts_differ_in(store, clip):
    texts = torch.nn.functional.normalize(clip.encode_text(["a dog", "a cat"]).double(), dim=-1)
    along = torch.nn.functional.normalize(texts[0] - texts[1], dim=0)
    found = search(store, "05.png", PAIRS, focus=["a dog", "a cat"], measure="dot", k=60, clip=clip)
    mean, rows = store.moments().mean, store.basis.rows
    x = torch.stack([(store.heads(*at).double() - mean[at]) @ rows[at] @ along for at in PAIRS], 1)
    expected = x @ x[5]
    assert {hit.row.index: hit.score for hit in found.hits} == pytest.approx(
        {at: float(expected[at]) for at in others(store, "05.png")}, abs=1e-9
    )


def test_threads_change_nothing(store):
    space = space_of(store, "heads", PAIRS)
    direction = torch.ones(space.size, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = scores(store, space, direction, cosine=True)
        torch.set_num_threads(4)
        assert torch.equal(one, scores(store, space, direction, cosine=True))
        assert torch.get_num_threads() == 4, "a scan takes the threads that torch has"
    finally:
        torch.set_num_threads(before)


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    k=st.integers(1, 50),
    keep=st.lists(st.booleans(), min_size=40, max_size=40),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_best_are_sorted_stable_and_allowed(values, k, keep):
    allowed = np.array([at for at in range(len(values)) if keep[at]], dtype=np.int64)
    expected = sorted(allowed.tolist(), key=lambda at: (-values[at], at))[:k]
    assert best(torch.tensor(values, dtype=torch.float32), k, allowed) == expected


def test_stores_of_several_blocks_with_removed_images(clip, tmp_path):
    (tmp_path / "photos").mkdir()
    for some in (range(6), range(6, 12)):
        for at in some:
            written(tmp_path / "photos" / f"{at:02d}.png", encoded(spots(at), "PNG"))
        index(clip, tmp_path / "photos", tmp_path / "store")
    remove(tmp_path / "store", ids=["03.png"], wipe=False)
    opened = Store.open(tmp_path / "store")
    found = search(opened, "04.png", PAIRS, k=20, measure="dot")
    assert sorted([*found.ids, "04.png"]) == sorted(opened.column("id"))
    assert "03.png" not in found.ids
    expected = brute(opened, PAIRS, opened.column("id").index("04.png"), cosine=False)
    assert [hit.score for hit in found.hits] == pytest.approx(
        sorted(np.delete(expected, opened.column("id").index("04.png")), reverse=True), abs=1e-6
    )
    assert {at: row.id for at, row in rows_at(opened, range(len(opened))).items()} == dict(
        enumerate(opened.column("id"))
    )


# ---- questions


def test_what_was_asked_for_is_not_among_the_results(store, clip):
    """Neither a stored image nor a file that is in the store, nor their copies: everybody knows that they are alike."""
    row = store.rows("id = '03.png'")[0]
    path = str(Path(row.source) / row.path)
    same = {"03.png", "copy of 03.png"}
    for query in (path, Path(path), "03.png"):
        assert not same & {*search(store, query, PAIRS, k=60, clip=clip).ids}
    twin = search(store, "04.png", PAIRS, k=60)
    assert [len(hit.copies) for hit in twin.hits if hit.row.id in same] == [1], "equal files are one result"


def test_more_and_less_are_the_mean_of_both(store):
    found = search(store, ["01.png", "02.png"], PAIRS, negative="03.png", k=40)
    mean = store.moments().mean
    x = torch.cat([store.heads(*at).double() - mean[at] for at in PAIRS], 1)
    unit = torch.nn.functional.normalize(x, dim=-1)
    aim = torch.nn.functional.normalize((unit[1] + unit[2]) / 2 - 0.5 * unit[3], dim=0)
    ids = store.column("id")
    assert [ids[1], ids[2], ids[3]] == ["01.png", "02.png", "03.png"]
    expected = unit @ aim
    assert [hit.score for hit in found.hits] == pytest.approx(
        [float(expected[hit.row.index]) for hit in found.hits], abs=1e-9
    )
    assert found.query.summary == "01.png + 02.png − 03.png"


def test_pictures_and_texts_are_added_and_negative_ones_taken_off(store, clip):
    mean, rows = store.moments().mean, store.basis.rows
    x = torch.cat([store.heads(*at).double() - mean[at] for at in PAIRS], 1)
    embedded = torch.nn.functional.normalize(clip.encode_text(["a dog", "a cat"]), dim=-1).double()
    texts = torch.cat([embedded @ rows[at].T for at in PAIRS], 1)
    unit, texts = (torch.nn.functional.normalize(one, dim=-1) for one in (x, texts))
    aim = torch.nn.functional.normalize(unit[1] + texts[0] - 0.5 * texts[1], dim=0)
    found = search(store, ["01.png", "text:a dog"], PAIRS, negative="text:a cat", k=40, clip=clip)
    assert found.query.summary == "01.png + “a dog” − “a cat”"
    assert [hit.score for hit in found.hits] == pytest.approx(
        [float((unit @ aim)[hit.row.index]) for hit in found.hits], abs=1e-6
    )
    assert found.hits == tuple(sorted(found.hits, key=lambda hit: -hit.score))


def test_a_larger_k_begins_with_the_same(store):
    whole = search(store, "01.png", PAIRS, k=12).hits
    assert search(store, "01.png", PAIRS, k=5).hits == whole[:5]


def test_filters_are_sql_and_read_only(store):
    found = search(store, "01.png", PAIRS, k=60, where="label = ?", parameters=["odd"])
    assert {hit.row.label for hit in found.hits} == {"odd"}
    assert found.matched == 20
    nothing = search(store, "01.png", PAIRS, where="label = 'none'")
    assert nothing.hits == ()
    assert "matches none of 41 images" in nothing.notes[0]
    assert store.places("label = ?", ["odd"]).tolist() == [row.index for row in store.rows("label = ?", ["odd"])]
    with pytest.raises(BadInput, match="too large"):
        search(store, "01.png", PAIRS, where="size = ?", parameters=[2**70])
    before = (store.path / "rows.sqlite").read_bytes()
    for bad in (
        "label = ",
        "1); DROP TABLE images; --",
        "id IN (SELECT value FROM facts)",
        "nothing = 1",
        "load_extension('x')",
    ):
        with pytest.raises(BadInput, match="is not SQL that can be used here"):
            search(store, "01.png", PAIRS, where=bad)
    assert (store.path / "rows.sqlite").read_bytes() == before


# ---- why


@pytest.mark.parametrize(
    "how",
    [
        {"heads": PAIRS},
        {"heads": PAIRS, "measure": "dot"},
        {"mode": "whole"},
        {"mode": "without", "heads": PAIRS},
    ],
)
def test_patches_rest_and_average_make_the_score(store, clip, how):
    found = search(store, "05.png", k=3, clip=clip, **how)
    told = patch_attribution(found, found.hits[1])
    assert told.total == pytest.approx(found.hits[1].score, rel=3e-3, abs=2e-4)
    assert told.patches.shape == (4, 4)
    assert float(told.centered().sum()) * told.length == pytest.approx(
        float(told.patches.sum()) - told.average, abs=1e-5
    )


def test_several_pictures_at_once_are_explained_like_each_alone(store, clip):
    found = search(store, "05.png", PAIRS, k=9, clip=clip)
    alone = [patch_attribution(found, hit) for hit in found.hits]
    vectors = found.query.space.rows(store, [hit.row.index for hit in found.hits])
    together = patch_attributions(found, clip, [one.picture for one in alone], vectors)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.patches, other.patches, atol=1e-6)
        assert one.total == pytest.approx(other.total, abs=1e-5)


def test_a_deleted_picture_is_named(clip, photos, tmp_path):
    index(clip, photos, tmp_path / "store")
    found = search(tmp_path / "store", "05.png", PAIRS, k=3, clip=clip)
    for file in photos.glob("*.png"):
        file.unlink()
    with pytest.raises(BadImage, match="cannot be shown"):
        patch_attribution(found, found.hits[0])


# ---- refusals


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"query": None}, "nothing was asked"),
        ({"query": "no such.jpg"}, "there is no picture"),
        ({"query": "id:nobody"}, "has the id"),
        ({"query": "text: "}, "a text is empty"),
        ({"heads": "9.0"}, "layer 9 is not in"),
        ({"heads": "0.7"}, "head 0.7 is not stored"),
        ({"heads": "0.1,0.1"}, "named twice"),
        ({"heads": "0.1.2"}, "LAYER.HEAD was expected"),
        ({"heads": "colours=red"}, "is not known"),
        ({"heads": []}, "no heads were chosen"),
        ({"heads": " , "}, "no heads were chosen"),
        ({"heads": "7"}, "heads '7': LAYER.HEAD was expected"),
        ({"device": "gpu"}, "device 'gpu' is not known"),
        ({"query": "/"}, "is a folder"),
        ({"mode": "half"}, "mode 'half' is not known"),
        ({"measure": "angle"}, "measure 'angle' is not known"),
        ({"k": 0}, "k 0: 1 or more"),
        ({"where": "nonsense ="}, "not SQL"),
    ],
)
def test_bad_input_is_named(store, clip, how, message):
    asked = {"query": "01.png", "heads": PAIRS, "clip": clip, **how}
    with pytest.raises(BadInput, match=message):
        search(store, asked.pop("query"), asked.pop("heads"), asked.pop("k", 5), **asked)


def test_a_k_larger_than_the_store_and_an_empty_store(store, clip, tmp_path):
    found = search(store, "01.png", PAIRS, k=500)
    assert len(found) == 39
    assert "39 of 500 images were found" in found.notes[-1]
    (tmp_path / "one").mkdir()
    written(tmp_path / "one" / "a.png", encoded(spots(1), "PNG"))
    index(clip, tmp_path / "one", tmp_path / "store")
    with pytest.raises(BadInput, match="nothing is left to look for"):
        search(tmp_path / "store", "a.png", PAIRS)
    remove(tmp_path / "store", ids=["a.png"])
    with pytest.raises(BadInput, match="holds no images"):
        search(tmp_path / "store", "text:x", clip=clip)
    with pytest.raises(StoreError, match="is no store"):
        search(tmp_path / "nothing", "x")


def test_a_ranking_is_json(store):
    found = search(store, "01.png", PAIRS, k=3)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [hit["id"] for hit in told["hits"]] == found.ids
    assert sum(told["hits"][0]["heads"].values()) == pytest.approx(told["hits"][0]["score"])
    assert found.reason(found.hits[0]).count(",") == 1


def test_a_ranking_is_a_result(store, clip, tmp_path):
    """One screen of text, a folder, a picture, and what a notebook shows."""
    found = search(store, "01.png", PAIRS, k=3, clip=clip)
    assert repr(found) == found.summary()
    assert found.summary().startswith("Like 01.png\nCompared in what 2 heads of the model saw.")
    assert all(hit.row.id in found.summary() for hit in found.hits)
    assert found.save(tmp_path / "out").read_text().startswith("<!")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "contact-sheet.png",
        "index.html",
        "search.json",
    ]
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert found.figure().width > 1000
    assert "data:image/png" in found._repr_html_()


def test_threads_are_chosen_by_measuring_and_given_back() -> None:
    before = torch.get_num_threads()
    used: list[int] = []

    def slow_together() -> None:
        used.append(torch.get_num_threads())
        time.sleep(0.02 if torch.get_num_threads() > 1 else 0.002)

    try:
        torch.set_num_threads(2)
        with MeasuredThreads() as threads:
            for _ in range(AGAIN + 3):
                threads.run(1, slow_together)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert used == [2, *[1] * (AGAIN - 1), 2, 1, 1]
