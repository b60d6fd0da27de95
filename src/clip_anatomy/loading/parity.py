"""The proof made on every load: one random image and one text through the host library's own code and through ours."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clip_anatomy.errors import ParityError
from clip_anatomy.images.geometry import pixels_of_grid
from clip_anatomy.towers.layers import Activation
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer

# Relative difference allowed: float32 sums in another order; half-precision models round after every block.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Proof:
    """Relative differences between the host library's embeddings and ours, and what is allowed."""

    against: str
    image: float
    text: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether both differences are within the tolerance (NaN is not)."""
        return self.image <= self.tolerance and self.text <= self.tolerance


def random_pixels(tower: Tower) -> Tensor:
    """Draw a random image at the tower's own resolution, from a generator of its own (the global state is not touched)."""
    size = pixels_of_grid(tower.grid, tower.patch)
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(tower.device, tower.dtype)


def random_ids(tower: Transformer) -> Tensor:
    """Draw a random text that ends where the tower reads: its end-of-text id stands two thirds along the context."""
    vocabulary, length = tower.embedding.weight.shape[0], tower.embedding.position.shape[0]
    generator = torch.Generator().manual_seed(0)
    end = max(1, 2 * length // 3)
    ids = torch.zeros(1, length, dtype=torch.long)
    high = vocabulary - 1
    if tower.pool == "eos" and tower.eos is not None:
        row = torch.randint(1, high, (end,), generator=generator)
        ids[0, :end] = torch.where(row == tower.eos, torch.full_like(row, max(1, tower.eos - 1)), row)
        ids[0, end] = tower.eos
    else:
        ids[0, :end] = torch.randint(1, high, (end,), generator=generator)
        ids[0, end] = high
    return ids.to(tower.device)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Give ‖ours − theirs‖ / ‖theirs‖, the largest over the batch."""
    ours, theirs = ours.double(), theirs.double()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def prove(
    image_tower: Tower,
    text_tower: Transformer,
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Tensor], Tensor],
    *,
    against: str,
) -> Proof:
    """Compare our forward with the host's on one random image and one text.

    Args:
        image_tower: ours.
        text_tower: ours.
        encode_image: the host's own, pixels [image, 3, row, col] → [image, embed].
        encode_text: the host's own, ids [text, token] → [text, embed].
        against: the host's name, for the message.

    Returns:
        Proof that holds.

    Raises:
        ParityError: the difference is above the tolerance; the message says in which tower and, where it can, why.
    """
    pixels, ids = random_pixels(image_tower), random_ids(text_tower)
    with torch.no_grad():
        their_image, their_text = encode_image(pixels), encode_text(ids)
    proof = Proof(
        against,
        relative(image_tower.encode(pixels), their_image),
        relative(text_tower.encode(ids), their_text),
        TOLERANCE[image_tower.dtype],
    )
    if not proof.holds:
        worse = (
            (image_tower, pixels, their_image) if not proof.image <= proof.tolerance else (text_tower, ids, their_text)
        )
        judge(proof, _diagnosis(*worse, proof.tolerance))
    return proof


def judge(proof: Proof, why: str = "") -> None:
    """Raise ParityError when a proof does not hold."""
    if not proof.holds:
        raise ParityError(
            f"our forward and {proof.against} disagree: image tower {proof.image:.1e}, text tower {proof.text:.1e} relative, "
            f"allowed {proof.tolerance:.0e}. {why} To look at it anyway, type: load(..., parity=False)"
        )


def _diagnosis(tower: Tower, inputs: Tensor, theirs: Tensor, tolerance: float) -> str:
    """Try what usually differs, and say which change makes both agree."""
    if not isinstance(tower, Transformer):
        return "Nothing known explains it: strides, pools and BatchNorm's statistics were read from the model."
    activations: tuple[Activation, ...] = ("gelu", "quick_gelu", "gelu_tanh")
    for activation in activations:
        if relative(replace(tower, activation=activation).encode(inputs), theirs) <= tolerance:
            return f"The {tower.kind} tower agrees with activation {activation}, but {tower.activation} was read from the model."
    for order in (True, False):
        changed = replace(tower, pool_before_norm=order)
        if relative(changed.encode(inputs), theirs) <= tolerance:
            return f"The {tower.kind} tower agrees with the pooling and the final LayerNorm in the other order."
    if not torch.isfinite(theirs).all():
        return "The host's own embedding is not finite."
    return f"Neither activation, pooling nor normalisation of the {tower.kind} tower explains it."
