"""Which heads a search chooses, and what it says that pictures have in common: on the demo world, whose truth is known."""

import pytest
import torch
from searching import PAIRS, clip, photos, store, world
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec, ClipAnatomyError, StoreError
from clip_anatomy.retrieval.automatic_heads import agreement
from clip_anatomy.retrieval.head_choice import property_in
from clip_anatomy.retrieval.search import search
from clip_anatomy.retrieval.shared_texts import candidate_texts, with_meanings, with_shared_texts
from clip_anatomy.split.moments import Moments

__all__ = ["clip", "photos", "store", "world"]  # fixtures

# ---- choosing heads


def test_agreement_is_measured_against_chance():
    torch.manual_seed(0)
    x = torch.randn(4000, 2, 2, 6).double() * torch.tensor([1.0, 3.0])[None, :, None, None]
    moments = Moments.of(x)
    z = torch.stack([agreement(moments, x[a : a + 5], x[:0]) for a in range(0, 4000, 5)])
    assert z.mean().abs() < 0.1
    assert 0.9 < float(z.std()) < 1.1, "in standard deviations of what chance does, whatever the head's size"
    planted = x[:5].clone()
    planted[:, 1, 0] = planted[0, 1, 0]
    found = agreement(moments, planted, x[:0])
    assert divmod(int(found.argmax()), 2) == (1, 0)
    assert found[1, 0] > 3
    both = agreement(moments, planted, planted[:3])
    assert both[1, 0] < found[1, 0], "what the pictures to be unlike share does not count"


def test_pictures_that_share_a_colour_choose_heads_of_colour(world):
    demo, store, _ = world
    rows = [row for row in store.rows() if row.meta["colour"] == "red" and "colour2" not in row.meta][:5]
    found = search(store, [row.id for row in rows], "auto", k=5, clip=demo)
    assert len(rows) == 5
    assert "they agree" in found.heads[0].why
    truth = store.column("colour")
    shares = [sum(truth[hit.row.index] == "red" for hit in found.hits) / 5, truth.count("red") / len(truth)]
    assert shares[0] > 2 * shares[1]


def test_roles_words_and_bare_words(world):
    demo, store, named = world
    by_role = search(store, "world-0-test-1", "role=colour", k=3, clip=demo, atlas=named)
    assert [(u.layer, u.head) for u in by_role.heads] == [(h.layer, h.head) for h in named.with_role("colour")]
    by_property = search(store, "world-0-test-1", "property=colour", k=3, clip=demo, atlas=named)
    shares = {(h.layer, h.head): dict(h.role.shares).get("colour", 0.0) for h in named.heads}
    assert {(u.layer, u.head) for u in by_property.heads} == {at for at, share in shares.items() if share >= 0.15}
    assert by_property.query.focus == "colour"
    assert search(store, "world-0-test-1", "colour", k=3, clip=demo, atlas=named).ids == by_property.ids
    word = named.with_role("colour")[0].texts[0].text.split()[-1]
    by_words = search(store, "world-0-test-1", f"words=the {word}", k=3, clip=demo, atlas=named)
    assert f"hold 'the {word}'" in by_words.heads[0].why
    strange = search(store, "world-0-test-1", "words=zebra", k=3, clip=demo, atlas=named)
    assert "no text of any head holds 'zebra'" in strange.notes[0]
    with pytest.raises(BadSpec, match="no head has the role 'smell'"):
        search(store, "world-0-test-1", "role=smell", clip=demo, atlas=named)
    with pytest.raises(BadSpec, match="no word to choose heads by"):
        search(store, "world-0-test-1", "words=of the", clip=demo, atlas=named)


