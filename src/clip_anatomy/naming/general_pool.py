"""Pools of descriptions that heads are named with: our general one, any text file, and "more like these"."""

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from clip_anatomy.naming.grammar import Grammar, Group
from clip_anatomy.naming.pool import Pool, read_pool

__all__ = ["Grammar", "Group", "Pool", "expand", "general_grammar", "general_pool", "read_pool", "vocabulary"]


@cache
def general_grammar() -> Grammar:
    """The grammar of our general pool: word lists and frames written for this project (`general.toml`)."""
    tables = tomllib.loads(files("clip_anatomy.naming").joinpath("general.toml").read_text("utf-8"))
    return Grammar(
        {
            name: tuple(
                Group(
                    tuple(" ".join(word.split()) for word in group["words"].split(",")),
                    tuple(group["frames"]),
                    group.get("tail", ""),
                )
                for group in groups
            )
            for name, groups in tables.items()
        },
        "general",
    )


def general_pool(per_property: int = 120) -> Pool:
    """Our general pool, equally many descriptions of every property.

    Example:
        >>> pool = general_pool()
        >>> len(pool) >= 3000, pool.texts[0], pool.properties[0]
        (True, 'a picture made mostly of red areas', 'colour')
    """
    return general_grammar().pool(per_property)


def vocabulary() -> dict[str, tuple[str, ...]]:
    """Property → its words, as in the general pool.

    Example:
        >>> vocabulary()["season"][0]
        'early spring'
    """
    return general_grammar().vocabulary


def expand(texts: Sequence[str], n: int) -> Pool:
    """Make n more descriptions like these, without a network.

    Example:
        >>> expand(["a portrait of a dog"], 2).texts
        ('a dog in its surroundings', 'the head of a dog')
    """
    return general_grammar().expand(texts, n)
