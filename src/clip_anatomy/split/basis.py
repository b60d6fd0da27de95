"""The few directions that one head can write into, as an orthonormal frame.

A head of width d writes `z_h A_h` with a weight-only `A_h` of d rows, so its contribution lives in d dimensions of the
joint space ("official" sharing of LayerNorm's mean and of two biases adds at most three). With `A_h = R_h Q_h`, `Q_h` of
orthonormal rows, the *head coordinates* `u = z_h R_h` are lossless (`x = u Q_h`) and whitened: dot products of u equal
those of x in the joint space. Everywhere in this package head coordinates are of contributions DIVIDED BY ‖embedding‖,
so that they are parts of a cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.results import Compact
from clip_anatomy.split import layernorm as linear
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import Trace

__all__ = ["HeadBasis", "basis_of", "coordinate_count", "coordinates_of", "official_scalars"]


@dataclass(frozen=True, repr=False)
class HeadBasis(Compact):
    """One orthonormal frame per head: `maps = factor @ rows`.

    Attributes:
        rows: Q, orthonormal rows in the joint space.
        factor: R, from what the head computes (`z_h`, or `z_h` and three scalars) to head coordinates. Without a source where a
            head can write anywhere (through an attention pool it does): its coordinates then are the joint space's own.
        convention: "centered" or "official", see design of the exact split.
        layers: which layer of the model each entry of the layer axis is.
    """

    rows: Float64[Tensor, "layer head d embed"]
    factor: Float64[Tensor, "layer head source d"]
    convention: str = "centered"
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the layer numbers when none are given."""
        if not self.layers:
            object.__setattr__(self, "layers", tuple(range(self.rows.shape[0])))
        if len(self.layers) != self.rows.shape[0]:
            raise BadInput(
                f"{len(self.layers)} layer numbers for {self.rows.shape[0]} layers: give one number per layer."
            )

    @property
    def d(self) -> int:
        """How many coordinates a head has here."""
        return self.rows.shape[2]

    @property
    def embed(self) -> int:
        """Width of the joint space."""
        return self.rows.shape[3]

    def tensors(self) -> dict[str, Tensor]:
        """Compute what a file keeps of it: frames that are all the joint space once."""
        rows = self.rows[:1, :1] if self.whole else self.rows
        return {"rows": rows.contiguous(), "factor": self.factor}

    @staticmethod
    def of_tensors(rows: Tensor, factor: Tensor, convention: str, layers: Sequence[int]) -> "HeadBasis":
        """Read it again."""
        return HeadBasis(rows.double().expand(*factor.shape[:2], -1, -1), factor.double(), convention, tuple(layers))

    @property
    def whole(self) -> bool:
        """Whether the coordinates are the joint space's own."""
        return not self.factor.shape[2]

    @staticmethod
    def of_joint_space(layers: Sequence[int], heads: int, embed: int, convention: str = "centered") -> "HeadBasis":
        """Frames of heads that can write anywhere: the joint space itself, the same for all and held once."""
        rows = torch.eye(embed, dtype=torch.float64).expand(len(layers), heads, -1, -1)
        return HeadBasis(
            rows, torch.zeros(len(layers), heads, 0, embed, dtype=torch.float64), convention, tuple(layers)
        )

    @staticmethod
    def of(
        maps: Float[Tensor, "layer head source embed"], convention: str = "centered", layers: Sequence[int] = ()
    ) -> "HeadBasis":
        """Factor the weight-only maps of all heads, `A_h = R_h Q_h` (LQ), in float64.

        Args:
            maps: what one unit of each of a head's inputs writes into the joint space: `A_h` [d, embed] for "centered"; with
                three more rows for "official" (see `official`).
            convention: recorded, so that moments of two conventions are never merged.
            layers: the layer numbers of the model, when only some layers are kept.

        Returns:
            Frames of min(source, embed) coordinates. The diagonal of R is made non-negative, which makes the frame of
            a full-rank map
            unique: two machines get the same coordinates.

        Example:
            >>> basis = HeadBasis.of(torch.tensor([[[[3.0, 4.0, 0.0]]]]))
            >>> [round(x, 6) for x in basis.rows.flatten().tolist()], round(basis.factor.item(), 6)
            ([0.6, 0.8, 0.0], 5.0)
        """
        across, down = torch.linalg.qr(maps.detach().to("cpu", torch.float64).transpose(-1, -2))
        diagonal = torch.diagonal(down, dim1=-2, dim2=-1)
        sign = torch.where(diagonal < 0, -1.0, 1.0).to(torch.float64)
        rows = across.transpose(-1, -2) * sign[..., :, None]
        factor = down.transpose(-1, -2) * sign[..., None, :]
        return HeadBasis(rows.contiguous(), factor.contiguous(), convention, tuple(layers))

    @staticmethod
    def official(
        maps: Float[Tensor, "layer head d embed"],
        out_bias: Float[Tensor, "layer embed"],
        mean: Float[Tensor, " embed"],
        beta: Float[Tensor, " embed"],
        *,
        terms: int,
        layers: Sequence[int] = (),
    ) -> "HeadBasis":
        """Compute frames for the official convention, whose shared mean and biases add three directions to every head.

        Args:
            maps: `W_O^h diag(γ) P`, NOT centred (in this convention the mean is a part of its own).
            out_bias: `b_O diag(γ) P` of each layer.
            mean: `γ P`, what a residual stream of ones writes.
            beta: `β P`.
            terms: K = 2·layers + 1 of the whole model.
            layers: layer numbers, when only some layers are kept.

        Returns:
            Frames whose `whiten` takes [z, three scalars of `official_scalars`].
        """
        heads = maps.shape[1]
        share = 1.0 / (terms * heads)
        extra = torch.stack(
            [
                out_bias[:, None].expand(-1, heads, -1) / heads,
                (-share * mean).expand(maps.shape[0], heads, -1),
                (share * beta).expand(maps.shape[0], heads, -1),
            ],
            dim=2,
        )
        return HeadBasis.of(torch.cat([maps.double(), extra.double()], dim=2), "official", layers)

    def whiten(self, inputs: Float[Tensor, "image layer head source"]) -> Float64[Tensor, "image layer head d"]:
        """Head coordinates of what the heads computed: `z_h/(σ‖e‖)`, followed by `official_scalars` for "official"."""
        return torch.einsum("ilhs,lhsd->ilhd", inputs.to("cpu", torch.float64), self.factor)

    def coordinates(
        self, contributions: Float[Tensor, "image layer head embed"]
    ) -> Float64[Tensor, "image layer head d"]:
        """Head coordinates of contributions in the joint space (each divided by ‖embedding‖): `u = x Qᵀ`."""
        x = contributions.to("cpu", torch.float64)
        return x if self.whole else torch.einsum("ilhe,lhde->ilhd", x, self.rows)

    def restore(self, coordinates: Float[Tensor, "image layer head d"]) -> Float64[Tensor, "image layer head embed"]:
        """Contributions in the joint space of head coordinates: `x = u Q`."""
        u = coordinates.to("cpu", torch.float64)
        return u if self.whole else torch.einsum("ilhd,lhde->ilhe", u, self.rows)

    def select(self, layers: Sequence[int]) -> "HeadBasis":
        """Keep only these layers (numbers as in the model)."""
        rows = [self.layers.index(layer) for layer in layers]
        return HeadBasis(self.rows[rows], self.factor[rows], self.convention, tuple(layers))


