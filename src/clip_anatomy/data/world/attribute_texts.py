"""Descriptions of one attribute at a time, in the words of the demo world: what the heads of the bundled model are named with.

Plain data, so that this room needs no other: property → groups of (words, frames, tail). In a frame `{}` is the word and
`{a}` the word with its article; a tail is what a word adds to another description. `pools.world_pool` makes a pool of it.
"""

from clip_anatomy.data.world.attribute_names import BACKGROUNDS, COLOURS, COUNTS, SHAPES
from clip_anatomy.data.world.captions import plural, setting

__all__ = ["DESCRIPTIONS", "Described"]

Described = tuple[tuple[str, ...], tuple[str, ...], str]
"""Words, frames, tail."""

_TEXTURES = ("solid", "striped", "dotted", "checkered", "plain", "spotted", "checked")
_PATTERNS = ("with stripes", "with dots", "with checks", "without any pattern")
_SIZES = ("small", "large", "little", "big")
_PLACES = (
    "top left", "top right", "bottom left", "bottom right", "centre",
    "upper left", "upper right", "lower left", "lower right", "middle",
)  # fmt: skip
_DIGITS = ("1", "2", "3", "4")

DESCRIPTIONS: dict[str, tuple[Described, ...]] = {
    "shape": (
        (SHAPES, ("{a}", "the shape of {a}", "a photo of {a}", "the object is {a}"), "next to {a}"),
        (tuple(plural(name) for name in SHAPES if plural(name) != name), ("{}",), ""),
    ),
    "colour": ((COLOURS, ("something {}", "the colour {}", "{a} object", "the object is {}", "a picture of {a} thing"), ""),),
    "texture": (
        (_TEXTURES, ("something {}", "{a} pattern", "{a} texture", "the object is {}", "{a} object"), ""),
        (_PATTERNS, ("an object {}", "a thing {}"), "{}"),
    ),
    "background": (
        (tuple(setting(code) for code in range(len(BACKGROUNDS))), ("{}", "something {}", "an object {}"), "{}"),
        (BACKGROUNDS, ("the background is {}", "{a} background"), ""),
    ),
    "size": ((_SIZES, ("something {}", "{a} object", "the object is {}", "{a} thing", "{a} shape", "{a} figure"), ""),),
    "position": (
        (_PLACES, ("in the {}", "something at the {}", "an object in the {}", "a thing in the {} of the picture"), "in the {}"),
    ),
    "count": (
        (COUNTS[:1], ("{} object", "there is {} object", "a single object", "{} thing", "{} shape"), ""),
        (COUNTS[1:], ("{} objects", "there are {} objects", "{} of them", "{} things", "{} shapes"), ""),
        (COUNTS, ("the number of objects is {}",), ""),
    ),
    "digit": (
        (_DIGITS, ("the number {}", "it says {}", "an object labelled {}", "an object with the number {}"), "with the number {}"),
        (("no number",), ("{}", "there is {}", "an object with {}", "a picture with {}"), "with {}"),
    ),
}  # fmt: skip
