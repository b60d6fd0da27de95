"""Columns of a store as people name them, and their values as classes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.store.store import Store

__all__ = ["class_named", "classes_of", "codes_in", "column_of", "columns_of", "few", "listed", "same"]

OWN = (
    "id",
    "path",
    "label",
    "group",
)  # columns of every store; all others are those of the table that came with the images
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def classes_of(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Class names as typed: a sequence, "a, b, c", or a text file of one a line.

    Raises:
        BadInput: a file that cannot be read, fewer than two names, a name twice.
    """
    if isinstance(given, str) and Path(given).suffix and Path(given).is_file():
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise BadInput(f"{given} cannot be read as class names ({error}). Type --classes 'a, b, c'") from error
        names = tuple(line.strip() for line in lines if line.strip())
    else:
        names = listed(given)
    if len(names) == 1 and Path(names[0]).suffix == ".txt" and not Path(names[0]).is_file():
        raise BadInput(f"{names[0]}: there is no such file of class names. Type its path, or --classes 'a, b, c'")
    if len(names) < 2:
        raise BadInput(
            f"classes {', '.join(names) or '(none)'}: two or more are needed. Type --classes 'landbird, waterbird'"
        )
    if len({same(name) for name in names}) < len(names):
        raise BadInput(f"classes {', '.join(names)}: one stands twice. Type each once")
    return names


def codes_in(
    told: Sequence[Any], classes: Sequence[str], column: str, *, strict: bool = True
) -> Int64[Tensor, " image"]:
    """Values of a column as places among the classes, −1 for empty ones.

    Args:
        told: the values.
        classes: names of the classes.
        column: its name, for messages.
        strict: refuse values that are no class; else they are −1 too.

    Raises:
        BadInput: a value that is no class; names some.

    Example:
        >>> codes_in(["Land bird", None, "water_bird"], ["land_bird", "water bird"], "label").tolist()
        [0, -1, 1]
    """
    place = {same(name): at for at, name in enumerate(classes)}
    values = ["" if value is None else str(value) for value in told]
    unknown = sorted({value for value in values if value and same(value) not in place})
    if unknown and strict:
        raise BadInput(
            f"labels of column {column!r} that match no class name: {few(unknown)}. The classes are: {few(classes)}. Type "
            f"--classes {few(unknown[:3])!r},... with the names that the labels have, or another --label"
        )
    return torch.tensor([place.get(same(value), -1) if value else -1 for value in values], dtype=torch.int64)


def class_named(value: str, classes: Sequence[str]) -> int:
    """The class that a value names, as a word or as a number for a number word; −1 for none.

    Example:
        >>> class_named("2", ("one", "two")), class_named("Two", ("one", "two")), class_named("sky", ("one", "two"))
        (1, 1, -1)
    """
    said = {same(name): at for at, name in enumerate(classes)}
    word = NUMBERS[int(value)] if value.isdecimal() and int(value) < len(NUMBERS) else value
    return said.get(same(value), said.get(same(word), -1))


def column_of(store: Store, name: str, rows: np.ndarray) -> list[Any]:
    """A column of some images: that of the table they came with before one of the store's own.

    Raises:
        BadInput: not the name of a column.
    """
    if not name or '"' in name:
        raise BadInput(f"{name!r} is no column. Type one of: {columns_of(store)}")
    whole = store.column(name) if name in OWN else None
    if whole is None and name in ("size", "row", "col", "digest", "key"):
        whole = [row.meta.get(name) for row in store.rows()]
    whole = store.column(name) if whole is None else whole
    return [whole[at] for at in rows.tolist()]


def columns_of(store: Store) -> str:
    """Names of the columns that can be asked for, for a message."""
    rows = store.rows("id = ?", [store.column("id")[0]]) if len(store) else []
    return ", ".join(["label", "group", *(rows[0].meta if rows else ())])


def listed(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Names as typed, "a, b" or a sequence, each once."""
    parts = given.split(",") if isinstance(given, str) else list(given or ())
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def same(name: str) -> str:
    """What of a name counts when two are compared: not its case, nor underscores and hyphens."""
    return " ".join(re.sub(r"[_\-]+", " ", name).split()).casefold()


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
