"""The known truth about a store's images, as far as its rows tell it: what drives each head (see `measure.truth`)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.errors import BadInput
from clip_anatomy.naming.known_truth import Truth, attribute_shares, codes_of
from clip_anatomy.store.store import Store

__all__ = ["is_world", "truth_of"]

WORLD = (*ATTRIBUTES, "digit")
ROW_COLUMNS = ("label", "group")
OWN_COLUMNS = ("size",)  # of the file in the store, of the objects in the demo world
MOST_VALUES = 1000  # a column of more values than this is a name, not an attribute


def is_world(store: Store) -> bool:
    """Whether all images of a store are of the demo world."""
    return bool(len(store)) and all(str(name).startswith("world-") for name in store.column("id"))


def truth_of(store: Store, columns: Sequence[str] | None = None) -> Truth:
    """Measure what drives each head of a store.

    Args:
        store: a store whose rows tell attributes.
        columns: which: label, group, or columns of the table that came with the images. Default: all attributes of the demo
            world if the images are of it (then pictures of two different objects are left out, since shape, colour and
            texture are not one there; "no printed digit" is a value of its own), else label and group.

    Returns:
        Truth.

    Raises:
        BadInput: no column that tells images apart.
    """
    world = columns is None and is_world(store)
    names = tuple(columns) if columns else (WORLD if world else ROW_COLUMNS)
    if odd := [name for name in names if not name or '"' in name]:
        raise BadInput(f"{odd[0]!r} is no column. Type, for example: --truth label,group")
    values = {name: _column(store, name, meta=world) for name in names}
    if world:
        values["digit"] = ["none" if value is None else value for value in values["digit"]]
    for name, column in values.items():
        if len({str(value) for value in column}) > MOST_VALUES:
            raise BadInput(
                f"column {name!r} has more than {MOST_VALUES} values: it names images, it is no attribute. Type another"
            )
    codes, known = codes_of(values)
    single = (
        torch.tensor([other is None for other in store.column("shape2")])
        if world
        else torch.ones(len(store), dtype=torch.bool)
    )
    return attribute_shares(_batches(store, codes, single), known, store.manifest.layers)


def _column(store: Store, name: str, *, meta: bool) -> list[object]:
    """A column of the table that came with the images where `meta` says so, even if the store has one of that name itself."""
    if meta and name in OWN_COLUMNS:
        return [row.meta.get(name) for row in store.rows()]
    return store.column(name)


def _batches(store: Store, codes: Tensor, used: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start, heads in store.batches():
        here = slice(start, start + len(heads))
        if bool(used[here].any()):
            yield heads[used[here]], codes[here][used[here]]