def official_scalars(
    scale: Float[Tensor, " image"],
    mean: Float[Tensor, " image"],
    norm: Float[Tensor, " image"],
    mass: Float[Tensor, " image"] | None = None,
) -> Float[Tensor, "image 3"]:
    """Give the three per-image scalars of the "official" convention: mass/(σ‖e‖), mean/(σ‖e‖), 1/‖e‖.

    Args:
        scale: 1/σ of the last LayerNorm.
        mean: mean of the residual stream there.
        norm: ‖embedding‖.
        mass: how often a bias counts (1 for one readout row).
    """
    times = torch.ones_like(scale) if mass is None else mass
    return torch.stack([times * scale / norm, mean * scale / norm, 1 / norm], dim=-1)


def basis_of(tower: Tower, convention: str = "centered", layers: Sequence[int] | None = None) -> HeadBasis:
    """Compute frames of all heads of a tower, from its weights alone.

    Args:
        tower: an opened image or text tower.
        convention: "centered" or "official".
        layers: which layers (default: all).

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> basis = basis_of(clip.image_tower)
        >>> basis.rows.shape[:2] == (clip.image_tower.layers, clip.image_tower.heads)
        True
    """
    linear.check_convention(convention)
    some = tuple(range(tower.layers)) if layers is None else tuple(layers)
    if writes_anywhere(tower, convention):
        return HeadBasis.of_joint_space(some, tower.heads, tower.embed, convention)
    maps: list[Tensor] = []
    biases: list[Tensor] = []
    with torch.no_grad():
        one_each = torch.eye(tower.d, device=tower.device)[:, None].expand(-1, tower.heads, -1)
        for layer in some:
            wrote = linear.write_heads(tower, layer, one_each)  # [d, head, width]
            joint = linear.centered_to_joint if convention == "centered" else linear.to_joint
            maps.append(joint(tower, wrote).transpose(0, 1))
            biases.append(linear.to_joint(tower, linear.out_bias(tower, layer)))
        if convention == "centered":
            return HeadBasis.of(torch.stack(maps), "centered", some)
        mean, beta = linear.shared_directions(tower)
        return HeadBasis.official(
            torch.stack(maps), torch.stack(biases), mean[0], beta, terms=linear.terms(tower), layers=some
        )


