"""Two halves of a store: one to choose on, one to report on."""

import hashlib
from dataclasses import dataclass

import numpy as np

from clip_anatomy.errors import BadInput
from clip_anatomy.store.store import Store
from clip_anatomy.studies.columns import column_of, columns_of, few

__all__ = ["Split", "split_of"]

TEST, VALIDATION = ("test", "testing"), ("val", "valid", "validation", "dev")
LEAST = 10


@dataclass(frozen=True)
class Split:
    """Places of images in a store.

    Attributes:
        validation: what choices are made on.
        test: what is reported.
        told: where the split comes from, in words.
    """

    validation: np.ndarray
    test: np.ndarray
    told: str


def split_of(store: Store, column: str | None = None, seed: int = 0, most: int | None = None) -> Split:
    """Split a store by a column, or by a seed and each image's id.

    Args:
        store: the store.
        column: a column that says "test" for the test images and "val" (or anything else, where none is "val") for those to
            choose on; by default "split" where the images have it.
        seed: of the halves where no column tells them. An image falls into the same half whatever else is in the store.
        most: images of each part, at most (the first by a hash of their ids); all by default.

    Raises:
        BadInput: no such column, or a part with too few images.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(ca.load("demo"), "world:60:test", folder + "/store")
        ...     halves = split_of(ca.Store.open(folder + "/store"))
        >>> len(halves.validation) + len(halves.test), halves.told
        (60, 'halves by id (seed 0)')
    """
    every = np.arange(len(store))
    values = [
        "" if value is None else str(value).strip().lower() for value in column_of(store, column or "split", every)
    ]
    mixed = np.array([_hash(str(name), seed) for name in store.column("id")], dtype=np.uint64)
    if any(values):
        is_test = np.array([value in TEST for value in values], dtype=bool)
        named = np.array([value in VALIDATION for value in values], dtype=bool)
        chosen = named if named.any() else ~is_test & np.array([bool(value) for value in values], dtype=bool)
        kinds = sorted(set(values))
        told = f"column {column or 'split'!r}"
        if not is_test.any() or not chosen.any():
            raise BadInput(
                f"{told} holds {few(kinds)}; 'test' for the images to report on and 'val' for those to choose on were expected. Type "
                "--split COLUMN with another column"
            )
    elif column is not None:
        raise BadInput(
            f"column {column!r} is empty or not there. Type one of: {columns_of(store)}; or leave --split away"
        )
    else:
        is_test, told = mixed % np.uint64(2) == 1, f"halves by id (seed {seed})"
        chosen = ~is_test
    parts = [_some(np.flatnonzero(where), mixed, most) for where in (chosen, is_test)]
    if min(map(len, parts)) < LEAST:
        raise BadInput(
            f"{store.path} has {len(parts[0])} images to choose on and {len(parts[1])} to report on; {LEAST} or more of each are needed. "
            f"Type: clip-anatomy index SOURCE {store.path}, with more pictures"
        )
    return Split(parts[0], parts[1], told)


def _some(rows: np.ndarray, mixed: np.ndarray, most: int | None) -> np.ndarray:
    if most is None or len(rows) <= most:
        return rows
    return np.sort(rows[np.argsort(mixed[rows], kind="stable")[:most]])


def _hash(name: str, seed: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {name}".encode("utf-8", "replace"), digest_size=8).digest(), "little"
    )
