"""What of a phrase names the thing, and where it says that the thing lies: words of place, by rules for English.

CLIP hardly reads "left of" (Yuksekgonul et al., ICLR 2023), but where masks lie is known. So a phrase is cut at its word of place:

    "a star left of a red circle"   thing: star, place: left, other: red circle
    "the top left star"             thing: star, place: top and left of the picture
"""

import re
from dataclasses import dataclass

__all__ = ["PLACES", "ReadPhrase", "read_phrase"]

PLACES = {
    **dict.fromkeys(("left", "leftmost"), (1, -1)),
    **dict.fromkeys(("right", "rightmost"), (1, 1)),
    **dict.fromkeys(("above", "over", "top", "upper", "topmost"), (0, -1)),
    **dict.fromkeys(("below", "under", "beneath", "bottom", "lower", "bottommost"), (0, 1)),
}
"""Word → (axis, direction): 0 for rows, 1 for columns; −1 for smaller."""
OF_ANOTHER = ("above", "over", "below", "under", "beneath")  # prepositions by themselves
LINKS = ("of", "from", "to")
PICTURE = ("picture", "image", "photo", "photograph", "screen", "scene", "frame")
FILLING = (
    "a",
    "an",
    "the",
    "on",
    "in",
    "at",
    "to",
    "of",
    "side",
    "corner",
    "most",
    "far",
    "hand",
    "that",
    "is",
    "and",
    *PICTURE,
)


@dataclass(frozen=True)
class ReadPhrase:
    """A phrase, cut at its words of place.

    Attributes:
        thing: numbers of the words that name it; of all words where no place is said, or nothing else.
        places: (axis, direction) each; of the picture, or beside `other`.
        other: numbers of the words of what it lies beside; () for the picture.
    """

    thing: tuple[int, ...]
    places: tuple[tuple[int, int], ...] = ()
    other: tuple[int, ...] = ()


def read_phrase(words: tuple[str, ...]) -> ReadPhrase:
    """Cut a phrase at its words of place.

    Args:
        words: as the tokenizer's words stand in the phrase.

    Example:
        >>> read_phrase(("a", "star", "left", "of", "a", "red", "circle"))
        ReadPhrase(thing=(1,), places=((1, -1),), other=(5, 6))
        >>> read_phrase(("the", "top", "left", "star"))
        ReadPhrase(thing=(3,), places=((0, -1), (1, -1)), other=())
        >>> read_phrase(("right", "whale"))
        ReadPhrase(thing=(1,), places=((1, 1),), other=())
    """
    plain = [re.sub(r"\W", "", word.lower()) for word in words]
    everything = tuple(range(len(words)))
    of_place = [at for at, word in enumerate(plain) if word in PLACES]
    if not of_place:
        return ReadPhrase(everything)
    places = tuple(dict.fromkeys(PLACES[plain[at]] for at in of_place))
    first, last = of_place[0], of_place[-1]
    linked = plain[last] in OF_ANOTHER or (last + 1 < len(plain) and plain[last + 1] in LINKS)
    rest = tuple(at for at in everything if at > last + (plain[last] not in OF_ANOTHER))
    before, behind = ([at for at in some if plain[at] not in FILLING] for some in (everything[:first], rest))
    if linked and before and behind:
        return ReadPhrase(tuple(before), places, tuple(behind))
    thing = tuple(at for at in everything if at not in of_place and plain[at] not in FILLING)
    return ReadPhrase(thing or everything, places)
