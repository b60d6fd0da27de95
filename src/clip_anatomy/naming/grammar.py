"""The grammar of descriptions: word lists × sentence frames, each with the property that it is about.

    description = frame filled with a word            "something painted {}"   × "red"    → "something painted red"
    blend       = description + tail of another word  "a portrait of a heron" + "at dusk" → "a portrait of a heron at dusk"

In a frame `{}` stands for the word and `{a}` for the word with its indefinite article. Descriptions are ordered so that the first n
of a property use as many different words and frames as n allows; nothing is random.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TypeVar

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.pool import Pool

__all__ = ["BOTH", "Grammar", "WordGroup", "tag"]

T = TypeVar("T")

BOTH = " + "  # between the properties of a text that is about several


@dataclass(frozen=True)
class WordGroup:
    """Words that fit the same sentences.

    Attributes:
        words: what the descriptions are about.
        frames: sentences with `{}` or `{a}`.
        tail: what a word adds to another description, with `{}` or `{a}`; empty for nothing.
    """

    words: tuple[str, ...]
    frames: tuple[str, ...]
    tail: str = ""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(word, frame), every word once with one frame, then every word with the next."""
        for turn in range(len(self.frames)):
            for place, word in enumerate(self.words):
                yield word, self.frames[(place + turn) % len(self.frames)]


