"""One batch of head contributions, checked: what `Moments` and `evaluate` are fed with."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.split.basis import HeadBasis

__all__ = ["HasFrames", "HasHeads", "chunk_of", "contributions_of", "one_each"]


@runtime_checkable
class HasHeads(Protocol):
    """Anything that splits embeddings into heads, such as `Parts`; heads here are not divided by ‖embedding‖."""

    @property
    def heads(self) -> Tensor:
        """Contributions [image, layer, head, embed]."""
        ...

    @property
    def embedding(self) -> Tensor:
        """Embeddings [image, embed]."""
        ...

    @property
    def convention(self) -> str:
        """How LayerNorm's mean and biases are shared: "centered" or "official"."""
        ...


@runtime_checkable
class HasFrames(Protocol):
    """Heads that know the frames of the weights that wrote them."""

    @property
    def basis(self) -> HeadBasis | None:
        """Frames of the heads; None where there are none."""
        ...


def contributions_of(
    x: "Tensor | NDArray[Any] | HasHeads", basis: HeadBasis | None, convention: str
) -> tuple[Float64[Tensor, "image layer head d"], str]:
    """Bring a batch to float64 contributions divided by ‖embedding‖, in the coordinates of `basis`.

    Args:
        x: `Parts` (divided by ‖embedding‖ here), or an array [image, layer, head, d] that already is in the right
            coordinates.
        basis: the frames, or None for joint-space vectors.
        convention: used when neither `x` nor `basis` says.

    Returns:
        They, on the device of `x`, and the convention.

    Raises:
        BadInput: not four axes, or numbers that are not finite.
    """
    if isinstance(x, HasHeads):
        convention = x.convention
        data = x.heads.detach() / x.embedding.detach().norm(dim=-1)[:, None, None, None]
        if basis is not None and basis.convention != convention:
            raise BadInput(
                f"parts are {convention!r}, the basis is {basis.convention!r}: decompose with that convention."
            )
        data = data if basis is None else basis.coordinates(data[:, list(basis.layers)])
    else:
        data = torch.as_tensor(x)
        convention = basis.convention if basis is not None else convention
    if data.ndim != 4:
        raise BadInput(f"contributions of shape {list(data.shape)}: give [image, layer, head, d], four axes.")
    data = data.detach()
    # On the device that it is on, but for Apple's, which have no float64: 0.3 GFLOP a batch of a B/16 are nothing there, and 40 ms of a processor.
    data = (data.cpu() if data.device.type == "mps" else data).to(torch.float64)
    refuse_non_finite(data)
    return data, convention


def chunk_of(ids: Int64[Tensor, " image"], chunks: int) -> Int64[Tensor, " image"]:
    """Deal ids into chunks by the finaliser of splitmix64: neighbours (frames, one class folder) land apart."""
    z = ids.numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) % np.uint64(chunks)).astype(np.int64))


def one_each(given: "Tensor | Sequence[int] | None", images: int, name: str, default: Tensor) -> Tensor:
    """Bring one integer per image to int64, or take the default; BadInput for anything else."""
    if given is None:
        return default
    values = torch.as_tensor(given).detach().to("cpu")
    if (values.is_floating_point() and len(values)) or values.shape != (images,):
        raise BadInput(
            f"{name} of shape {list(values.shape)} ({values.dtype}): give one integer for each of the {images} images."
        )
    return values.to(torch.int64)


def refuse_non_finite(data: Tensor) -> None:
    """Raise BadInput when an image holds NaN or infinity."""
    bad = (~torch.isfinite(data)).flatten(1).any(1)
    if bool(bad.any()):
        rows = torch.nonzero(bad).flatten().tolist()
        raise BadInput(
            f"{len(rows)} of {len(data)} images have contributions that are not finite (first: row {rows[0]}). "
            "Leave them out, or run the model in float32."
        )
