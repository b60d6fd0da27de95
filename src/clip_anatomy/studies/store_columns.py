"""Columns of a store as people name them, and their values as classes and groups."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.files import read_lines
from clip_anatomy.store.store import Store

__all__ = [
    "class_number", "classes_of", "codes_in", "column_of", "columns_of", "comparable", "few", "listed", "matching_class", "text_codes",
    "text_column",
]  # fmt: skip

ROW_COLUMNS = ("id", "path", "label", "group")  # of every store; all others are those of the table the images came with
FILE_COLUMNS = ("size", "row", "col", "digest", "key")  # of the store, unless that table has one of the same name
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


# ---- columns


def column_of(store: Store, name: str, rows: np.ndarray | None = None) -> list[Any]:
    """Read a column of some images (all by default): that of the table they came with before one of the store's own.

    Raises:
        BadInput: not the name of a column.
    """
    if not name or '"' in name:
        raise BadInput(f"{name!r} is no column. Type one of: {columns_of(store)}")
    whole = [row.meta.get(name) for row in store.rows()] if name in FILE_COLUMNS else None
    whole = store.column(name) if whole is None else whole
    return list(whole) if rows is None else [whole[at] for at in rows.tolist()]


def text_column(store: Store, name: str, rows: np.ndarray | None = None) -> list[str]:
    """Read a column as text, "" where it is empty."""
    return ["" if value is None else str(value) for value in column_of(store, name, rows)]


def columns_of(store: Store) -> str:
    """Name the columns that can be asked for, for a message."""
    rows = store.rows("id = ?", [store.column("id")[0]]) if len(store) else []
    return ", ".join(["label", "group", *(rows[0].meta if rows else ())])


# ---- values as classes and groups


def text_codes(values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return number the values of a column in the order of the alphabet.

    Returns:
        The place of each value, −1 for empty ones; the values, each once.

    Example:
        >>> codes, names = text_codes(["dog", "", "cat", "dog"])
        >>> codes.tolist(), names
        ([1, -1, 0, 1], ('cat', 'dog'))
    """
    names = tuple(sorted({value for value in values if value}))
    place = {name: at for at, name in enumerate(names)}
    return np.array([place.get(value, -1) for value in values], np.int64), names


def codes_in(
    values: Sequence[Any], classes: Sequence[str], column: str, *, strict: bool = True
) -> Int64[Tensor, " image"]:
    """Find the values of a column among the classes, by `comparable` names; a number that is no name counts the classes from 0.

    Args:
        values: of the column.
        classes: names of the classes.
        column: its name, for messages.
        strict: refuse values that are no class; else they are −1, as empty ones are.

    Raises:
        BadInput: a value that is no class; names some.

    Example:
        >>> codes_in(["Land bird", None, "water_bird"], ["land_bird", "water bird"], "label").tolist()
        [0, -1, 1]
        >>> codes_in([0, "1", 1.0], ["landbird", "waterbird"], "y").tolist()
        [0, 1, 1]
    """
    place = {comparable(name): at for at, name in enumerate(classes)}
    texts = ["" if value is None else str(value) for value in values]
    place |= {
        comparable(text): number
        for text in set(texts)
        if comparable(text) not in place and (number := class_number(text)) is not None and number < len(classes)
    }
    unknown = sorted({text for text in texts if text and comparable(text) not in place})
    if unknown and strict:
        numbers = [number for text in unknown if (number := class_number(text)) is not None]
        fix = (
            f"Numbers count the classes from 0: type classes= with {max(numbers) + 1:,} names in their order"
            if len(numbers) == len(unknown)
            else f"Type classes='{', '.join(unknown[:3])}, ...' with the names that the labels have"
        )
        raise BadInput(
            f"labels of column {column!r} that match no class name: {few(unknown)}. The classes are: {few(classes)}. {fix}, or another label="
        )
    return torch.tensor([place.get(comparable(text), -1) if text else -1 for text in texts], dtype=torch.int64)


def class_number(value: str) -> int | None:
    """Return the number that a label is, as tables write it; None where it is a word.

    Example:
        >>> class_number("12"), class_number("1.0"), class_number("1.5"), class_number("sky")
        (12, 1, None, None)
    """
    match = re.fullmatch(r"([0-9]{1,9})(\.0+)?", value)
    return int(match[1]) if match else None


def matching_class(value: str, classes: Sequence[str]) -> int:
    """Find the class that a value names, as a word or as a number for a number word; −1 for none.

    Example:
        >>> matching_class("2", ("one", "two")), matching_class("Two", ("one", "two")), matching_class("sky", ("one", "two"))
        (1, 1, -1)
    """
    place = {comparable(name): at for at, name in enumerate(classes)}
    word = NUMBERS[int(value)] if value.isdecimal() and int(value) < len(NUMBERS) else value
    return place.get(comparable(value), place.get(comparable(word), -1))


# ---- names as typed


def classes_of(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Read class names as typed: a sequence, "a, b, c", or a text file of one a line.

    Raises:
        BadInput: a file that cannot be read, fewer than two names, a name twice.
    """
    if isinstance(given, str) and Path(given).suffix and Path(given).is_file():
        names = tuple(read_lines(Path(given), "Type classes='a, b, c'"))
    else:
        names = listed(given)
    if len(names) == 1 and Path(names[0]).suffix == ".txt" and not Path(names[0]).is_file():
        raise BadInput(f"{names[0]}: there is no such file of class names. Type its path, or classes='a, b, c'")
    if len(names) < 2:
        raise BadInput(
            f"classes {', '.join(names) or '(none)'}: two or more are needed. Type classes='landbird, waterbird'"
        )
    if len({comparable(name) for name in names}) < len(names):
        raise BadInput(f"classes {', '.join(names)}: one stands twice. Type each once")
    return names


def listed(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Read names as typed, "a, b" or a sequence, each once."""
    parts = given.split(",") if isinstance(given, str) else list(given or ())
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def comparable(name: str) -> str:
    """Return what of a name counts when two are compared: not its case, nor underscores and hyphens."""
    return " ".join(re.sub(r"[_\-]+", " ", name).split()).casefold()


def few(names: Sequence[str]) -> str:
    """Name the first five, and say how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