@dataclass(frozen=True)
class Grammar:
    """Groups of words per property.

    Attributes:
        groups: property → its groups.
        name: of the pools it makes.
    """

    groups: Mapping[str, tuple[WordGroup, ...]]
    name: str = "grammar"

    @cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Property → its words: what a role is chosen from."""
        return {name: tuple(word for group in groups for word in group.words) for name, groups in self.groups.items()}

    @cached_property
    def _known(self) -> dict[str, tuple[str, WordGroup, str, str]]:
        """Every description that the grammar can make → (property, group, word, frame)."""
        return {
            fill(frame, word): (name, group, word, frame)
            for name, groups in self.groups.items()
            for group in groups
            for word, frame in group.pairs()
        }

    @cached_property
    def _homes(self) -> dict[str, list[tuple[str, WordGroup]]]:
        """Word → the properties that it belongs to ("lavender" is a colour and a plant)."""
        homes: dict[str, list[tuple[str, WordGroup]]] = {}
        for name, groups in self.groups.items():
            for group in groups:
                for word in group.words:
                    homes.setdefault(word.lower(), []).append((name, group))
        return homes

    @cached_property
    def _finder(self) -> re.Pattern[str]:
        longest_first = sorted(self._homes, key=len, reverse=True)
        return re.compile(r"(?<!\w)(" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE)

    def pool(self, per_property: int = 120) -> Pool:
        """Make a pool with equally many distinct descriptions of every property.

        Args:
            per_property: how many of each; fewer when a property has no more to say.
        """
        texts: dict[str, str] = {}
        for name, groups in self.groups.items():
            fresh = (
                text
                for word, frame in _in_turn([group.pairs() for group in groups])
                if (text := fill(frame, word)) not in texts
            )
            texts |= dict.fromkeys(list(islice(fresh, per_property)), name)
        return Pool(tuple(texts), tuple(texts.values()), f"{self.name}, {per_property} of each property")

    def words_in(self, text: str) -> list[tuple[str, str]]:
        """(word, property) of every word of the vocabulary in a text, longest words first claimed.

        Example:
            >>> Grammar({"colour": (WordGroup(("red",), ("a {} wall",)),)}).words_in("A red, red rose")
            [('red', 'colour'), ('red', 'colour')]
        """
        matches = (match.lower() for match in self._finder.findall(text)) if self._homes else iter(())
        return [(word, name) for word in matches for name, _ in self._homes[word]]

    def expand(self, texts: Sequence[str], n: int) -> Pool:
        """Make "more like these": new descriptions of what the given ones are about.

        Three kinds, best first, each text in turn: the same word in other sentences; sister words in the same sentence; and blends
        with a word of another property (first those that the given texts speak of). Texts from elsewhere are understood by the words
        of the vocabulary in them, and always blend.

        Args:
            texts: descriptions to start from, such as the picks of a head.
            n: how many new ones are wanted.

        Returns:
            At most n descriptions, none of them given; fewer when the grammar has no more to say.

        Raises:
            BadInput: no text to start from.

        Example:
            >>> grammar = Grammar({"colour": (WordGroup(("red", "blue"), ("{} paint", "{a} wall"), "in {}"),)})
            >>> grammar.expand(["red paint"], 3).texts
            ('a red wall', 'blue paint', 'red paint in blue')
        """
        if not texts:
            raise BadInput("no description to make more of: give at least one text.")
        given = {text.strip().lower() for text in texts}
        made: dict[str, str] = {}
        kinds = ([self._siblings(text) for text in texts], [self._sisters(text) for text in texts], self._blends(texts))
        for text, name in chain.from_iterable(_in_turn(kind) for kind in kinds):
            if len(made) >= n:
                break
            if text.lower() not in given:
                made.setdefault(text, name)
        return Pool(tuple(made), tuple(made.values()), f"{self.name}, more like {len(texts)} texts")

    def _readings(self, text: str) -> list[tuple[str, WordGroup, str, str]]:
        """List what a text could be: (property, group, word, frame); the frame of a foreign text is the text around the word."""
        if text in self._known:
            return [self._known[text]]
        readings: list[tuple[str, WordGroup, str, str]] = []
        for match in self._finder.finditer(text) if self._homes else ():
            before, after = text[: match.start()].replace("{", ""), text[match.end() :].replace("{", "")
            frame = re.sub(r"(?i)(?<!\w)an? $", "", before) + (
                "{a}" if re.search(r"(?i)(?<!\w)an? $", before) else "{}"
            )
            for name, group in self._homes[match.group().lower()]:
                word = next(w for w in group.words if w.lower() == match.group().lower())
                readings.append((name, group, word, frame + after))
        return readings

    def _siblings(self, text: str) -> Iterator[tuple[str, str]]:
        for name, group, word, used in self._readings(text):
            yield from ((fill(frame, word), name) for frame in group.frames if frame != used)

    def _sisters(self, text: str) -> Iterator[tuple[str, str]]:
        for name, group, word, frame in self._readings(text):
            at = group.words.index(word)
            others = group.words[at + 1 :] + group.words[:at]
            yield from ((fill(frame, other), name) for other in others)

    def _blends(self, texts: Sequence[str]) -> list[Iterator[tuple[str, str]]]:
        about = [[name for name, *_ in self._readings(text)] for text in texts]
        spoken_of = list(dict.fromkeys(chain.from_iterable(about)))
        order = [*spoken_of, *(name for name in self.groups if name not in spoken_of)]

        def blends(text: str, own: list[str]) -> Iterator[tuple[str, str]]:
            start = text.strip().rstrip(".!?")
            others = [name for name in order if name not in own] or order
            tails = _in_turn([self._tails(name) for name in others])
            yield from (
                (f"{start} {fill(tail, word)}", own[0] if own else name)
                for tail, word, name in tails
                if word not in start
            )

        return [blends(text, own) for text, own in zip(texts, about, strict=True)]

    def _tails(self, name: str) -> Iterator[tuple[str, str, str]]:
        for group in self.groups[name]:
            if group.tail:
                yield from ((group.tail, word, name) for word in group.words)


def tag(texts: Sequence[str], properties: Sequence[str], grammar: Grammar) -> tuple[str, ...]:
    """Say what untagged texts are about by the words of a vocabulary in them.

    Args:
        texts: descriptions.
        properties: what is known already, "" where nothing is.
        grammar: whose vocabulary is looked for.

    Returns:
        A property each; several joined by " + " where words of several are equally many; "" where no word is known.

    Example:
        >>> from clip_anatomy.naming.bundled_pools import general_grammar
        >>> tag(["a rusty thing", "a red dog", "hm"], ["", "", ""], general_grammar())
        ('texture', 'colour + animal', '')
    """
    tags: list[str] = []
    for text, known in zip(texts, properties, strict=True):
        counted = Counter(name for _, name in grammar.words_in(text)) if not known else Counter[str]()
        most = max(counted.values(), default=0)
        tags.append(known or BOTH.join(name for name, times in counted.items() if times == most))
    return tuple(tags)


def fill(frame: str, word: str) -> str:
    """Put a word into a frame, with its article where the frame asks for one.

    Example:
        >>> fill("the inside of {a}", "airport hall"), fill("{} from edge to edge", "red")
        ('the inside of an airport hall', 'red from edge to edge')
    """
    return frame.replace("{a}", f"{article(word)} {word}").replace("{}", word)


def article(word: str) -> str:
    """Choose "a" or "an" by sound, as far as spelling tells.

    Example:
        >>> [article(w) for w in ("owl", "uniform", "hour", "X-ray image", "European")]
        ['an', 'a', 'an', 'an', 'a']
    """
    lower = word.lower()
    if re.match(r"(uni|use|eu|one\b|once)", lower):
        return "a"
    if re.match(r"(hour|honest|heir|x-|[8]|11|18)", lower):
        return "an"
    return "an" if lower[:1] in "aeiou" else "a"


def _in_turn(sources: Sequence[Iterator[T]]) -> Iterator[T]:
    """Take one of each source, round after round, until all are used up."""
    left = list(sources)
    while left:
        remaining: list[Iterator[T]] = []
        for source in left:
            for item in source:
                yield item
                remaining.append(source)
                break
        left = remaining
