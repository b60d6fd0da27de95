"""Which images of a store may be learned from or chosen on, and which are reported on."""

from dataclasses import dataclass

import numpy as np
import torch

from clip_anatomy.errors import BadInput
from clip_anatomy.files import random_number
from clip_anatomy.split.head_batches import chunk_of
from clip_anatomy.store.store import Store
from clip_anatomy.studies.store_columns import columns_of, few, text_column

__all__ = ["Split", "halves_of", "train_test_of"]

TEST, VALIDATION = ("test", "testing"), ("val", "valid", "validation", "dev")
LEAST = 10  # images on either side of a choice
TENTHS = 10  # where no column says it: two for the test, one for the validation


@dataclass(frozen=True)
class Split:
    """Places of images in a store, ascending; no image is in two of them.

    Attributes:
        train: what is trained on; empty where nothing is trained.
        validation: what choices are made on.
        test: what is reported.
        source: where the split comes from, in words.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    source: str


def halves_of(store: Store, column: str | None = None, seed: int = 0, most: int | None = None) -> Split:
    """Split a store in two, by a column, or by a seed and each image's id.

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
        ...     halves = halves_of(ca.Store.open(folder + "/store"))
        >>> len(halves.validation) + len(halves.test), halves.source
        (60, 'halves by id (seed 0)')
    """
    values = [value.strip().lower() for value in text_column(store, column or "split")]
    hashes = np.array([random_number(seed, str(name)) for name in store.column("id")], dtype=np.uint64)
    if any(values):
        is_test = np.array([value in TEST for value in values], dtype=bool)
        says_validation = np.array([value in VALIDATION for value in values], dtype=bool)
        is_validation = (
            says_validation
            if says_validation.any()
            else ~is_test & np.array([bool(value) for value in values], dtype=bool)
        )
        source = f"column {column or 'split'!r}"
        if not is_test.any() or not is_validation.any():
            raise BadInput(
                f"{source} holds {few(sorted(set(values)))}; 'test' for the images to report on and 'val' for those to choose on were "
                "expected. Type split=COLUMN with another column"
            )
    elif column is not None:
        raise BadInput(
            f"column {column!r} is empty or not there. Type one of: {columns_of(store)}; or leave split= away"
        )
    else:
        is_test, source = hashes % np.uint64(2) == 1, f"halves by id (seed {seed})"
        is_validation = ~is_test
    halves = [_first(np.flatnonzero(where), hashes, most) for where in (is_validation, is_test)]
    if min(map(len, halves)) < LEAST:
        raise BadInput(
            f"{store.path} has {len(halves[0])} images to choose on and {len(halves[1])} to report on; {LEAST} or more of each are needed. "
            f"Type: clip-anatomy index SOURCE {store.path}, with more pictures"
        )
    return Split(np.zeros(0, np.int64), halves[0], halves[1], source)


def train_test_of(store: Store, labelled: np.ndarray, column: str | None = None, seed: int = 0) -> Split:
    """Split the labelled images of a store for training.

    Args:
        store: the store.
        labelled: for every image whether it has a label.
        column: a column that says train and test, and perhaps val; by default "split" where it does, else a fifth of the images is the
            test and a tenth the validation set, by a hash of their ids.
        seed: of that hash.

    Raises:
        BadInput: a column that does not say train and test, no training or no test images.
    """
    values = np.array([value.lower() for value in text_column(store, column or "split")], dtype=object)
    tenth = chunk_of(
        torch.tensor([random_number(seed, str(name), size=7) for name in store.column("id")]), TENTHS
    ).numpy()
    train = values == "train"
    if train.any() and ((values == "test").any() or (values == "val").any()):
        on_validation = not (values == "test").any()  # published sets whose test labels are not given
        test, validation = values == ("val" if on_validation else "test"), values == ("" if on_validation else "val")
        if not validation.any():
            validation, train = train & (tenth == 0), train & (tenth != 0)
        source = f"column {column or 'split'!r}" + (", tested on val" if on_validation else "")
    elif column is not None:
        raise BadInput(
            f"column {column!r} of {store.path} does not say train and test; it holds: {', '.join(sorted(set(values))[:5])}. Type "
            f"one of: {columns_of(store)}; or leave split= away"
        )
    else:
        train, validation, test = tenth > 2, tenth == 2, tenth < 2
        source = f"a fifth for the test by id (seed {seed})"
    train, validation, test = (np.flatnonzero(which & labelled) for which in (train, validation, test))
    if not len(train) or not len(test):
        raise BadInput(
            f"{store.path} has {len(train):,} labelled images to train on and {len(test):,} to test on. Index more of them, or "
            "type split= with another column"
        )
    return Split(train, validation, test, source)


def _first(rows: np.ndarray, hashes: np.ndarray, most: int | None) -> np.ndarray:
    if most is None or len(rows) <= most:
        return rows
    return np.sort(rows[np.argsort(hashes[rows], kind="stable")[:most]])
