"""What classes are called, and how much hangs on it: a data set's own names, a file's, seeded draws of synonyms, growing vocabularies.

One run measures all of them: `text_lists` says which texts stand for which class in each, `embedded once, scored together`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

__all__ = ["OFFICIAL", "ClassTexts", "TextList", "synonyms", "text_lists"]

OFFICIAL = "official"


@dataclass(frozen=True)
class ClassTexts:
    """The texts that stand for classes: a class is as likely as its likeliest text.

    Attributes:
        words: of each class.
        source: where they come from.
    """

    words: tuple[tuple[str, ...], ...]
    source: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them in order."""
        return tuple(word for words in self.words for word in words)

    @property
    def owner(self) -> tuple[int, ...]:
        """The class of each text."""
        return tuple(at for at, words in enumerate(self.words) for _ in words)


@dataclass(frozen=True)
class TextList:
    """One way to name the classes that a run measures.

    Attributes:
        label: what its figure is called.
        words: the texts of each class; of the first classes alone where the vocabulary is smaller.
    """

    label: str
    words: ClassTexts

    @property
    def classes(self) -> int:
        """How many classes can be answered; pixels of others do not count."""
        return len(self.words.words)


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Read the table that ships with the package: class → other words for it.

    Example:
        >>> synonyms()["sofa"]
        ('couch', 'settee', 'loveseat')
    """
    text = (files("clip_anatomy.evaluation") / "synonyms.txt").read_text(encoding="utf-8")
    rows = (line.split(":", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: tuple(word.strip() for word in words.split(",")) for name, words in rows}


def drawn(plain: ClassTexts, seed: int, background: int | None = None) -> ClassTexts:
    """Give each class one of its names at random: its own, or a synonym that no other class is called by.

    Args:
        plain: the data set's own names.
        seed: of the draw.
        background: class that keeps its texts.
    """
    chance, taken = np.random.default_rng(seed), {words[0] for words in plain.words}
    words: list[tuple[str, ...]] = []
    for at, own in enumerate(plain.words):
        others = [word for word in synonyms().get(own[0].lower(), ()) if word not in taken]
        chosen = (own[0], *others)[int(chance.integers(len(others) + 1))]
        taken.add(chosen)
        words.append(own if at == background else (chosen,))
    return ClassTexts(tuple(words), f"synonyms drawn with seed {seed}")


def text_lists(
    main: ClassTexts, plain: ClassTexts, draws: int, vocabularies: Sequence[int], background: int | None
) -> tuple[TextList, ...]:
    """List all namings that one run measures, the one that was asked for first.

    Args:
        main: the names that were asked for.
        plain: the data set's own.
        draws: how many draws of synonyms.
        vocabularies: how many classes each smaller vocabulary has, the first ones.
        background: class that keeps its texts.
    """
    lists = [TextList(OFFICIAL if main != plain else "plain", main)]
    if main != plain:
        lists.append(TextList("plain", plain))
    lists += [TextList(f"synonyms, seed {seed}", drawn(plain, seed, background)) for seed in range(draws)]
    smaller = (count for count in vocabularies if count < len(plain.words))
    return (*lists, *(TextList(f"{n} classes", ClassTexts(plain.words[:n], plain.source)) for n in smaller))
