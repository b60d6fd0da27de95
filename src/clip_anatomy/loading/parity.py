"""The proof made on every load: random inputs through the host library's own code and through ours.

Both forwards are compared in double precision, where rounding is about 1e-15: a missing head, bias or mask is then seen however
little of the embedding it moves and however coarse or ill-conditioned the model is. Rounding is judged apart: in the model's
own precision ours may err from the exact embedding as far as the host errs, times a few.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from clip_anatomy.errors import ParityError, UnsupportedModel
from clip_anatomy.images.geometry import pixels_of_grid
from clip_anatomy.loading.double_precision import in_double
from clip_anatomy.loading.first_difference import first_difference
from clip_anatomy.towers.layers import Activation
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer

# Relative rounding that always passes: float32 sums in another order; half-precision models round after every block.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
EXACT = 1e-12
"""Relative difference in double precision that always passes: its rounding is about 1e-15."""
QUANTISED = 5e-2
"""Relative difference that passes where the host computes in 8 or 4 bits, with weights that we hold dequantised: activations may be
rounded to 8 bits as well. A missing tensor shows; how a head is scaled by a hundredth does not."""
HOSTS_ROUNDING = 5.0
"""How many times the host's own rounding passes as ours, where attention is so sharp that rounding exceeds `TOLERANCE`."""


