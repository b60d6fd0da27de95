"""Our general pool is large, balanced and clean; any text file is read or refused by line; "more like these" makes more."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_anatomy.errors import BadInput, BadText
from clip_anatomy.naming.bundled_pools import expand, general_grammar, general_pool, vocabulary
from clip_anatomy.naming.grammar import Grammar, WordGroup, article
from clip_anatomy.naming.pool import Pool, read_pool


def test_the_general_pool_is_large_distinct_and_balanced() -> None:
    pool = general_pool()
    assert len(pool) >= 3000
    assert len({text.lower() for text in pool.texts}) == len(pool)
    sizes = Counter(pool.properties)
    assert len(sizes) >= 30
    assert set(sizes.values()) == {120}
    assert general_pool().digest == pool.digest
    # A smaller pool is as balanced, and uses as many words as it can.
    small = general_pool(per_property=20)
    assert set(Counter(small.properties).values()) == {20}
    spoken = {
        word
        for text, name in zip(small.texts, small.properties, strict=True)
        for word in vocabulary()[name]
        if word in text
    }
    assert len(spoken) >= 20 * len(sizes) * 0.95


def test_descriptions_are_tidy_english() -> None:
    for text in general_pool().texts:
        assert re.fullmatch(r"[\w' ,-]+", text), text
        assert not re.search(r"  |^ | $|[{}]", text), text
        assert not re.search(r"\ban? an? \b|\b(a|an|the) (a|an|the|some) ", text), text
        for small, word in re.findall(r"\b([Aa]n?) ([\w-]+)", text):
            assert small.lower() == article(word), text
        assert 2 <= len(text.split()) <= 14, text


def test_every_word_list_is_free_of_repeats() -> None:
    for name, words in vocabulary().items():
        assert len(set(words)) == len(words) >= 20, name
        assert all(word == word.strip() and word for word in words), name


def test_the_pool_is_our_own(shared: Path) -> None:
    """Hardly a description of the published pools is also one of ours."""
    theirs: set[str] = set()
    for name in ("image_descriptions_general", "image_descriptions_per_class"):
        pool = read_pool(shared / "data" / "pools" / f"{name}.txt", duplicates="drop")
        assert len(pool) > 3000
        theirs |= {text.lower().rstrip(".") for text in pool.texts}
    assert len(theirs & {text.lower() for text in general_pool().texts}) <= 5


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(0, 60))
def test_more_like_these_are_new_distinct_and_about_the_same_first(data: st.DataObject, n: int) -> None:
    pool = general_pool()
    start = data.draw(st.lists(st.sampled_from(pool.texts), min_size=1, max_size=4, unique=True))
    more = expand(start, n)
    assert len(more) == n, "the grammar has always 60 more to say"
    assert not set(start) & set(more.texts)
    about = {pool.properties[pool.texts.index(text)] for text in start}
    assert set(more.properties[: min(n, 20)]) <= about
    assert expand(start, n).texts == more.texts


def test_texts_from_elsewhere_are_understood_by_their_words() -> None:
    more = expand(["My cat on a rainy day!"], 2000)
    assert "the head of a cat" in more.texts
    assert "My dog on a rainy day!" in more.texts
    assert "My cat on a sunny day!" in more.texts
    assert "My cat on a rainy day at dusk" in more.texts
    assert {"animal", "weather"} <= set(more.properties)
    nothing_known = expand(["qwerty"], 50)
    assert len(nothing_known) == 50
    assert all(text.startswith("qwerty ") for text in nothing_known.texts)
    braces = expand(["a {strange} red {} thing"], 10)
    assert len(braces) == 10
    with pytest.raises(BadInput, match="at least one text"):
        expand([], 3)


def test_expanding_its_own_expansion_grows_until_told_to_stop() -> None:
    texts = ["something painted red"]
    for _ in range(4):
        texts += expand(texts, 50).texts
    assert len(set(texts)) == len(texts) == 201


def test_any_word_lists_make_a_grammar() -> None:
    shapes = WordGroup(("circle", "arrow"), ("{a} in the middle", "one {}"), "beside {a}")
    grammar = Grammar({"shape": (shapes,), "colour": (WordGroup(("red",), ("something {}",), "in {}"),)}, "tiny")
    assert grammar.pool(2).texts == ("a circle in the middle", "one arrow", "something red")
    assert grammar.pool(99).properties == ("shape",) * 4 + ("colour",)
    assert grammar.words_in("a RED arrow") == [("red", "colour"), ("arrow", "shape")]
    assert grammar.vocabulary == {"shape": ("circle", "arrow"), "colour": ("red",)}
    assert grammar.expand(["one arrow"], 9).texts == (
        "an arrow in the middle",
        "one circle",
        "one arrow in red",
    )
    assert Grammar({}).expand(["x"], 5).texts == ()
    assert Grammar({}).words_in("x") == []


def test_words_are_found_whole_and_longest_first() -> None:
    found = general_grammar().words_in("a hot-air balloon over Norway, not a redwood")
    assert ("hot-air balloon", "vehicle") in found
    assert ("norway", "country") in found
    assert not [word for word, _ in found if word in ("hot", "red", "wood")]


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "pool.txt"
    path.write_bytes(content)
    return path


def test_a_text_file_is_read_in_its_order(tmp_path: Path) -> None:
    pool = read_pool(_file(tmp_path, "\ufeffa cat\r\n\n  ein Bär \tanimal\n日本の寺\n".encode()))
    assert pool.texts == ("a cat", "ein Bär", "日本の寺")
    assert pool.properties == ("", "animal", "")
    assert pool.source == "pool.txt"
    assert read_pool(str(tmp_path / "pool.txt")) == pool


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no description"),
        (b"\n  \n\t\n", "holds no description"),
        (b"fine\nPK\x03\x04\x00\x00\n", "line 2: a zero byte"),
        (b"fine\n\xff\xfe caf\xe9\n", "line 2: not UTF-8"),
        (b"a\nb\na\n", "line 3: 'a' stands in line 1 already.*duplicates='drop'"),
        (b"ok\n" + b"x" * 10_000_000, "line 2: longer than 2000 characters"),
        (b"y" * 2001, "line 1: longer than 2000"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadText, match=message):
        read_pool(_file(tmp_path, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadText, match="does not exist"):
        read_pool(tmp_path / "none.txt")
    with pytest.raises(BadText, match="cannot be read"):
        read_pool(tmp_path)
    with pytest.raises(BadText, match="Type 'refuse' or 'drop'"):
        read_pool(tmp_path, duplicates="maybe")
    assert read_pool(_file(tmp_path, b"a\nb\na\n"), duplicates="drop").texts == ("a", "b")


def test_pools_hold_each_text_once() -> None:
    with pytest.raises(BadText, match="'b' twice"):
        Pool(("a", "b", "b"))
    with pytest.raises(BadText, match="one property for each"):
        Pool(("a", "b"), ("colour",))
    assert Pool.of(["b", "a", "b"]).texts == ("b", "a")
    both = Pool(("a", "b"), ("x", "y")).merge(Pool(("b", "c"), ("p", "q")))
    assert (both.texts, both.properties) == (("a", "b", "c"), ("x", "y", "q"))
    assert Pool(("a", "b")).digest != Pool(("b", "a")).digest
