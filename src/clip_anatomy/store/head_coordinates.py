"""From pixels to what a store holds of them: one forward, head coordinates, no joint-space vector of a head."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.split.basis import HeadBasis, coordinates_of
from clip_anatomy.split.layernorm import centered_to_joint, shared_term, to_joint
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import Trace

__all__ = ["ImageArrays", "image_arrays"]


@dataclass(frozen=True)
class ImageArrays:
    """What is kept of one batch. Contributions are divided by ‖embedding‖.

    Attributes:
        heads: whitened head coordinates.
        mlps: contributions of the MLPs, if they are kept.
        embedding: of unit length.
        norm: its length.
        finite: images whose numbers can be kept.
    """

    heads: Float16[np.ndarray, "layer head image d"]
    mlps: Float16[np.ndarray, "layer image embed"] | None
    embedding: Float32[np.ndarray, "image embed"]
    norm: Float32[np.ndarray, " image"]
    finite: Bool[np.ndarray, " image"]

    def usable(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, only of the images that can be kept."""
        keep = slice(None) if self.finite.all() else np.flatnonzero(self.finite)
        arrays = {"heads": self.heads[:, :, keep], "embedding": self.embedding[keep], "norm": self.norm[keep]}
        return arrays if self.mlps is None else {**arrays, "mlps": self.mlps[:, keep]}


def image_arrays(
    clip: Clip, basis: HeadBasis, manifest: Manifest, pixels: Float[Tensor, "image 3 row col"]
) -> ImageArrays:
    """Run the image tower and take what a store keeps.

    Args:
        clip: the model.
        basis: its frames, for the kept layers.
        manifest: of the store.
        pixels: preprocessed.

    Returns:
        ImageArrays on the CPU.
    """
    tower = clip.vision
    trace = tower.trace(pixels.to(clip.device, tower.dtype))
    norm = trace.embedding.norm(dim=-1)
    heads = coordinates_of(basis, tower, trace).permute(1, 2, 0, 3).to(torch.float16).contiguous()
    unit = torch.nn.functional.normalize(trace.embedding.float(), dim=-1).cpu()
    finite = torch.isfinite(heads).all(-1).all(0).all(0) & torch.isfinite(unit).all(-1) & torch.isfinite(norm).cpu()
    mlps = None
    if "mlps" in manifest.keep:
        wrote = mlps_of(tower, trace, manifest) / norm[:, None, None]
        mlps = wrote.transpose(0, 1).to("cpu", torch.float16).contiguous()
        finite &= torch.isfinite(mlps).all(-1).all(0)
    return ImageArrays(
        heads.numpy(), None if mlps is None else mlps.numpy(), unit.numpy(), norm.cpu().numpy(), finite.numpy()
    )


def mlps_of(tower: Tower, trace: Trace, manifest: Manifest) -> Float[Tensor, "image layer embed"]:
    """Tell what the MLPs of the kept layers wrote into the joint space, in the store's convention."""
    wrote = trace.mlp[:, list(manifest.layers)]
    if manifest.convention == "centered":
        return centered_to_joint(tower, wrote * trace.scale[:, None, None])
    return to_joint(tower, wrote * trace.scale[:, None, None]) + shared_term(tower, trace)[:, None]
