"""Roles and the truth behind them: against brute force, and against what is known of the demo world."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clip_anatomy as ca
from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from clip_anatomy.naming.bundled_pools import general_grammar, general_pool, world_grammar, world_pool
from clip_anatomy.naming.concept_shares import concept_shares
from clip_anatomy.naming.grammar import tag
from clip_anatomy.naming.ground_truth import agreement, attribute_shares, codes_of
from clip_anatomy.naming.roles import MIXED, UNNAMED, roles
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.moments import Moments

# ---- truth


def brute_shares(x: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Share of one attribute, corrected and plain, by loops over groups; x [image, d]."""
    total = sum(float(row @ row) for row in x - x.mean(0))
    known = codes >= 0
    within, between = 0.0, 0.0
    middle = x[known].mean(0)
    values = sorted(set(codes[known].tolist()))
    for value in values:
        rows = x[codes == value]
        between += len(rows) * float((rows.mean(0) - middle) @ (rows.mean(0) - middle))
        within += sum(float(row @ row) for row in rows - rows.mean(0))
    chance = (len(values) - 1) * within / (known.sum() - len(values))
    return (between - chance) / total, between / total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 60), st.integers(1, 4), st.integers(1, 25))
def test_shares_equal_an_analysis_of_variance_by_loops(seed: int, images: int, values: int, batch: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(images, 2, 2, 3)) + 50.0
    codes = generator.integers(-1, values + 1, size=(images, 2))
    x[:, 0, 1, 0] += 3 * codes[:, 0]
    batches = [
        (torch.from_numpy(x[at : at + batch]), torch.from_numpy(codes[at : at + batch]))
        for at in range(0, images, batch)
    ]
    truth = attribute_shares(batches, ["a", "b"], layers=[4, 7])
    for layer in range(2):
        for head in range(2):
            for attribute in range(2):
                if len(set(codes[:, attribute].tolist()) - {-1}) < 2:
                    continue
                corrected, plain = brute_shares(x[:, layer, head], codes[:, attribute])
                assert float(truth.plain[layer, head, attribute]) == pytest.approx(plain, abs=1e-9)
                assert float(truth.share[layer, head, attribute]) == pytest.approx(max(corrected, 0), abs=1e-9)
            expected = x[:, layer, head].var(0, ddof=1).sum()
            assert float(truth.variance[layer, head]) == pytest.approx(expected, rel=1e-9)


def test_chance_explains_nothing_after_correction_however_many_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 1, 8, generator=generator)
    codes = torch.stack([torch.randint(0, k, (400,), generator=generator) for k in (2, 50)], 1)
    truth = attribute_shares([(x, codes)], ["few", "many"])
    assert float(truth.plain[0, 0, 1]) > 0.1
    assert float(truth.share.max()) < 0.01


def test_codes_and_what_is_refused() -> None:
    codes, names = codes_of({"a": ["x", "", "y"], "b": [1, 1, 1], "c": [None, 2, 10]})
    assert names == ("a", "c")
    assert codes.tolist() == [[0, -1], [-1, 1], [1, 0]]
    with pytest.raises(BadInput, match="give one with two values"):
        codes_of({"b": ["same", "same"]})
    with pytest.raises(BadInput, match="two or more"):
        attribute_shares([], ["a"])
    with pytest.raises(BadInput, match="image, attribute"):
        attribute_shares([(torch.zeros(2, 1, 1, 1), torch.zeros(2, 2, dtype=torch.int64))], ["a"])


