"""What truly drives each head: the share of its variance that each known attribute of the pictures explains.

An analysis of variance per head and attribute, over vectors. With groups v of an attribute (its values), n_v images each, means m_v:

    between = Σ_v n_v |m_v − m|²      within = Σ_v Σ_i |x_i − m_v|²      chance = (groups − 1) · within / (n − groups)
    share   = (between − chance) / total

`chance` is what random groups would seem to explain, so that an attribute of many values has no advantage (Olejnik and Algina
2003, ω² up to its denominator). `total` is the head's variance over all images, also those to which the attribute does not
apply (they add nothing to `between`): shares of different attributes are of one whole. Attributes that go together in the
pictures share what they explain, so that shares may add up to more than one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.errors import BadInput
from clip_anatomy.store.store import Store

__all__ = ["Agreement", "GroundTruth", "agreement", "attribute_shares", "codes_of", "is_world", "truth_of"]

WORLD = (*ATTRIBUTES, "digit")
ROW_COLUMNS = ("label", "group")
OWN_COLUMNS = ("size",)  # of the file in the store, of the objects in the demo world
MOST_VALUES = 1000  # a column of more values than this is a name, not an attribute


@dataclass(frozen=True)
class GroundTruth:
    """Shares of variance, 0 … 1.

    Attributes:
        share: corrected for chance, never below zero.
        plain: between / total, as it is.
        variance: E|x − mean|² of each head, over all images.
        attributes: names of the last axis.
        layers: which layer of the model each entry of the layer axis is.
        images: how many were seen.
    """

    share: Float64[Tensor, "layer head attribute"]
    plain: Float64[Tensor, "layer head attribute"]
    variance: Float64[Tensor, "layer head"]
    attributes: tuple[str, ...]
    layers: tuple[int, ...]
    images: int

    def dominant(self, layer: int, head: int) -> tuple[str, float]:
        """Return the attribute that explains most of a head, and its share."""
        row = self.share[self.layers.index(layer), head]
        at = int(row.argmax())
        return self.attributes[at], float(row[at])


@dataclass(frozen=True)
class Agreement:
    """How often the names by text agree with what truly drives the heads.

    Attributes:
        tested: heads that are named and whose dominant attribute explains at least `bar`.
        right: those whose role is that attribute.
        bar: least share of the dominant attribute.
        rows: of every head: layer, head, role, dominant attribute, its share, whether it was tested.
    """

    tested: int
    right: int
    bar: float
    rows: tuple[tuple[int, int, str, str, float, bool], ...]

    @property
    def rate(self) -> float:
        """Share of right roles, NaN where nothing was tested."""
        return self.right / self.tested if self.tested else float("nan")


def codes_of(columns: Mapping[str, Sequence[object]]) -> tuple[Int64[Tensor, "image attribute"], tuple[str, ...]]:
    """Turn columns of values into codes, −1 where there is none (None or ""); columns without two values are left out.

    Example:
        >>> codes, names = codes_of({"colour": ["red", "blue", None], "size": ["small"] * 3})
        >>> codes.tolist(), names
        ([[1], [0], [-1]], ('colour',))
    """
    codes: dict[str, list[int]] = {}
    for name, values in columns.items():
        plain = [None if value is None or value == "" else str(value) for value in values]
        code = {value: at for at, value in enumerate(sorted({value for value in plain if value is not None}))}
        if len(code) > 1:
            codes[name] = [-1 if value is None else code[value] for value in plain]
    if not codes:
        raise BadInput(
            f"none of the columns {', '.join(columns) or '(none given)'} tells images apart: give one with two values or more."
        )
    return torch.tensor(list(codes.values()), dtype=torch.int64).T.contiguous(), tuple(codes)


def attribute_shares(
    batches: Iterable[tuple[Float[Tensor, "_image layer head d"], Int64[Tensor, "_image attribute"]]],
    attributes: Sequence[str],
    layers: Sequence[int] | None = None,
) -> GroundTruth:
    """Measure how much of each head's variance each attribute explains, in one pass and constant memory.

    Args:
        batches: head contributions (coordinates of any orthonormal frame) and the images' codes, −1 where an attribute
            does not apply to an image. (`_image`: batches may differ in size.)
        attributes: names of the attributes.
        layers: layer numbers of the model (default 0, 1, …).

    Returns:
        GroundTruth.

    Raises:
        BadInput: fewer than two images, or codes that do not fit.

    Example:
        >>> x = torch.tensor([1.0, 1.1, -1.0, -1.1])[:, None, None, None]
        >>> truth = attribute_shares([(x, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))], ["sign", "noise"])
        >>> truth.dominant(0, 0)[0], [round(float(v), 2) for v in truth.share[0, 0]]
        ('sign', [1.0, 0.0])
    """
    sums_by_attribute: list[_GroupSums] = []
    middle: Tensor | None = None
    depth = 0
    images, total_sum, total_square = 0, torch.zeros(0), torch.zeros(0)
    for heads, codes in batches:
        if codes.shape != (len(heads), len(attributes)):
            raise BadInput(
                f"codes of shape {list(codes.shape)}: give [image, attribute] = [{len(heads)}, {len(attributes)}]."
            )
        x = heads.double()
        if middle is None:
            # Manifest the first batch's mean, so that nothing large cancels.
            middle, depth = x.mean(0), x.shape[1]
            total_sum, total_square = torch.zeros_like(middle), torch.zeros(x.shape[1:3], dtype=torch.float64)
            sums_by_attribute = [_GroupSums(tuple(x.shape[1:])) for _ in attributes]
        x = x - middle
        square = x.square().sum(-1)
        images += len(x)
        total_sum = total_sum + x.sum(0)
        total_square = total_square + square.sum(0)
        for sums, code in zip(sums_by_attribute, codes.T, strict=True):
            sums.add(x, square, code)
    if images < 2:
        raise BadInput(f"{images} images have no variance to explain: give two or more.")
    total = (total_square - total_sum.square().sum(-1) / images).clamp(min=0)
    shares = [sums.shares(total) for sums in sums_by_attribute]
    return GroundTruth(
        share=torch.stack([corrected for corrected, _ in shares], -1).clamp(min=0),
        plain=torch.stack([plain for _, plain in shares], -1),
        variance=total / (images - 1),
        attributes=tuple(attributes),
        layers=tuple(range(depth)) if layers is None else tuple(layers),
        images=images,
    )


class _GroupSums:
    """Sums per value of one attribute; grows when a new value is seen."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.sums = torch.zeros(0, *shape, dtype=torch.float64)
        self.square = torch.zeros(shape[:2], dtype=torch.float64)

    def add(self, x: Tensor, square: Tensor, code: Tensor) -> None:
        """Add a batch: contributions, their squared lengths, one code each."""
        known = code >= 0
        if not bool(known.any()):
            return
        more = int(code.max()) + 1 - len(self.counts)
        if more > 0:
            self.counts = torch.cat([self.counts, torch.zeros(more, dtype=torch.float64)])
            self.sums = torch.cat([self.sums, torch.zeros(more, *self.sums.shape[1:], dtype=torch.float64)])
        self.counts.index_add_(0, code[known], torch.ones(int(known.sum()), dtype=torch.float64))
        self.sums.index_add_(0, code[known], x[known])
        self.square += square[known].sum(0)

    def shares(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected and plain share of `total`."""
        used = self.counts > 0
        counts, sums = self.counts[used], self.sums[used]
        n, groups = float(counts.sum()), len(counts)
        if groups < 2 or n <= groups:
            return torch.zeros_like(total), torch.zeros_like(total)
        between = (sums.square().sum(-1) / counts[:, None, None]).sum(0) - sums.sum(0).square().sum(-1) / n
        within = self.square - (sums.square().sum(-1) / counts[:, None, None]).sum(0)
        chance = (groups - 1) * within / (n - groups)
        whole = total.clamp(min=1e-300)
        return (between - chance) / whole, between / whole


def agreement(
    roles: Mapping[tuple[int, int], str], truth: GroundTruth, bar: float = 0.5, unnamed: Sequence[str] = ("unnamed",)
) -> Agreement:
    """Compare roles with the truth.

    Args:
        roles: (layer, head) → role.
        truth: what drives the heads.
        bar: heads are tested whose dominant attribute explains at least this share.
        unnamed: roles that are no name, so that their heads are not tested.

    Returns:
        Agreement. "mixed" is a name unless it is in `unnamed`: then it counts as wrong where one attribute dominates.
    """
    rows: list[tuple[int, int, str, str, float, bool]] = []
    for (layer, head), role in sorted(roles.items()):
        name, share = truth.dominant(layer, head)
        rows.append((layer, head, role, name, share, role not in unnamed and share >= bar))
    tested = [row for row in rows if row[5]]
    return Agreement(len(tested), sum(row[2] == row[3] for row in tested), bar, tuple(rows))


def is_world(store: Store) -> bool:
    """Tell whether all images of a store are of the demo world."""
    return bool(len(store)) and all(str(name).startswith("world-") for name in store.column("id"))


def truth_of(store: Store, columns: Sequence[str] | None = None) -> GroundTruth:
    """Measure what drives each head of a store.

    Args:
        store: a store whose rows tell attributes.
        columns: which: label, group, or columns of the table that came with the images. Default: all attributes of the demo
            world if the images are of it (then pictures of two different objects are left out, since shape, colour and
            texture are not one there; "no printed digit" is a value of its own), else label and group.

    Returns:
        GroundTruth.

    Raises:
        BadInput: no column that tells images apart.
    """
    world = columns is None and is_world(store)
    names = tuple(columns) if columns else (WORLD if world else ROW_COLUMNS)
    if odd := [name for name in names if not name or '"' in name]:
        raise BadInput(f"{odd[0]!r} is no column. Type, for example: truth='label,group'")
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
    """Return a column of the table that came with the images where `meta` says so, even if the store has one of that name itself."""
    if meta and name in OWN_COLUMNS:
        return [row.meta.get(name) for row in store.rows()]
    return store.column(name)


def _batches(store: Store, codes: Tensor, used: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start, heads in store.batches():
        here = slice(start, start + len(heads))
        if bool(used[here].any()):
            yield heads[used[here]], codes[here][used[here]]