def test_an_atlas_is_made_once_and_kept_in_the_store(world):
    demo, store, _ = world
    kept = store.path / "atlas.json"
    kept.unlink(missing_ok=True)
    first = search(store, "world-0-test-1", "role=background", k=3, clip=demo)
    said = kept.stat().st_mtime_ns
    again = search(store, "world-0-test-1", "role=background", k=3, clip=demo)
    assert (first.ids, said) == (again.ids, kept.stat().st_mtime_ns)
    kept.write_text("{")
    assert search(store, "world-0-test-1", "role=background", k=3, clip=demo).ids == first.ids
    with pytest.raises(BadSpec, match="focus 'smell' is no property"):
        search(store, "world-0-test-1", "all", focus="smell", clip=demo)


def test_colour_heads_find_colours(world):
    demo, store, named = world
    truth = store.column("colour")

    def right(**how):
        found = [search(store, f"world-0-test-{at}", k=10, clip=demo, atlas=named, **how) for at in range(0, 60, 4)]
        return sum(truth[hit.row.index] == truth[4 * at] for at, one in enumerate(found) for hit in one.hits) / 150

    assert right(heads="role=colour") > right(mode="whole") + 0.1


# ---- in words


def test_words_say_what_pictures_have_in_common(world):
    demo, store, atlas = world
    truth = store.column("colour")
    single = [row for row in store.rows() if "colour2" not in row.meta][:12]
    said = right = 0
    for row in single:
        found = search(store, row.id, "property=colour", k=5, clip=demo, atlas=atlas)
        texts = candidate_texts(found, demo, atlas)
        assert candidate_texts(found, demo, None) == texts, "a property's texts need no atlas"
        again = with_shared_texts(found, demo, texts, cache=False)
        assert again.to_dict() == found.to_dict(), "search does so itself where the model is open"
        assert row.meta["colour"] in found.shared_texts[0]
        for hit in found.hits:
            if hit.shared_texts and truth[hit.row.index] == row.meta["colour"]:
                said, right = said + 1, right + (row.meta["colour"] in hit.shared_texts[0])
    assert said > 30
    assert right >= 0.95 * said
    assert found.to_dict()["hits"][0]["shared_texts"] == list(found.hits[0].shared_texts)


def test_words_are_those_of_the_heads_that_were_compared(world):
    demo, store, atlas = world
    found = search(store, "world-0-test-1", [(h.layer, h.head) for h in atlas.with_role("background")][:2], k=3)
    assert found.clip is None, "stored ids and numbered heads need no model"
    known = with_meanings(found, atlas)
    assert [one.word for one in known.heads] == ["background"] * 2
    said = {text.text for one in atlas.with_role("background") for text in one.texts}
    assert {*candidate_texts(found, demo, atlas)} <= said
    assert candidate_texts(found, demo, None) == ()
    whole = search(store, "world-0-test-1", mode="whole", k=3)
    assert len(candidate_texts(whole, demo, atlas)) > 200
    assert with_shared_texts(found, demo, ()) is found
    by_text = search(store, "text:a bird", "all", k=3, clip=demo)
    assert with_shared_texts(by_text, demo, ["a bird", "a fish"]) is by_text, "a text is words already"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("colour", "colour"),
        ("its colors", "colour"),
        ("the same background", "background"),
        ("property=color", "colour"),
        ("property=smell", "smell"),
        ("red stripes", None),
        ("role=colour", None),
        ("words=colour", None),
        ("1.0,2.0", None),
        ("auto", None),
        ([(1, 0)], None),
    ],
)
def test_a_property_is_known_however_it_is_typed(world, typed, meant):
    assert property_in(typed, lambda: world[2]) == meant


def test_another_model_is_refused_by_name(store, world):
    demo, _, named = world
    with pytest.raises(StoreError, match="was made with"):
        search(store, "01.png", PAIRS, clip=demo)
    with pytest.raises(StoreError, match="this atlas is of demo"):
        search(store, "01.png", "role=colour", atlas=named)
    other = ca.load(open_clip_model(layers=2, heads=2, d=8, seed=5), parity=False)
    with pytest.raises(ClipAnatomyError, match="was made with"):
        search(store, torch.zeros(1, 3, 32, 32), PAIRS, clip=other)
