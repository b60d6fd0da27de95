"""`Replacement`: one part of an embedding and its baseline; and the one function that applies replacements to contributions.

The live model, a store, the edited encoder and the exported file only supply the contributions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec

__all__ = [
    "BYS",
    "EDIT_BYS",
    "EFFECTS",
    "KINDS",
    "By",
    "EditBy",
    "Effect",
    "Kind",
    "Replacement",
    "embedding_change",
    "frame_of",
]

Kind = Literal["head", "mlp", "class-to-class", "input-embedding", "tokens"]
By = Literal["mean", "zero", "texts", "swap"]
EditBy = Literal["mean", "zero", "texts"]
Effect = Literal["direct", "rerun"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BYS: tuple[By, ...] = get_args(By)
EFFECTS: tuple[Effect, ...] = get_args(Effect)
EDIT_BYS: tuple[EditBy, ...] = get_args(EditBy)
"""Those of an edit, which is for all images: its baselines are no other image's."""
ORTHONORMAL = 1e-3  # how far a frame read from a file may be off: float32 rounding of 64 products, and a lot of room


@dataclass(frozen=True, eq=False)
class Replacement:
    """One part, replaced. Contributions are divided by ‖embedding‖ and in the joint space.

    With the frame F (orthonormal rows) and the baseline μ, a contribution x becomes

        mean, zero, swap without a frame:  μ
        mean, zero, swap with a frame:     x − (x − μ) FᵀF      only the subspace is replaced; of a re-run: only what it changes of the
                                                                embedding within the subspace
        texts:                             μ + (x − μ) FᵀF      TextSpan's reconstruction: only the subspace is kept

    Attributes:
        kind: "head", "mlp", "class-to-class" (what the class token read from itself, in all heads of a layer), "input-embedding",
            or "tokens" (what all heads read from some source tokens).
        layer: number of the layer; −1 for "input-embedding", for "tokens" of all layers together, and for the "mlp" behind an
            attention pool.
        head: number of the head; −1 for the others.
        by: "mean", "zero", "texts" or "swap".
        baseline: μ; one row, or one for each head for "class-to-class"; None for zero.
        frame: F, or None.
        tokens: the source tokens of "tokens".
        effect: "direct": the part's term of the embedding is replaced. "rerun": what the part writes into the class token's row is held at
            the baseline while the forward runs, and later blocks see it; μ then is in the part's own space (a head's d, an MLP's width).
    """

    kind: Kind
    layer: int = -1
    head: int = -1
    by: By = "mean"
    baseline: Float[Tensor, "head embed"] | None = None
    frame: Float[Tensor, "direction joint"] | None = None
    tokens: tuple[int, ...] = ()
    effect: Effect = "direct"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.kind not in KINDS:
            raise BadSpec(f"a part of kind {self.kind!r} is not known. Type one of: {', '.join(KINDS)}")
        if self.by not in BYS:
            raise BadSpec(f"replaced by {self.by!r}? That is not known. Type one of: {', '.join(BYS)}")
        if self.effect not in EFFECTS:
            raise BadSpec(f"effect {self.effect!r} is not known. Type one of: {', '.join(EFFECTS)}")
        if self.effect == "rerun" and (self.kind not in ("head", "mlp") or self.by not in ("mean", "zero")):
            raise BadSpec(
                f"{self.name} by {self.by}: a re-run holds heads and MLPs at their mean or zero. Type effect='direct'"
            )
        if (self.by == "zero") != (self.baseline is None):
            lacks = (
                f"replaced by its {self.by}, but without a mean"
                if self.baseline is None
                else "by zero, but with a mean"
            )
            raise BadInput(f"{self.name}: {lacks}. Make the edit with Edit.of(clip, selection, moments)")
        if self.frame is not None and self.kind != "head" and self.effect != "rerun":
            raise BadInput(f"{self.name}: directions are for heads only. Leave them away")
        if self.by == "texts" and self.frame is None:
            raise BadInput(f"{self.name}: replaced by its texts, but without their directions. Type by='mean'")
        for what, tensor in (("mean", self.baseline), ("directions", self.frame)):
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
        """What is replaced: two replacements with one key conflict unless they are the same."""
        return KINDS.index(self.kind), self.layer, self.head

    @property
    def name(self) -> str:
        """The part in words, as people type it.

        Example:
            >>> Replacement("head", 9, 3, "zero").name, Replacement("mlp", 4, by="zero").name
            ('head 9.3', 'mlp 4')
            >>> Replacement("mlp", -1, by="zero").name  # that behind an attention pool
            'mlp pool'
        """
        if self.kind == "head":
            return f"head {self.layer}.{self.head}"
        if self.kind == "mlp" and self.layer < 0:
            return "mlp pool"
        return self.kind if self.layer < 0 else f"{self.kind} {self.layer}"

    @property
    def description(self) -> str:
        """What is done to it, in words."""
        felt = ", felt by later blocks" if self.effect == "rerun" else ""
        if self.frame is None:
            return f"{self.name} by {'its mean' if self.by == 'mean' else self.by}{felt}"
        many = f"{len(self.frame)} direction{'s'[: len(self.frame) != 1]}"
        if self.by == "texts":
            return f"{self.name} by its texts ({many} kept)"
        along = f"{felt}, and of what that changes only" if felt else ""
        return f"{self.name} by {'its mean' if self.by == 'mean' else self.by}{along} along {many}"

    def replaced_part(self, x: Float[Tensor, "*part embed"]) -> Float[Tensor, "*part embed"]:
        """Project a contribution on what of it is replaced: all of it, or what lies in (for "texts": outside of) the frame.

        The projection is symmetric: of a contribution's dot product with a text, replaced is that with the projected text.
        """
        if self.frame is None:
            return x
        frame = self.frame.to(x.device, x.dtype)
        within = (x @ frame.T) @ frame
        return x - within if self.by == "texts" else within

    def change(self, x: Float[Tensor, "*part embed"]) -> Float[Tensor, "*part embed"]:
        """Give what is added to the embedding when a contribution x is replaced: that of (baseline − x) which is replaced."""
        if self.baseline is None:
            return self.replaced_part(-x)
        rows = self.baseline.to(x.device, x.dtype)
        return self.replaced_part((rows if self.kind == "class-to-class" else rows[0]) - x)

    def same(self, other: "Replacement") -> bool:
        """Tell whether both do the same to the same part."""
        if (self.key, self.by, self.effect) != (other.key, other.by, other.effect):
            return False
        pairs = ((self.baseline, other.baseline), (self.frame, other.frame))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def embedding_change(
    replacements: Sequence[Replacement], contribution: Callable[[Replacement], Float[Tensor, "*part embed"]]
) -> Float[Tensor, "*image embed"]:
    """Apply replacements to contributions: sum what they add to embedding / ‖embedding‖.

    What the heads of a layer read from some tokens is replaced as far as it is not replaced with the whole head anyway, so that
    nothing counts twice.

    Args:
        replacements: one or more, each part once.
        contribution: the contribution of the part of a replacement, divided by ‖embedding‖: [image, embed], or
            [image, head, embed] for what is read from tokens.

    Returns:
        New embedding / ‖embedding‖ − embedding / ‖embedding‖.

    Example:
        >>> one = Replacement("head", 0, 1, baseline=torch.tensor([[1.0, 0.0]]))
        >>> embedding_change([one], lambda _: torch.tensor([[0.5, 0.5]])).tolist()
        [[0.5, -0.5]]
    """
    heads = {(one.layer, one.head): one for one in replacements if one.kind == "head"}
    changes: list[Tensor] = []
    for one in replacements:
        change = one.change(contribution(one))
        if one.kind in ("class-to-class", "tokens") and one.layer >= 0:
            each = [
                change[..., head, :] - heads[one.layer, head].replaced_part(change[..., head, :])
                if (one.layer, head) in heads
                else change[..., head, :]
                for head in range(change.shape[-2])
            ]
            change = torch.stack(each).sum(0)
        changes.append(change)
    return torch.stack(changes).sum(0)


def frame_of(rows: Float[Tensor, "vector embed"], name: str) -> Float[Tensor, "direction embed"]:
    """Find orthonormal rows that span the same subspace, in float32.

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
    large = sizes > (float(sizes.max()) if len(sizes) else 0.0) * 1e-6
    if not bool(large.any()):
        raise BadInput(f"{name}: its directions are all zero. Give at least one vector, or leave the head out")
    return across[large].float().contiguous()