@dataclass(frozen=True)
class Comparison:
    """One thing that the host and we computed from the same input.

    Attributes:
        claim: what must hold.
        tower: for which tower.
        difference: how far they are apart.
        allowed: the most that passes.
    """

    claim: str
    tower: Literal["image", "text"]
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the difference is small enough (NaN is not)."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Proof:
    """What was compared with the host library, and how far apart the two were.

    Attributes:
        against: the host's name and version.
        image: relative difference of the image embeddings in double precision; None where there is no image tower.
        text: of the text embeddings, likewise.
        tolerance: the most that passes.
        rounding: how far ours is from the exact embedding in the model's own precision.
        inputs: pixels and token ids, where the host has code of its own for them.
    """

    against: str
    image: float | None
    text: float | None
    tolerance: float
    rounding: tuple[Comparison, ...] = ()
    inputs: tuple[Comparison, ...] = ()

    @classmethod
    def of(
        cls,
        compared: Sequence[tuple[Comparison, Comparison]],
        inputs: tuple[Comparison, ...] = (),
        *,
        against: str,
    ) -> "Proof":
        """Make a proof of what `compare` found in each tower that is there."""
        exact = {one.tower: one.difference for one, _ in compared}
        return cls(
            against,
            exact.get("image"),
            exact.get("text"),
            max(one.allowed for one, _ in compared),
            tuple(rounded for _, rounded in compared),
            inputs,
        )

    @property
    def largest(self) -> float:
        """The larger difference of the embeddings."""
        return max(one for one in (self.image, self.text) if one is not None)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them, the embeddings first."""
        claim = f"embedding = {self.against}"
        sides: tuple[tuple[Literal["image", "text"], float | None], ...] = (("image", self.image), ("text", self.text))
        exact = [Comparison(claim, side, error, self.tolerance) for side, error in sides if error is not None]
        return (*exact, *self.rounding, *self.inputs)

    @property
    def holds(self) -> bool:
        """Whether every difference is within what is allowed (NaN is not)."""
        return all(one.holds for one in self.comparisons)


def random_pixels(tower: Tower) -> Tensor:
    """Draw a random image at the tower's own resolution, from a generator of its own (the global state is not touched).

    A tower of any size (SigLIP 2's NaFlex) has none: an oblong one, so that its positions are resampled and its padding is masked.
    """
    rows, cols = tower.grid
    if isinstance(tower, Transformer) and getattr(tower.embedding, "resampling", "") == "bilinear-antialias":
        rows = max(1, rows // 2)
    size = pixels_of_grid((rows, cols), tower.patch)
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(tower.device, tower.dtype)


def random_ids(tower: Tower) -> Tensor:
    """Draw a random text that ends where the tower reads: its end-of-text id stands two thirds along the context."""
    vocabulary, length = tower.vocabulary, tower.grid[1]
    generator = torch.Generator().manual_seed(0)
    end = max(1, 2 * length // 3)
    ids = torch.zeros(1, length, dtype=torch.long)
    high = vocabulary - 1
    if isinstance(tower, Transformer) and tower.pool == "eos" and tower.eos is not None:
        row = torch.randint(1, high, (end,), generator=generator)
        ids[0, :end] = torch.where(row == tower.eos, torch.full_like(row, max(1, tower.eos - 1)), row)
        ids[0, end] = tower.eos
    else:
        ids[0, :end] = torch.randint(1, high, (end,), generator=generator)
        ids[0, end] = high
    return ids.to(tower.device)


def random_texts(tower: Tower) -> Tensor:
    """Draw two texts: that of `random_ids`, padded with zeros; and its beginning, padded with its end, as transformers pads."""
    ids = random_ids(tower)
    end = max(1, 2 * ids.shape[1] // 3)
    short = ids.clone()
    short[0, max(1, end // 2) :] = ids[0, end]
    return torch.cat([ids, short])


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Give ‖ours − theirs‖ / ‖theirs‖, the largest over the batch."""
    ours, theirs = ours.double(), theirs.double()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def rounding(tower: Tower, inputs: Tensor, exact: Tensor, hosts: float = 0.0) -> Comparison:
    """Compare our embedding in the tower's own precision with the exact one; `hosts` is how far the host's own is from it."""
    precision = str(tower.dtype).removeprefix("torch.")
    difference = relative(tower.encode(inputs), exact.to(tower.device))
    allowed = max(TOLERANCE[tower.dtype], HOSTS_ROUNDING * hosts)
    return Comparison(f"rounding in {precision}", tower.kind, difference, allowed)


def exact_tolerance(hosts: float, dtype: torch.dtype, exact: torch.dtype) -> float:
    """Give the relative difference in double precision that passes.

    Attention that turns on a hair multiplies any rounding by one factor, which the host's own rounding shows: a hundred times what
    this factor makes of double precision's.

    Args:
        hosts: how far the host's embedding in its own precision is from the exact one.
        dtype: that precision.
        exact: the precision of the exact one; float64, or the model's own where the device has none.
    """
    if dtype == exact:
        return TOLERANCE[exact]
    scaled = 100 * hosts * torch.finfo(exact).eps / torch.finfo(dtype).eps
    return min(max(EXACT, scaled), TOLERANCE[exact])


def compare(
    tower: Tower, encode: Callable[[Tensor], Tensor], inputs: Tensor, *, against: str, exactly: bool = True
) -> tuple[Comparison, Comparison]:
    """Compare our forward of one tower with the host's.

    Args:
        tower: ours.
        encode: the host's own, inputs → [image, embed].
        inputs: pixels [image, 3, row, col] or token ids [text, token].
        against: the host's name.
        exactly: in double precision; not where the host has quantised weights, whose own code knows no other.

    Returns:
        The relative difference, and our rounding in the model's own precision.
    """
    if not exactly:
        with torch.no_grad():
            difference = relative(tower.encode(inputs), encode(inputs))
        claim = Comparison(f"embedding = {against}", tower.kind, difference, QUANTISED)
        return claim, rounding(tower, inputs, in_double(tower.encode, inputs))
    exact = in_double(encode, inputs)
    with torch.no_grad():
        hosts = relative(encode(inputs), exact)
    difference = relative(in_double(tower.encode, inputs), exact)
    return (
        Comparison(f"embedding = {against}", tower.kind, difference, exact_tolerance(hosts, tower.dtype, exact.dtype)),
        rounding(tower, inputs, exact, hosts),
    )


def prove(
    image_tower: Tower,
    text_tower: Tower,
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Tensor], Tensor],
    *,
    against: str,
    exactly: bool = True,
) -> Proof:
    """Compare our forwards with the host's on a random image and two random texts, in the towers that are there.

    Args:
        image_tower: ours.
        text_tower: ours.
        encode_image: the host's own, pixels [image, 3, row, col] → [image, embed].
        encode_text: the host's own, ids [text, token] → [text, embed].
        against: the host's name, for the message.
        exactly: see `compare`.

    Returns:
        Proof that holds.

    Raises:
        ParityError: a difference is above what is allowed; the message says in which tower and, where it can, why.
    """
    sides = [
        (tower, encode, draw(tower))
        for tower, encode, draw in ((image_tower, encode_image, random_pixels), (text_tower, encode_text, random_texts))
        if tower.architecture != "absent"
    ]
    try:
        proof = Proof.of([compare(*side, against=against, exactly=exactly) for side in sides], against=against)
    except RuntimeError:
        _run_host(sides, against)  # says so where the host fails itself
        raise
    if not proof.holds and not exactly:
        judge(
            proof, "Its layers compute otherwise than their dequantised weights say. Type: the same model in float32."
        )
    if not proof.holds:
        failed = next(one for one in proof.comparisons if not one.holds)
        side = next(side for side in sides if side[0].kind == failed.tower)
        judge(proof, _diagnosis(*side, only_rounding=failed in proof.rounding))
    return proof


