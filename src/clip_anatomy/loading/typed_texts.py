"""Texts as a person typed them: cleaned, counted, and what the model cannot make of them."""

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from clip_anatomy.errors import BadText
from clip_anatomy.files import LARGEST_TEXT, path_of, read_lines
from clip_anatomy.loading.imagenet_texts import imagenet_templates
from clip_anatomy.loading.tokenizer import Tokenizer, check_printable

__all__ = ["PAPER", "TypedText", "checked_texts", "foreign_share", "read_templates", "read_texts", "shorten", "typed_texts", "words_read"]  # fmt: skip

PAPER = "imagenet"  # the 80 templates of CLIP's own recipe, which the paper takes
SHOWN = 90  # characters of a text that titles and tables show


@dataclass(frozen=True)
class TypedText:
    """One text as typed, and what the model cannot make of it."""

    text: str
    notes: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """The text as titles show it."""
        return shorten(self.text)


def shorten(text: str, length: int = SHOWN) -> str:
    """Shorten a text to one line of at most `length` characters, without control characters.

    Example:
        >>> shorten("a red   circle", 8)
        'a red c…'
    """
    line = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def read_texts(texts: Sequence[str]) -> list[str]:
    """Read texts as typed: themselves, or a file with one a line, named as FILE.txt or @FILE (@- for standard input).

    Raises:
        BadText: a file that cannot be read, or without a text.

    Example:
        >>> read_texts(["a dog", "@home"])
        ['a dog', '@home']
    """
    read: list[str] = []
    for text in [texts] if isinstance(texts, str) else texts:
        name = text.removeprefix("@") if isinstance(text, str) else ""
        if name in ("-", "/dev/stdin") and text != "-":
            given = sys.stdin.read(LARGEST_TEXT)  # it may have no end
            read += _some([line.strip() for line in given.splitlines() if line.strip()], "standard input")
        elif name.lower().endswith(".txt") or (name != text and path_of(name).is_file()):
            read += _some(read_lines(path_of(name), "Type a text file in UTF-8 with one text a line", BadText), name)
        else:
            read.append(text)
    return read


def read_templates(templates: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Read prompt templates as typed: themselves, or "imagenet" for the 80 of CLIP's own recipe."""
    if templates is None or not len(templates):
        return None
    given = (templates,) if isinstance(templates, str) else tuple(templates)
    return tuple(imagenet_templates()) if given == (PAPER,) else given


def _some(lines: list[str], name: str) -> list[str]:
    if not lines:
        raise BadText(f"{name} holds no text. Type a file with one text a line")
    return lines


def checked_texts(texts: Sequence[str], tokenizer: Tokenizer | None) -> list[TypedText]:
    """Check the texts, drop repetitions, and note what the model will not understand.

    Args:
        texts: as typed.
        tokenizer: the model's.

    Returns:
        The texts in order, each once.

    Raises:
        BadText: no text, or one without a single visible character.
    """
    if not texts:
        raise BadText('no text was given. Type what to look for: texts="a photo of a dog"')
    try:  # what a terminal without UTF-8 made of letters is put together again
        clean = [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts]
    except UnicodeEncodeError:
        clean = check_printable(texts)
    for i, text in enumerate(clean, 1):
        if not shorten(text):
            raise BadText(f'text {i} is empty. Type what to look for: texts="a photo of a dog"')
    return [TypedText(text, tuple(_notes(text, tokenizer))) for text in dict.fromkeys(clean)]


def typed_texts(texts: Sequence[str], tokenizer: Tokenizer | None) -> tuple[list[TypedText], list[str]]:
    """Check the texts as `checked_texts` does; leave out empty ones as long as another is left.

    Returns:
        The texts, and a note on each that was left out or stood twice.

    Raises:
        BadText: none is left.
    """
    texts = read_texts(texts)
    kept = [text for text in texts if shorten(text)] or list(texts)
    notes = [f"text {i} is empty and was left out" for i, text in enumerate(texts, 1) if text not in kept]
    twice = [text for text in dict.fromkeys(kept) if kept.count(text) > 1]
    notes += [f"“{shorten(text)}” was given {kept.count(text)} times and is asked once" for text in twice]
    return checked_texts(kept, tokenizer), notes


def _notes(text: str, tokenizer: Tokenizer | None) -> list[str]:
    if tokenizer is None:
        return []
    notes: list[str] = []
    read, count = words_read(text, tokenizer)
    if read == 0:
        notes.append("It is too long: only its beginning was read.")
    elif read < count:
        notes.append(f"Only the first {read:,} of its {count:,} words were read: the rest does not fit into the model.")
    unknown: Callable[[str], list[str]] | None = getattr(tokenizer, "unknown", None)
    if unknown is not None:
        unknown_words = unknown(" ".join(text.split()[: max(1, read)]))
        if unknown_words:
            listing = ", ".join(shorten(word, 24) for word in unknown_words[:6])
            more = f" and {len(unknown_words) - 6} more" if len(unknown_words) > 6 else ""
            notes.append(
                f"This model does not know: {listing}{more}. It was never trained on it, so its numbers for this text mean nothing."
            )
    elif foreign_share(text) > 0.5:
        notes.append("Most of it is not in Latin letters: a CLIP trained on English alone does not understand it.")
    return notes


def words_read(text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Count how many of a text's words the model reads, and how many there are.

    Works with any tokenizer: words that can be left off without changing the ids were not read.

    Args:
        text: any text.
        tokenizer: the model's.

    Returns:
        (words read, words); a word that is cut in its middle counts as not read.
    """
    words = text.split()
    line = " ".join(words)
    whole = tokenizer([line])

    def same(other: str) -> bool:
        return torch.equal(tokenizer([other]), whole)

    # Something added changes the ids unless the context is full; something left off does unless it was never read.
    if len(line) < 2 or not same(f"{line} a b c") or not same(line[:-1]):
        return len(words), len(words)
    low, high = 0, len(words)  # the first `high` words give the same ids, the first `low` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if same(" ".join(words[:middle])) else (middle, high)
    cut = high == len(words) or same(" ".join(words[:high])[:-1])
    return (high - 1 if cut else high), len(words)


def foreign_share(text: str) -> float:
    """Share of a text's letters that are not Latin.

    Example:
        >>> foreign_share("ein Bär"), foreign_share("красный круг")
        (0.0, 1.0)
    """
    letters = [c for c in text[:10_000] if c.isalpha()]
    return sum("LATIN" not in unicodedata.name(c, "") for c in letters) / max(1, len(letters))
