"""The bundled pools of descriptions: the general one and the demo world's, each made by its grammar."""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from clip_anatomy.data.world.attribute_texts import DESCRIPTIONS
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.grammar import Grammar, WordGroup, tag
from clip_anatomy.naming.pool import Pool, read_pool

__all__ = ["expand", "general_grammar", "general_pool", "pool_of", "vocabulary", "world_grammar", "world_pool"]


@cache
def general_grammar() -> Grammar:
    """Return the grammar of our general pool: word lists and frames written for this project (`general.toml`)."""
    tables = tomllib.loads(files("clip_anatomy.naming").joinpath("general.toml").read_text("utf-8"))
    return Grammar(
        {
            name: tuple(
                WordGroup(
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


@cache
def world_grammar() -> Grammar:
    """Return the grammar of the demo world's descriptions.

    Example:
        >>> world_grammar().words_in("a striped bird in the sky")
        [('striped', 'texture'), ('bird', 'shape'), ('in the sky', 'background')]
    """
    return Grammar(
        {name: tuple(WordGroup(*group) for group in groups) for name, groups in DESCRIPTIONS.items()}, "world"
    )


def world_pool(per_property: int = 40) -> Pool:
    """Return descriptions of one attribute of the demo world each, with that attribute as their property.

    Example:
        >>> pool = world_pool()
        >>> sorted(set(pool.properties))
        ['background', 'colour', 'count', 'digit', 'position', 'shape', 'size', 'texture']
    """
    return world_grammar().pool(per_property)


def pool_of(spec: "str | Path | Pool | None", clip: Clip) -> tuple[Pool, Grammar]:
    """Return a pool and the grammar that knows its words.

    Args:
        spec: "general", "world", a text file, a pool, or None: the world's for the bundled model, else the general one.
        clip: the model.

    Raises:
        BadText: a file that is no pool.
    """
    name = ("world" if clip.name == "demo" else "general") if spec is None else spec
    grammar = world_grammar() if clip.name == "demo" or name == "world" else general_grammar()
    if isinstance(name, Pool):
        pool = name
    elif name == "general":
        pool = general_pool()
    elif name == "world":
        pool = world_pool()
    else:
        pool = read_pool(name, duplicates="drop")
    return replace(pool, properties=tag(pool.texts, pool.properties, grammar)), grammar
