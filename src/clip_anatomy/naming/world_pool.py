"""The demo world's own pool: what the bundled model can be asked about, and nothing else."""

from functools import cache

from clip_anatomy.data.world.attribute_texts import DESCRIPTIONS
from clip_anatomy.naming.grammar import Grammar, Group
from clip_anatomy.naming.pool import Pool

__all__ = ["world_grammar", "world_pool"]


@cache
def world_grammar() -> Grammar:
    """The grammar of the demo world's descriptions.

    Example:
        >>> world_grammar().words_in("a striped bird in the sky")
        [('striped', 'texture'), ('bird', 'shape'), ('in the sky', 'background')]
    """
    return Grammar({name: tuple(Group(*group) for group in groups) for name, groups in DESCRIPTIONS.items()}, "world")


def world_pool(per_property: int = 40) -> Pool:
    """Descriptions of one attribute of the demo world each, with that attribute as their property.

    Example:
        >>> pool = world_pool()
        >>> sorted(set(pool.properties))
        ['background', 'colour', 'count', 'digit', 'position', 'shape', 'size', 'texture']
    """
    return world_grammar().pool(per_property)
