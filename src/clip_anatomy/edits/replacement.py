"""`Change`: one part of an embedding, and what stands in its place."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec

__all__ = ["BYS", "KINDS", "By", "Change", "Kind", "frame_of"]

Kind = Literal["head", "mlp", "class-to-class", "input-embedding"]
By = Literal["mean", "zero", "texts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BYS: tuple[By, ...] = get_args(By)
ORTHONORMAL = 1e-3  # how far a frame read from a file may be off: float32 rounding of 64 products, and a lot of room


@dataclass(frozen=True, eq=False)
class Change:
    """One part, replaced. Contributions are divided by ‖embedding‖ and in the joint space.

    With the frame F (orthonormal rows) and the mean μ, a contribution x becomes

        mean, zero without a frame:  μ, 0
        mean, zero with a frame:     x − (x − μ) FᵀF, x − x FᵀF      only the subspace is replaced
        texts:                       μ + (x − μ) FᵀF                  TextSpan's reconstruction: only the subspace is kept

    Attributes:
        kind: "head", "mlp", "class-to-class" (what the class token read from itself, in all heads of a layer), "input-embedding".
        layer: number of the layer; −1 for "input-embedding".
        head: number of the head; −1 for the others.
        by: "mean", "zero" or "texts".
        mean: μ; one row, or one for each head for "class-to-class"; None for "zero".
        frame: F, or None.
    """

    kind: Kind
    layer: int = -1
    head: int = -1
    by: By = "mean"
    mean: Float[Tensor, "head embed"] | None = None
    frame: Float[Tensor, "direction embed"] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.kind not in KINDS:
            raise BadSpec(f"a part of kind {self.kind!r} is not known. Type one of: {', '.join(KINDS)}")
        if self.by not in BYS:
            raise BadSpec(f"replaced by {self.by!r}? That is not known. Type one of: {', '.join(BYS)}")
        if (self.by == "zero") != (self.mean is None):
            lacks = (
                f"replaced by its {self.by}, but without a mean" if self.mean is None else "by zero, but with a mean"
            )
            raise BadInput(f"{self.name}: {lacks}. Make the edit with Edit.of(clip, selection, moments)")
        if self.frame is not None and self.kind != "head":
            raise BadInput(f"{self.name}: directions are for heads only. Leave them away")
        if self.by == "texts" and self.frame is None:
            raise BadInput(f"{self.name}: replaced by its texts, but without their directions. Type by='mean'")
        for what, tensor in (("mean", self.mean), ("directions", self.frame)):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                bad = int((~torch.isfinite(tensor)).sum())
                raise BadInput(
                    f"{self.name}: {bad} of the {tensor.numel()} numbers of its {what} are NaN or infinite. Measure it again on "
                    "images that the model can use: Edit.of(clip, selection, moments)"
                )
        if self.frame is not None:
            gram = self.frame.double() @ self.frame.double().T
            off = float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) if len(gram) else 0.0
            if off > ORTHONORMAL:
                raise BadInput(
                    f"{self.name}: its directions are not orthonormal (off by {off:.1e}). Type directions={{(layer, head): rows}} in "
                    "Edit.of, which makes them so"
                )

    @property
    def key(self) -> tuple[int, int, int]:
        """What is changed: two changes with one key conflict unless they are the same."""
        return KINDS.index(self.kind), self.layer, self.head

    @property
    def name(self) -> str:
        """The part in words, as people type it.

        Example:
            >>> Change("head", 9, 3, "zero").name, Change("mlp", 4, by="zero").name, Change("input-embedding", by="zero").name
            ('head 9.3', 'mlp 4', 'input-embedding')
        """
        if self.kind == "head":
            return f"head {self.layer}.{self.head}"
        return self.kind if self.kind == "input-embedding" else f"{self.kind} {self.layer}"

    @property
    def told(self) -> str:
        """What is done to it, in words."""
        if self.frame is None:
            return f"{self.name} by {'its mean' if self.by == 'mean' else self.by}"
        many = f"{len(self.frame)} direction{'s'[: len(self.frame) != 1]}"
        if self.by == "texts":
            return f"{self.name} by its texts ({many} kept)"
        return f"{self.name} by {'its mean' if self.by == 'mean' else self.by} along {many}"

    def takes(self, x: Float[Tensor, "*part embed"]) -> Float[Tensor, "*part embed"]:
        """What of a contribution is taken away: all of it, or what lies in (for "texts": outside of) the frame."""
        if self.frame is None:
            return x
        frame = self.frame.to(x.device, x.dtype)
        within = (x @ frame.T) @ frame
        return x - within if self.by == "texts" else within

    def same(self, other: "Change") -> bool:
        """Whether both do the same to the same part."""
        if (self.key, self.by) != (other.key, other.by):
            return False
        pairs = ((self.mean, other.mean), (self.frame, other.frame))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def frame_of(rows: Float[Tensor, "vector embed"], name: str) -> Float[Tensor, "direction embed"]:
    """Orthonormal rows that span the same subspace, in float32.

    Args:
        rows: any vectors of the joint space; rows that depend on others are dropped.
        name: whose they are, for the message.

    Raises:
        BadInput: not finite, or all of them zero.

    Example:
        >>> frame_of(torch.tensor([[3.0, 0.0], [5.0, 0.0]]), "head 9.3").abs().tolist()
        [[1.0, 0.0]]
    """
    if not bool(torch.isfinite(rows).all()):
        raise BadInput(f"{name}: its directions hold NaN or infinity. Give finite vectors of the joint space")
    _, sizes, across = torch.linalg.svd(rows.detach().to("cpu", torch.float64), full_matrices=False)
    kept = sizes > (float(sizes.max()) if len(sizes) else 0.0) * 1e-6
    if not bool(kept.any()):
        raise BadInput(f"{name}: its directions are all zero. Give at least one vector, or leave the head out")
    return across[kept].float().contiguous()
