"""From a store to an atlas: figures against brute force, evidence, truth, a growing pool, what does not fit."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from atlases import IMAGES, demo, one_thread, server
from PIL import Image

from clip_anatomy.data.world import World
from clip_anatomy.data.world.accuracy import target
from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.build_atlas import atlas
from clip_anatomy.naming.bundled_pools import pool_of, world_grammar, world_pool
from clip_anatomy.naming.ground_truth import attribute_shares, truth_of
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.naming.top_images import rows_at, top_images
from clip_anatomy.report.thumbnails import thumbnails
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

__all__ = ["demo", "one_thread", "server"]  # fixtures


# ---- figures and evidence


def test_an_atlas_holds_what_the_steps_give_by_themselves(demo: SimpleNamespace) -> None:
    pool = world_pool()
    embeddings = torch.nn.functional.normalize(demo.clip.encode_text(list(pool.texts)), dim=-1)
    span = textspan(demo.store.moments(), embeddings, 20)
    found = demo.atlas
    assert (found.images, found.pool_texts, len(found.heads)) == (IMAGES, len(pool), 48)
    for head in found.heads[::7]:
        at = head.layer, head.head
        assert [text.text for text in head.texts] == [pick.text for pick in span.picks(*at, pool.texts)]
        assert sum(text.gain for text in head.texts) == pytest.approx(float(span.cumulative[at][-1]))
        assert head.explained == pytest.approx(float(span.cumulative[at][9]))
        assert head.explained <= head.pca_explained + 1e-9
        properties = dict(zip(pool.texts, pool.properties, strict=True))
        assert all(text.property == properties[text.text] for text in head.texts)
        assert all(0 <= (text.stability_in_place or 0) <= (text.stability or 0) <= 1 for text in head.texts)
        assert head.variance == pytest.approx(float(demo.store.heads(*at).double().var(0).sum()), rel=1e-6)


def test_evidence_is_what_sorting_all_images_gives(demo: SimpleNamespace) -> None:
    store = demo.store
    pool = world_pool()
    span = textspan(store.moments(), demo.clip.encode_text(list(pool.texts)), 5)
    found = top_images(store, span, picks=3, each=4, piece=37)
    again = top_images(store, span, picks=3, each=4, piece=100_000)
    assert torch.equal(found.most, again.most)
    assert torch.equal(found.least, again.least)
    for layer, head in ((0, 1), (7, 5)):
        x = store.heads(layer, head).float() - span.mean[layer, head].float()
        for pick in range(3):
            values = x @ span.directions[layer, head, pick].float()
            order = values.argsort(descending=True, stable=True)
            assert torch.allclose(found.most_value[layer, head, pick], values[order[:8]], atol=1e-6)
            assert torch.allclose(found.least_value[layer, head, pick], values[order.flip(0)[:8]], atol=1e-6)
            assert torch.allclose(values[found.most[layer, head, pick]], values[order[:8]], atol=1e-6)
    rows = rows_at(store, [5, 299, 0])
    assert {place: row.id for place, row in rows.items()} == {p: f"world-0-test-{p}" for p in (5, 299, 0)}


def test_evidence_of_another_span_is_refused(demo: SimpleNamespace) -> None:
    span = textspan(demo.store.moments(), demo.clip.encode_text(["a star", "a ring"]), 2)
    with pytest.raises(BadInput, match="span its own moments"):
        top_images(demo.store, replace(span, layers=(*range(1, 8), 9)))


def test_copies_of_one_picture_stand_once(demo: SimpleNamespace, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for at in range(6):
        image = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        image.save(photos / f"{at}.png")
        if at == 3:
            for copy in range(5):
                image.save(photos / f"copy-{copy}.png")
    index(demo.clip, photos, tmp_path / "store", workers=1)
    pool = Pool(("something red", "something blue", "a star"), ("a", "a", "b"))
    found = atlas(tmp_path / "store", demo.clip, pool, texts=2, resamples=0, images=4, cache=False)
    for head in found.heads:
        for text in head.texts:
            names = [
                "copy" if seen.id.startswith("copy") or seen.id == "3.png" else seen.id for seen in text.top_images
            ]
            assert len(names) == len(set(names))
            assert len(names) >= 3
    assert any("Only 11 images" in note for note in found.notes)
    assert any("Stability was not measured" in note for note in found.notes)
    (photos / "1.png").unlink()
    shown = {
        row.id: (image, why)
        for row, image, why in thumbnails(rows_at(Store.open(tmp_path / "store"), range(11)).values())
    }
    gone = [why for image, why in shown.values() if image is None]
    assert len(gone) == 1
    assert "1.png" in gone[0]


# ---- truth


def test_truth_comes_from_the_rows_as_from_the_world_itself(demo: SimpleNamespace) -> None:
    facts = World(split="test", length=IMAGES).facts(np.arange(IMAGES))
    names = (*ATTRIBUTES, "digit")
    codes = np.stack([target(facts, name) if name != "digit" else facts.digit for name in names], 1)
    single = torch.from_numpy(~facts.mixed)
    heads = torch.cat([heads for _, heads in demo.store.batches()])
    expected = attribute_shares([(heads[single], torch.from_numpy(codes)[single])], names)
    found = truth_of(demo.store)
    assert found.attributes == names
    assert torch.allclose(found.share, expected.share, atol=1e-9)
    assert found.images == int(single.sum())
    by_label = truth_of(demo.store, ["label"])
    assert by_label.attributes == ("label",)
    assert by_label.images == IMAGES
    with pytest.raises(BadInput, match="tells images apart"):
        truth_of(demo.store, ["no_such_column"])


def test_roles_agree_with_the_truth_on_the_demo_model(demo: SimpleNamespace) -> None:
    told = demo.atlas.agreement
    assert told["clear"] >= 3, "the bundled model has heads that one attribute drives"
    assert told["tested"] >= 0.6 * told["clear"], "most of them are named"
    assert told["right"] >= 0.8 * told["tested"]


# ---- keeping and selecting


def test_an_atlas_survives_json_and_answers_questions(demo: SimpleNamespace, tmp_path: Path) -> None:
    found: Atlas = demo.atlas
    (tmp_path / "atlas.json").write_text(json.dumps(found.to_dict(), allow_nan=False))
    assert Atlas.load(tmp_path) == found
    assert sum(found.roles.values()) == 48
    role = next(head.role.name for head in found.heads if head.role.named)
    chosen = found.with_role(role)
    assert [head.role.name for head in chosen] == [role] * len(chosen)
    assert [head.role.confidence for head in chosen] == sorted((h.role.confidence for h in chosen), reverse=True)
    assert set(found.select(f"role={role}")) == {(head.layer, head.head) for head in chosen}
    words = found.heads[3].texts[0].text
    assert (found.heads[3].layer, found.heads[3].head) in found.select(f"words={words}")
    assert found.with_words(words)[0].holds(words) == max(head.holds(words) for head in found.heads)
    assert found.select("7.1, 0.5") == ((7, 1), (0, 5))
    for spec, message in (
        ("role=nothing", "no head of this atlas has the role 'nothing'. Type one of: "),
        ("words=xylophone", "no text of any head holds the words 'xylophone'"),
        ("9.9", "head 9.9 is not in this atlas"),
        ("everything", "Type role=ROLE, words=WORDS or LAYER.HEAD"),
    ):
        with pytest.raises(BadSpec, match=message.replace(".", r"\.")):
            found.select(spec)


def test_files_that_are_no_atlas_are_named(tmp_path: Path) -> None:
    for text, message in (
        (None, "does not exist"),
        ("", "is no atlas"),
        ("[1]", "is no atlas"),
        ("{}", "is no atlas"),
        ('{"schema": "clip-anatomy/explain/1"}', "not 'clip-anatomy/atlas/3'"),
        ('{"schema": "clip-anatomy/atlas/3", "heads": 3}', "is no atlas"),
    ):
        if text is not None:
            (tmp_path / "atlas.json").write_text(text)
        with pytest.raises(BadInput, match=message):
            Atlas.load(tmp_path / "atlas.json")


# ---- a growing pool


def test_a_pool_grows_until_it_no_longer_pays(demo: SimpleNamespace) -> None:
    small = Pool(world_pool().texts[::6], world_pool().properties[::6], "few")
    found = atlas(
        demo.store,
        demo.clip,
        small,
        adaptive=True,
        rounds=4,
        resamples=0,
        picks=0,
        cache=demo.texts,
    )
    rounds = found.curve
    assert 2 <= len(rounds) <= 5
    assert [one.texts for one in rounds] == sorted({one.texts for one in rounds})
    assert rounds[0].texts == len(small)
    assert rounds[1].explained > rounds[0].explained
    flat = rounds[-1].explained - rounds[-2].explained < 0.01 * rounds[-2].explained
    assert flat or len(rounds) == 5
    assert "grown from 45 texts" in found.pool
    assert found.pool_texts == rounds[-1].texts
    known = set(world_grammar().expand(small.texts, 3000).texts) | set(small.texts)
    assert any(text.text not in small.texts for head in found.heads for text in head.texts)
    assert len(known) > found.pool_texts
    with pytest.raises(BadInput, match="rounds=6"):
        atlas(demo.store, demo.clip, small, adaptive=True, rounds=0, resamples=0, picks=0, cache=demo.texts)


# ---- what does not fit


def test_what_does_not_fit_is_refused(demo: SimpleNamespace, tmp_path: Path) -> None:
    other = replace(demo.clip, name="other", vision=replace(demo.clip.image_tower, activation="quick_gelu"))
    with pytest.raises(StoreError, match=r"was made with demo"):
        atlas(demo.store, other)
    with pytest.raises(StoreError, match="is no store"):
        atlas(tmp_path, demo.clip)
    with pytest.raises(BadInput, match="llm='http"):
        atlas(demo.store, demo.clip, task="counting")
    index(demo.clip, "world:1:test", tmp_path / "one", workers=1)
    with pytest.raises(BadInput, match="holds 1 images"):
        atlas(tmp_path / "one", demo.clip)


def test_pools_of_any_kind(demo: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("something striped\nsomething red\nxyz\nxyz\nalles Gute\ta wish\n")
    pool, _ = pool_of(file, demo.clip)
    assert pool.properties == ("texture", "colour", "", "a wish")
    assert pool_of(None, demo.clip)[0].texts == world_pool().texts
    assert pool_of("general", demo.clip)[0].properties.count("colour") == 120
    file.write_text("abc\nxyz\n")
    found = atlas(demo.store, demo.clip, file, resamples=0, picks=0, texts=2, cache=False)
    assert set(found.roles) <= {"mixed", "unnamed"}
    assert any("None of the texts says what property" in note for note in found.notes)