def _run_host(sides: Iterable[tuple[Tower, Callable[[Tensor], Tensor], Tensor]], against: str) -> None:
    """Raise UnsupportedModel where the host's own forward fails, as with layers in several precisions."""
    for tower, encode, inputs in sides:
        try:
            with torch.no_grad():
                encode(inputs)
        except RuntimeError as error:
            raise UnsupportedModel(
                f"{against} itself fails on a random input of the {tower.kind} tower ({error}). Type: load(model.float()), or mend the model"
            ) from error


def judge(proof: Proof, why: str = "") -> None:
    """Raise ParityError when a proof does not hold."""
    if not proof.holds:
        failed = "; ".join(
            f"{one.tower} tower, {one.claim}: {one.difference:.1e}, allowed {one.allowed:.0e}"
            for one in proof.comparisons
            if not one.holds
        )
        raise ParityError(
            f"our forward and {proof.against} disagree ({failed}; relative). {why} "
            "To look at it anyway, type: load(..., parity=False)"
        )


def _diagnosis(tower: Tower, encode: Callable[[Tensor], Tensor], inputs: Tensor, *, only_rounding: bool) -> str:
    """Try what usually differs, and say which change makes both agree."""
    with torch.no_grad():
        if not torch.isfinite(encode(inputs)).all():
            return f"The host's own embedding is not finite in {tower.dtype}."
    if only_rounding:
        return f"Both compute the same, but ours loses it in {tower.dtype}. Type: load(..., dtype='float32')."
    theirs = in_double(encode, inputs)
    if not isinstance(tower, Transformer):
        return "Nothing known explains it: strides, pools and BatchNorm's statistics were read from the model."
    activations: tuple[Activation, ...] = ("gelu", "quick_gelu", "gelu_tanh")
    for activation in activations:
        if relative(in_double(replace(tower, activation=activation).encode, inputs), theirs) <= TOLERANCE[theirs.dtype]:
            return f"The {tower.kind} tower agrees with activation {activation}, but {tower.activation} was read from the model."
    for order in (True, False):
        if (
            relative(in_double(replace(tower, pool_before_norm=order).encode, inputs), theirs)
            <= TOLERANCE[theirs.dtype]
        ):
            return f"The {tower.kind} tower agrees with the pooling and the final LayerNorm in the other order."
    place = first_difference(tower, encode, inputs)
    return f"The {tower.kind} tower is another from here on: {place}. Neither activation, pooling nor normalisation explains it."