def test_agreement_counts_clear_and_named_heads_only() -> None:
    x = torch.zeros(8, 1, 3, 1)
    codes = torch.tensor([[i % 2, i // 4] for i in range(8)])
    x[:, 0, 0, 0] = codes[:, 0].float()
    x[:, 0, 1, 0] = codes[:, 1].float()
    x[:, 0, 2, 0] = codes[:, 1].float()
    truth = attribute_shares([(x, codes)], ["parity", "half"], layers=[5])
    told = agreement({(5, 0): "parity", (5, 1): "parity", (5, 2): UNNAMED}, truth)
    assert (told.tested, told.right, told.rate) == (2, 1, 0.5)
    assert told.rows[1] == (5, 1, "parity", "half", pytest.approx(1.0), True)
    assert np.isnan(agreement({(5, 2): UNNAMED}, truth).rate)


# ---- roles


def two_properties(seed: int, driven_by: int, images: int = 300) -> tuple[Moments, torch.Tensor, list[str]]:
    """A head that writes along one of two properties' texts, each in a subspace of its own, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    pool = torch.cat(
        [torch.randn(8, 4, generator=generator, dtype=torch.float64) @ frame[4 * p : 4 * p + 4] for p in (0, 1)]
    )
    pool = pool + frame[11]  # what all texts have in common
    pool = pool / pool.norm(dim=1, keepdim=True)
    x = torch.randn(images, 4, generator=generator, dtype=torch.float64) @ frame[4 * driven_by : 4 * driven_by + 4]
    x = x + 0.05 * torch.randn(images, 12, generator=generator, dtype=torch.float64) + frame[10]
    return Moments.of(x[:, None, None]), pool, ["colour"] * 8 + ["shape"] * 8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 1))
def test_a_head_driven_by_a_property_is_called_by_it(seed: int, driven_by: int) -> None:
    moments, pool, properties = two_properties(seed, driven_by)
    role = roles(textspan(moments, pool, 10), moments, pool, properties)[0, 0]
    assert role.name == ("colour", "shape")[driven_by]
    assert role.by_picks == role.by_text_variance == role.name
    assert role.confidence == pytest.approx(role.shares[0][1])
    assert sum(share for _, share in role.shares) == pytest.approx(1)


def test_both_scores_equal_loops_over_texts() -> None:
    generator = torch.Generator().manual_seed(3)
    basis = HeadBasis.of(torch.randn(2, 2, 5, 9, generator=generator, dtype=torch.float64), layers=(3, 6))
    moments = Moments.of(torch.randn(50, 2, 2, 5, generator=generator), basis=basis)
    pool = torch.randn(30, 9, generator=generator, dtype=torch.float64)
    properties = (["a", "b", "c", "", "a + b"] * 6)[:30]
    span = textspan(moments, pool, 5)
    found = roles(span, moments, pool, properties)
    assert set(found) == {(3, 0), (3, 1), (6, 0), (6, 1)}
    for (layer, head), role in found.items():
        at = (0 if layer == 3 else 1), head
        votes = dict.fromkeys("abc", 0.0)
        before = 0.0
        for k in range(5):
            gain = float(span.cumulative[at][k]) - before
            before += gain
            told = [name for name in properties[int(span.indices[at][k])].split(" + ") if name]
            for name in told:
                votes[name] += gain / len(told)
        spread = {}
        for name in "abc":
            texts = [basis.rows[at] @ text for text, told in zip(pool, properties, strict=True) if told == name]
            middle = torch.stack(texts).mean(0)
            apart = [text - middle for text in texts]
            spread[name] = sum(float(v @ moments.covariance[at] @ v) for v in apart) / len(texts)
        for name, share in role.shares:
            expected = (votes[name] / sum(votes.values()) + spread[name] / sum(spread.values())) / 2
            assert share == pytest.approx(expected)


def test_heads_that_nobody_leads_are_mixed_and_heads_little_explained_unnamed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, 1, 4, generator=generator, dtype=torch.float64)
    moments = Moments.of(x)
    pool = torch.eye(4, dtype=torch.float64)
    covariance = moments.covariance[0, 0].diagonal()
    order = covariance.argsort(descending=True).tolist()
    properties = [""] * 4
    for place, name in zip(order, ("a", "b", "b", "a"), strict=True):
        properties[place] = name
    assert roles(textspan(moments, pool, 4), moments, pool, properties)[0, 0].name == MIXED
    role = roles(textspan(moments, pool[:1], 4, threshold=0.9), moments, pool[:1], ["a"])[0, 0]
    assert (role.name, role.confidence, role.named) == (UNNAMED, 0.0, False)


def test_pools_without_properties_are_refused_with_a_way_out() -> None:
    moments, pool, _ = two_properties(0, 0)
    with pytest.raises(BadInput, match=r"after a tab.*general_pool"):
        roles(textspan(moments, pool, 4), moments, pool, [""] * 16)
    with pytest.raises(BadInput, match="3 properties for 16 texts"):
        roles(textspan(moments, pool, 4), moments, pool, ["a"] * 3)


def test_tags_come_from_the_words_of_a_text() -> None:
    grammar = general_grammar()
    texts = ["a rusty thing", "a red dog", "nothing known", "RED, red and a dog"]
    assert tag(texts, ["", "", "", ""], grammar) == ("texture", "colour + animal", "", "colour")
    assert tag(texts, ["x"] * 4, grammar) == ("x",) * 4


# ---- the world's pool, and embeddings on disk


def test_the_world_pool_speaks_of_every_attribute_in_words_the_model_was_taught() -> None:
    pool = world_pool()
    assert set(pool.properties) == {*ATTRIBUTES, "digit"}
    counts = [pool.properties.count(name) for name in set(pool.properties)]
    assert min(counts) >= 20
    assert max(counts) <= 2 * min(counts)
    tokenizer = WordTokenizer.bundled()
    more = world_grammar().expand(pool.texts[::7], 500)
    assert not [text for text in (*pool.texts, *more.texts) if tokenizer.unknown(text)]
    every = " ".join(pool.texts)
    missing = [value for values in ATTRIBUTES.values() for value in values if value not in every]
    assert not missing
    own = dict(zip(pool.texts, pool.properties, strict=True))
    told = tag(pool.texts, [""] * len(pool), world_grammar())
    assert np.mean([one == own[text] for text, one in zip(pool.texts, told, strict=True)]) > 0.95


def test_embeddings_are_made_once_and_are_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ca.load("demo")
    texts = ["a red circle", "a star", "a red circle", "", "ünknown wörds \ud800"]
    file = tmp_path / "texts.sqlite"
    steps: list[tuple[int, int]] = []
    first = embed_texts(clip, texts, cache=file, progress=lambda what, done, total: steps.append((done, total)))
    assert torch.equal(first, clip.encode_text(texts)) or torch.allclose(first, clip.encode_text(texts), atol=1e-6)
    assert steps == [(0, 4), (4, 4)]

    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("asked the model again")

    with monkeypatch.context() as patched:
        patched.setattr(type(clip), "encode_text", refuse)
        assert torch.equal(embed_texts(clip, texts[::-1], cache=file), first.flip(0))
    prompts = ["a photo of {}", "one {}"]
    averaged = embed_texts(clip, texts[:2], prompts, cache=file)
    assert torch.allclose(averaged, clip.encode_text(texts[:2], prompts), atol=1e-6)
    assert not torch.allclose(averaged, first[:2])


def test_two_writers_of_embeddings_do_not_disturb_each_other(tmp_path: Path) -> None:
    clip = ca.load("demo")
    texts = [f"{word} object" for word in general_pool(2).texts]
    found: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(embed_texts(clip, texts, cache=tmp_path / "t.sqlite")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(embed_texts(clip, texts, cache=tmp_path / "t.sqlite"), clip.encode_text(texts), atol=1e-6)


# ---- the words of one concept


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 6))
def test_shares_of_concepts_are_those_of_a_regression_on_all_images(seed: int, framed: bool, words: int) -> None:
    """Head Pursuit step by step over the images: the word that the residuals lie along most, all weights anew, what is left."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(12, 5, generator=generator, dtype=torch.float64))[0].T
    u = torch.randn(60, 1, 3, 5, generator=generator, dtype=torch.float64) * torch.rand(5, generator=generator)
    pool = torch.nn.functional.normalize(torch.randn(9, 12, generator=generator, dtype=torch.float64), dim=1)
    pool[4] = pool[3]  # a word twice adds nothing
    properties = ["a"] * 5 + ["b"] * 3 + ["a + b"]
    rows = frame.expand(1, 3, 5, 12)
    basis = HeadBasis(rows, torch.eye(5).double().expand(1, 3, 5, 5)) if framed else None
    moments = Moments.of(u, basis=basis) if framed else Moments.of(u @ frame)
    found = concept_shares(moments, pool, properties, words)
    for head in range(3):
        x = (u @ frame)[:, 0, head]
        x = x - x.mean(0)
        for concept, texts in (("a", pool[:5]), ("b", pool[5:8])):
            picked: list[int] = []
            left, apart = x, texts
            for _ in range(min(words, len(texts))):
                score = (x @ apart.T).square().sum(0)
                score[apart.norm(dim=1) < 1e-6] = -1
                if float(score.max()) < 0:
                    break
                picked.append(int(score.argmax()))
                q = torch.linalg.qr(texts[picked].T)[0]
                left, apart = x - x @ q @ q.T, texts - texts @ q @ q.T
            one = next(one for one in found[0, head] if one.concept == concept)
            assert one.share == pytest.approx(1 - float(left.square().sum() / x.square().sum()), abs=1e-9)
            others = [
                next(each.share for each in found[0, h] if each.concept == concept) for h in range(3) if h != head
            ]
            assert one.others == pytest.approx(sum(others) / 2)
        beyond = [one.share - (one.others or 0) for one in found[0, head]]
        assert beyond == sorted(beyond, reverse=True)


def test_one_head_has_no_others_and_a_pool_without_concepts_has_no_opinion() -> None:
    moments, pool, properties = two_properties(0, 1)
    found = concept_shares(moments, pool, properties)[0, 0]
    assert [one.others for one in found] == [None, None]
    assert found[0].concept == "shape"
    assert concept_shares(moments, pool, [""] * len(pool)) == {(0, 0): ()}
