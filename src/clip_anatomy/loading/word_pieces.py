"""Words of a text and the tokens that they were cut into, whatever the tokenizer."""

from typing import Any

from clip_anatomy.errors import BadText

__all__ = ["align", "word_tokens"]

_MARKS = ("</w>", "Ġ", "▁", "·")
_AHEAD = 16  # letters that a tokenizer may have rewritten before a piece is found again


def word_tokens(tokenizer: Any, sentence: str, tokens: int) -> list[tuple[str, list[int]]]:
    """Return each word and the numbers of its tokens, none for a word beyond the context.

    Args:
        tokenizer: one that tells its pieces.
        sentence: one text.
        tokens: how many there are in a row of ids.

    Raises:
        BadText: the tokenizer does not tell its pieces.
    """
    if hasattr(tokenizer, "positions"):  # the bundled model's tokenizer knows
        pieces = zip(tokenizer.split(sentence), tokenizer.positions(sentence), strict=True)
        return [(word, list(range(*span))) for word, span in pieces]
    if not hasattr(tokenizer, "pieces"):
        raise BadText(
            "this model's tokenizer does not tell its pieces. Type: load(..., tokenizer=one with .pieces(text))"
        )
    return align(sentence, list(tokenizer.pieces(sentence))[:tokens])


def align(sentence: str, pieces: list[str]) -> list[tuple[str, list[int]]]:
    """Match words (between spaces) with the numbers of their pieces, whatever marks a tokenizer puts on them.

    Args:
        sentence: as it was typed.
        pieces: of the tokenizer, start and end marks included.

    Example:
        >>> align("A zebrafish, striped", ["<start>", "a", "zebra", "fish", ",", "strip", "ed", "<end>"])
        [('A', [1]), ('zebrafish,', [2, 3, 4]), ('striped', [5, 6])]
    """
    words = sentence.split()
    letters = "".join(words).lower()
    owner = [at for at, word in enumerate(words) for _ in word.lower()]
    tokens_of: list[list[int]] = [[] for _ in words]
    at = 0
    for number, piece in enumerate(pieces):
        clean = piece.lower()
        for mark in _MARKS:
            clean = clean.replace(mark.lower(), "")
        clean = clean.strip()
        place = letters.find(clean, at, at + _AHEAD + len(clean)) if clean else -1
        if place >= 0:
            tokens_of[owner[place]].append(number)
            at = place + len(clean)
        elif 0 < number < len(pieces) - 1 and at < len(letters):
            tokens_of[owner[at]].append(number)  # a piece that is no readable text: a byte of the word that comes next
    return list(zip(words, tokens_of, strict=True))
