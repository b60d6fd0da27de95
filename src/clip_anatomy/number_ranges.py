"""Numbers are bounded where they come in, before anything is made of their size."""

import operator

from clip_anatomy.errors import BadInput, BadSpec

__all__ = ["LARGEST", "finite", "moderate", "whole", "within"]

LARGEST = 10**9
"""The largest number that any option takes."""
LEAST, MOST = 1e-12, 10_000  # of a setting of a method


def whole(name: str, value: object, low: int, high: int = LARGEST) -> int:
    """Check a whole number.

    Args:
        name: of the parameter.
        value: what was given.
        low: the smallest that makes sense.
        high: the largest.

    Raises:
        BadInput: it is no whole number, or too small or large; says what to type.

    Example:
        >>> whole("workers", -1, 0, 1024)
        Traceback (most recent call last):
        clip_anatomy.errors.BadInput: workers=-1: a whole number from 0 to 1,024 was expected. Type workers=0, or leave it away
    """
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        nearest = low if number is None or number < low else high
        raise BadInput(
            f"{name}={value!r}: a whole number from {low:,} to {high:,} was expected. Type {name}={nearest}, or leave it away"
        )
    return number


def within(name: str, value: int, count: int) -> int:
    """Check a place among some things; as everywhere in Python, -1 is the last.

    Raises:
        BadSpec: nothing is there.

    Example:
        >>> within("image", 3, 2)
        Traceback (most recent call last):
        clip_anatomy.errors.BadSpec: image=3: there are 2, counted from 0. Type image=1
    """
    if not -count <= value < count:
        raise BadSpec(f"{name}={value!r}: there are {count:,}, counted from 0. Type {name}={max(0, count - 1)}")
    return value % count


def moderate(name: str, value: object) -> None:
    """Refuse a number of a method that leads nowhere: none, beyond ten thousand, or so small that it is lost in rounding.

    Raises:
        BadSpec: such a number.

    Example:
        >>> moderate("temperature", 1e300)
        Traceback (most recent call last):
        clip_anatomy.errors.BadSpec: temperature=1e+300: 0, or a number from 1e-12 to 10,000 in size was expected. Type temperature=1
    """
    if isinstance(value, int | float) and value and not LEAST <= abs(value) <= MOST:
        raise BadSpec(
            f"{name}={value!r}: 0, or a number from {LEAST:g} to {MOST:,} in size was expected. Type {name}=1"
        )


def finite(_: object, value: object) -> None:
    """Refuse numbers beyond any use, as a validator of all options of the command line.

    Raises:
        ValueError: the number is too large, infinite, or none.
    """
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, int | float) and not abs(number) <= LARGEST:
            raise ValueError(f"{number} is no number that can be used: at most {LARGEST:,} is.")
