"""The bundled model's tokenizer: whole words of its small world, bytes for everything else, so that no text fails."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]+")
_MARKS = 258  # pad, 256 bytes, and the mark that opens a word spelled in bytes


@dataclass(frozen=True)
class WordTokenizer:
    """Turn English into token ids; words outside the vocabulary are spelled in bytes.

    Ids: 0 pads; 1–256 are bytes; 257 opens a spelled word; then the words in order; the last two ids open and close a
    text. The closing id is the highest, because the text tower is read out at the highest id.

    Args:
        words: the vocabulary, lower case.
        context: tokens in a row of ids.

    Example:
        >>> tokenizer = WordTokenizer.bundled()
        >>> tokenizer(["a red circle"]).shape
        torch.Size([1, 32])
        >>> tokenizer.split("A red zebra")
        ['a', 'red', 'zebra']
        >>> tokenizer.unknown("A red zebra")
        ['zebra']
    """

    words: tuple[str, ...]
    context: int = 32

    @classmethod
    def load(cls, path: Path) -> "WordTokenizer":
        """Read a vocabulary file: JSON with `words` and `context`."""
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(tuple(held["words"]), int(held["context"]))

    @classmethod
    def bundled(cls) -> "WordTokenizer":
        """Return the tokenizer of the bundled model."""
        return cls.load(Path(__file__).parent / "demo" / "vocab.json")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Return the id of each word."""
        return {word: _MARKS + at for at, word in enumerate(self.words)}

    @property
    def start(self) -> int:
        """Return the id that opens a text."""
        return _MARKS + len(self.words)

    @property
    def end(self) -> int:
        """Return the id that closes a text, the highest."""
        return self.start + 1

    @property
    def size(self) -> int:
        """Return the number of ids."""
        return self.end + 1

    def __call__(self, texts: "list[str] | str") -> Int[Tensor, "text token"]:
        """Tokenize texts of any kind; what does not fit the context is cut off, the closing token is kept.

        Args:
            texts: a list of texts, or one.

        Returns:
            Token ids, padded with zeros.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in enumerate(texts):
            ids = [self.start, *self.encode(text, self.context - 2), self.end]
            rows[row, : len(ids)] = torch.tensor(ids)
        return rows

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Return a text's ids without the opening and closing ones, at most `limit` of them."""
        ids: list[int] = []
        for match in _WORD.finditer(text.lower()):
            ids += self._spell(match.group())
            if limit is not None and len(ids) >= limit:
                return ids[:limit]
        return ids

    def _spell(self, word: str) -> list[int]:
        if word in self.ids:
            return [self.ids[word]]
        return [_MARKS - 1, *(1 + byte for byte in word.encode("utf-8", "surrogatepass"))]

    def split(self, text: str) -> list[str]:
        """Split a text into words and runs of other signs, lower case: what `positions` locates."""
        return [match.group() for match in _WORD.finditer(text.lower())]

    def pieces(self, text: str) -> list[str]:
        """Return one readable string per token of a text, the opening and closing marks included.

        A word outside the vocabulary shows as "·" and its bytes.

        Example:
            >>> WordTokenizer.bundled().pieces("A red ox")
            ['<start>', 'a', 'red', '·', 'o', 'x', '<end>']
        """
        named = {_MARKS - 1: "·"} | {at: word for word, at in self.ids.items()}
        ids = self.encode(text, self.context - 2)
        return ["<start>", *(named.get(at) or bytes([at - 1]).decode("latin-1") for at in ids), "<end>"]

    def positions(self, text: str) -> list[tuple[int, int]]:
        """Return for each word of `split` the range of its tokens in a row of ids; empty where it was cut off.

        Example:
            >>> WordTokenizer.bundled().positions("a red ox")
            [(1, 2), (2, 3), (3, 6)]
        """
        ranges, at, last = [], 1, self.context - 1
        for word in self.split(text):
            after = at + len(self._spell(word))
            ranges.append((min(at, last), min(after, last)))
            at = after
        return ranges

    def unknown(self, text: str) -> list[str]:
        """Return the words that the model was never trained on, each once, in order."""
        return list(
            dict.fromkeys(piece for piece in self.split(text) if piece not in self.ids and any(map(str.isalnum, piece)))
        )

    def decode(self, ids: "Tensor | list[int]") -> str:
        """Turn ids back into text: lower case, words apart by one space."""
        out: list[str] = []
        spelled = bytearray()

        def flush() -> None:
            if spelled:
                out.append(spelled.decode("utf-8", "replace"))
                spelled.clear()

        for token in [int(i) for i in ids]:
            if 1 <= token <= 256:
                spelled.append(token - 1)
                continue
            flush()
            if _MARKS <= token < self.start:
                out.append(self.words[token - _MARKS])
        flush()
        return " ".join(out)
