"""Pictures with places taken out: by the picture's mean colour, or by what surrounds them.

The second is noisy linear imputation (Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution
methods", ROAD, §4): each removed pixel is the weighted mean of its eight neighbours (1/6 beside and above, 1/12 across),
removed or not, so that what is left says little about where something was removed; a little noise goes on top. The equations

    deg_p x_p − Σ_n w_n x_n = 0      for every removed pixel p, deg_p = Σ_n w_n over the neighbours inside the picture

are those of a weighted Laplacian with the known pixels as its border: symmetric and positive definite. SciPy solves them by
one sparse factorisation per picture; without it, conjugate gradients do that start from the same problem at half the
resolution: the same pixels to 1e-3, but some fifteen times slower.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadSpec

__all__ = ["OCCLUSIONS", "impute", "impute_directly", "occlude"]

OCCLUSIONS = {
    "mean": "removed places get the picture's mean colour",
    "road": "removed pixels get the weighted mean of their neighbours, solved for all of them, and a little noise (ROAD)",
}
NOISE = 0.01  # standard deviation, in normalised pixels, as published
COARSEST = 8  # pixels a side: below it nothing is halved any more


def occlude(
    pixels: Float[Tensor, "3 row col"],
    removed: Bool[Tensor, "step row col"],
    how: str = "mean",
    *,
    seed: int = 0,
) -> Float[Tensor, "step 3 row col"]:
    """Take different places out of one picture.

    Args:
        pixels: normalised.
        removed: which pixels, once per picture wanted.
        how: of OCCLUSIONS.
        seed: of the noise, which is the same in all pictures.

    Raises:
        BadSpec: an unknown way.

    Example:
        >>> picture = torch.arange(12.0).view(3, 2, 2)
        >>> occlude(picture, torch.ones(1, 2, 2, dtype=torch.bool))[0, :, 0, 0].tolist()
        [1.5, 5.5, 9.5]
    """
    if how not in OCCLUSIONS:
        raise BadSpec(f"occlusion {how!r} is not known. Type one of: {', '.join(OCCLUSIONS)}")
    mean = pixels.mean((1, 2), keepdim=True)
    if how == "mean":
        return torch.where(removed[:, None], mean, pixels)
    whole = removed.flatten(1).all(1)
    solve = impute if find_spec("scipy") is None else impute_directly
    filled = solve(pixels.expand(len(removed), -1, -1, -1), removed & ~whole[:, None, None])
    filled = torch.where(whole[:, None, None, None], mean, filled)  # nothing is known: every constant would do
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)).to(pixels)
    return torch.where(removed[:, None], filled + NOISE * noise, pixels)


def impute_directly(
    pixels: Float[Tensor, "image 3 row col"], removed: Bool[Tensor, "image row col"]
) -> Float[Tensor, "image 3 row col"]:
    """Solve for the removed pixels by sparse factorisation; needs SciPy.

    Args:
        pixels: what stands at removed places does not matter.
        removed: at least one pixel of every picture is not.

    Returns:
        A new tensor; pixels that were not removed are as they were.
    """
    from scipy.sparse.linalg import splu

    equations = _equations(removed.shape[1], removed.shape[2])
    flat = pixels.detach().double().cpu().flatten(2).numpy().copy()
    for picture, gone in zip(flat, removed.flatten(1).cpu().numpy(), strict=True):
        at = np.flatnonzero(gone)
        if not len(at):
            continue
        picture[:, at] = 0
        rows = equations[at]
        options = {"SymmetricMode": True}
        solver = splu(rows[:, at].tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
        picture[:, at] = solver.solve(-(rows @ picture.T)).T
    return torch.from_numpy(flat).view(pixels.shape).to(pixels)


@cache
def _equations(rows: int, cols: int) -> Any:
    """Build the weighted Laplacian of a picture as a sparse matrix [row · col, row · col]."""
    from scipy.sparse import csr_array, diags_array, kron

    around: Any = [-1, 0, 1]  # SciPy's types know a single diagonal only
    one, other = (diags_array([1.0, 2.0, 1.0], offsets=around, shape=(n, n)) for n in (rows, cols))
    blurred = csr_array(kron(one, other)) / 12
    return csr_array(diags_array(blurred.sum(1)) - blurred)


def impute(
    pixels: Float[Tensor, "image 3 row col"],
    removed: Bool[Tensor, "image row col"],
    *,
    tolerance: float = 1e-4,
    most: int = 2000,
) -> Float[Tensor, "image 3 row col"]:
    """Solve for the removed pixels by conjugate gradients.

    Args:
        pixels: what stands at removed places does not matter.
        removed: at least one pixel of every picture is not.
        tolerance: of the residual, relative to that of a removed part filled with the mean of the rest.
        most: iterations.

    Returns:
        A new tensor; pixels that were not removed are as they were.
    """
    unknown = removed[:, None]
    known = (~unknown).to(pixels.dtype)
    mean = (pixels * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    plain = torch.where(unknown, mean, pixels)
    x = torch.where(unknown, _coarse(pixels, known, mean), pixels)
    limit = tolerance * _residual(plain, unknown).square().sum((2, 3), keepdim=True).sqrt()
    residual = _residual(x, unknown)
    direction, size = residual, residual.square().sum((2, 3), keepdim=True)
    for _ in range(most):
        if bool((size.sqrt() <= limit).all()):
            break
        pushed = _laplacian(direction) * unknown
        step = size / (direction * pushed).sum((2, 3), keepdim=True).clamp_min(1e-30)
        x, residual = x + step * direction, residual - step * pushed
        new = residual.square().sum((2, 3), keepdim=True)
        direction, size = residual + new / size.clamp_min(1e-30) * direction, new
    return x


def _coarse(pixels: Tensor, known: Tensor, mean: Tensor) -> Tensor:
    """Solve at half the resolution and double it: where conjugate gradients start."""
    rows, cols = pixels.shape[2:]
    if min(rows, cols) <= COARSEST:
        return mean.expand_as(pixels)
    share = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    halved = F.avg_pool2d(pixels * known, 2, ceil_mode=True, count_include_pad=False) / share.clamp_min(1e-6)
    return F.interpolate(impute(halved, share[:, 0] == 0), (rows, cols), mode="bilinear", align_corners=False)


def _residual(x: Tensor, unknown: Tensor) -> Tensor:
    return -_laplacian(x) * unknown


def _laplacian(x: Float[Tensor, "image 3 row col"]) -> Float[Tensor, "image 3 row col"]:
    """deg · x − Σ w x over the neighbours inside the picture. With its middle the kernel is [1 2 1] ⊗ [1 2 1] / 12."""
    degree = _blurred(torch.ones_like(x[:1, :1]))
    return (degree * x - _blurred(x)).div_(12)


def _blurred(x: Tensor) -> Tensor:
    for axis in (2, 3):
        length = x.shape[axis]
        y = x * 2
        y.narrow(axis, 1, length - 1).add_(x.narrow(axis, 0, length - 1))
        y.narrow(axis, 0, length - 1).add_(x.narrow(axis, 1, length - 1))
        x = y
    return x
