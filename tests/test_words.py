"""The bundled tokenizer takes any text, keeps its closing token, and says which words the model never saw."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_anatomy.data.world import World
from clip_anatomy.loading.word_tokenizer import WordTokenizer

tokenizer = WordTokenizer.bundled()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_becomes_one_row_that_ends_with_the_highest_id(text: str) -> None:
    (row,) = tokenizer([text])
    assert row.shape == (32,)
    assert row[0] == tokenizer.start
    assert int(row.max()) == tokenizer.end == tokenizer.size - 1
    end = int(row.argmax())
    assert not row[end + 1 :].any()  # padding only
    assert (row[1:end] > 0).all()


@pytest.mark.parametrize("text", ["", " ", "word " * 10_000, "жар-птица 火の鳥 🔥", "a" * 5000, "\x00", "\ud800"])
def test_odd_texts_do_not_fail(text: str) -> None:
    assert int(tokenizer([text]).max()) == tokenizer.end
    assert tokenizer.pieces(text)[-1] == "<end>"


def test_captions_are_whole_words_that_fit_and_come_back() -> None:
    captions = [text for row in World().batch(np.arange(200)).captions(3) for text in row]
    rows = tokenizer(captions)
    for text, row in zip(captions, rows, strict=True):
        assert tokenizer.decode(row) == text
        assert int(row.argmax()) == len(text.split()) + 1
        assert tokenizer.unknown(text) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(categories=["Ll"]), min_size=1, max_size=4), max_size=5))
def test_unknown_words_survive_the_round_trip(words: list[str]) -> None:
    text = " ".join(words).lower()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids).split() == tokenizer.split(text)


def test_unknown_lists_each_foreign_word_once_and_no_punctuation() -> None:
    assert tokenizer.unknown("A zebra, a red zebra and a Gnu!") == ["zebra", "gnu"]
    assert tokenizer.unknown("a red circle.") == []


def test_pieces_and_positions_locate_the_same_tokens() -> None:
    text = "a red ox circle"
    pieces, ranges = tokenizer.pieces(text), tokenizer.positions(text)
    assert len(pieces) == int(tokenizer([text])[0].argmax()) + 1
    assert ["".join(pieces[a:b]) for a, b in ranges] == ["a", "red", "·ox", "circle"]
    assert all(b <= 31 for _, b in tokenizer.positions("red " * 100))


def test_case_does_not_matter_and_one_string_is_a_list_of_one() -> None:
    assert torch.equal(tokenizer("A Red CIRCLE"), tokenizer(["a red circle"]))
