"""Numbers are bounded where they come in, before anything is made of their size."""

import operator

from clip_anatomy.errors import BadInput

__all__ = ["LARGEST", "finite", "whole"]

LARGEST = 10**9
"""The largest number that any option takes."""


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


def finite(_: object, value: object) -> None:
    """Refuse numbers beyond any use, as a validator of all options of the command line.

    Raises:
        ValueError: the number is too large, infinite, or none.
    """
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, int | float) and not abs(number) <= LARGEST:
            raise ValueError(f"{number} is no number that can be used: at most {LARGEST:,} is.")