def writes_anywhere(tower: Tower, convention: str) -> bool:
    """Say whether no frame smaller than the joint space holds what a head writes.

    Behind an attention pool a head writes through a map of each of the pool's heads: together they have the rank of the joint space,
    or half of it (PE-Core), where frames of their own would be larger than what they save. Under "official", biases of norms
    behind the attention are no multiples of one vector.
    """
    return tower.rows > 1 or (
        convention == "official"
        and any(block.norm_written is not None or block.norms_of_stream for block in tower.blocks)
    )


def coordinate_count(tower: Tower, convention: str) -> int:
    """Count the coordinates of a head: `basis_of(tower, convention).d`, without taking the frames."""
    if writes_anywhere(tower, convention):
        return tower.embed
    return min(tower.d + (3 if convention == "official" else 0), tower.embed)


def coordinates_of(basis: HeadBasis, tower: Tower, trace: Trace) -> Float64[Tensor, "image layer head d"]:
    """Head coordinates of every image of one forward: no joint-space vector is built, unless that is what they are.

    Args:
        basis: frames of the tower that made the trace.
        tower: it.
        trace: what its forward recorded.

    Returns:
        Coordinates of contributions divided by ‖embedding‖.
    """
    norm = trace.embedding.float().norm(dim=-1)
    if basis.whole:
        wrote = [linear.heads_to_joint(tower, trace, layer, basis.convention) for layer in basis.layers]
        return basis.coordinates(torch.stack(wrote, 1) / norm[:, None, None, None])
    inputs = trace.mixed[:, list(basis.layers)] * (trace.scale / norm)[:, None, None, None]
    if basis.convention == "official":
        scalars = official_scalars(trace.scale, trace.stream.mean(-1), norm, trace.mass[:, 0])
        inputs = torch.cat([inputs, scalars[:, None, None].expand(*inputs.shape[:3], -1)], dim=-1)
    return basis.whiten(inputs)
