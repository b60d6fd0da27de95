"""The labelled images of a store: class and group of each, and which are for training and which for the test."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from clip_anatomy.errors import BadInput
from clip_anatomy.split.head_batches import chunk_of
from clip_anatomy.store.store import Store
from clip_anatomy.studies.columns import column_of, columns_of

__all__ = ["Labelled"]

PARTS = 10  # of the images: 2 to test on where no column says which, 1 to choose the strength on


@dataclass(frozen=True)
class Labelled:
    """Places, classes and groups of the images of a store.

    Attributes:
        labels: class of every image of the store, −1 without one.
        classes: names of the classes.
        groups: group of every image, −1 without one.
        names: names of the groups.
        train: places of the images to train on.
        held: places of those to choose on.
        test: places of those to report on.
        told: where the split comes from, in words.
        notes: what must be said about it.
    """

    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    groups: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    train: np.ndarray = field(repr=False)
    held: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    told: str
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        store: Store, *, label: str = "label", group: str | None = None, split: str | None = None, seed: int = 0
    ) -> "Labelled":
        """Read the columns of a store; see `probe` for their meaning.

        Raises:
            BadInput: no labels, one class only, a column that is not there, no training or no test images.
        """
        labels, classes, left_out = _classes(store, label)
        train, held, test, told = _split(store, split, labels, seed)
        groups, names = _groups(store, group, labels, classes)
        if not (groups[test] >= 0).any():  # no test image has a group: the classes are the groups
            groups, names = labels, classes
        notes = [f"{left_out:,} images without a label were left out."] if left_out else []
        seen = {*np.unique(labels[train]).tolist()}
        unseen = [classes[c] for c in np.unique(labels[test]).tolist() if c not in seen]
        if unseen:
            more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
            notes.append(f"Classes without a training image, always wrong: {', '.join(unseen[:5])}{more}.")
        return Labelled(labels, classes, groups, names, train, held, test, told, tuple(notes))


def _classes(store: Store, label: str) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Class of every image, −1 without one."""
    told = _column(store, label)
    names = tuple(sorted({one for one in told if one}))
    if len(names) < 2:
        raise BadInput(
            f"column {label!r} of {store.path} holds {'one class: ' + names[0] if names else 'no labels'}. Type --label with one "
            f"of: {columns_of(store)}; or index with --labels TABLE"
        )
    place = {name: at for at, name in enumerate(names)}
    codes = np.array([place.get(one, -1) for one in told], np.int64)
    return codes, names, int((codes < 0).sum())


def _groups(
    store: Store, group: str | None, labels: np.ndarray, classes: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    told = _column(store, group or "group")
    if not any(told):
        if group is not None:
            raise BadInput(f"column {group!r} of {store.path} is empty or not there. Type one of: {columns_of(store)}")
        return labels, classes
    names = tuple(sorted({one for one in told if one}))
    place = {name: at for at, name in enumerate(names)}
    return np.array([place.get(one, -1) for one in told], np.int64), names


def _split(
    store: Store, split: str | None, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Places of training, choosing and test images, and where the split comes from."""
    known = labels >= 0
    told = np.array([one.lower() for one in _column(store, split or "split")], dtype=object)
    part = chunk_of(torch.tensor([_number(str(name), seed) for name in store.column("id")]), PARTS).numpy()
    if (told == "train").any() and ((told == "test").any() or (told == "val").any()):
        train, named = told == "train", f"column {split or 'split'!r}"
        on_val = not (told == "test").any()  # published sets whose test labels are not given
        test, held = told == ("val" if on_val else "test"), told == ("" if on_val else "val")
        if not held.any():
            held = train & (part == 0)
            train = train & (part != 0)
        named += ", tested on val" if on_val else ""
    elif split is not None:
        raise BadInput(
            f"column {split!r} of {store.path} does not say train and test; it holds: {', '.join(sorted(set(told))[:5])}. Type "
            f"one of: {columns_of(store)}; or leave --split away"
        )
    else:
        train, held, test = part > 2, part == 2, part < 2
        named = f"a fifth for the test by id (seed {seed})"
    sets = [np.flatnonzero(one & known) for one in (train, held, test)]
    if not len(sets[0]) or not len(sets[2]):
        raise BadInput(
            f"{store.path} has {len(sets[0]):,} labelled images to train on and {len(sets[2]):,} to test on. Index more of them, or "
            "type --split with another column"
        )
    return sets[0], sets[1], sets[2], named


def _column(store: Store, name: str) -> list[str]:
    return ["" if value is None else str(value) for value in column_of(store, name, np.arange(len(store)))]


def _number(name: str, seed: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {name}".encode("utf-8", "replace"), digest_size=7).digest(), "little"
    )
