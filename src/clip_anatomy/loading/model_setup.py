"""`ModelSetup`: which model a worker opens, as a few strings that can be sent anywhere; opened, it is held to the digest of its weights."""

from dataclasses import dataclass, field, replace
from typing import Any

from clip_anatomy.errors import BadSpec, ModelError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import DTYPES, load

__all__ = ["ModelSetup"]


@dataclass(frozen=True)
class ModelSetup:
    """A model by name.

    Attributes:
        spec: what `load` opens.
        weights: a checkpoint beside it, or "".
        digest: of the weights that it must have.
        device: "auto", or "cpu" where a GPU was there and not wanted.
        dtype: as `load` names it.
        preprocess: the model's preprocessing, which may be the user's own.
        clip: the opened model in the process that has it; it is not sent.
    """

    spec: str
    weights: str
    digest: str
    device: str
    dtype: str
    preprocess: Any
    clip: Clip | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def of(clip: Clip) -> "ModelSetup":
        """Describe an opened model."""
        import torch

        spec = (
            "demo"
            if clip.name == "demo" and clip.host is None
            else ""
            if clip.origin is None
            else clip.origin.spec_anywhere
        )
        weights = "" if clip.origin is None else clip.origin.weights
        device = "cpu" if clip.device.type == "cpu" and torch.cuda.is_available() else "auto"
        dtype = next(name for name, kind in DTYPES.items() if kind == clip.vision.dtype)
        return ModelSetup(spec, weights, clip.digest, device, dtype, clip.preprocess, clip)

    def open(self) -> Clip:
        """Open the model; where it is open already, return it.

        Raises:
            ModelError: what the name opens here has other weights.
        """
        if self.clip is not None:
            return self.clip
        clip = load(self.spec, weights=self.weights or None, device=self.device, dtype=self.dtype)
        clip = replace(clip, preprocess=self.preprocess)
        if clip.digest != self.digest:
            raise ModelError(
                f"{self.spec} has weights {clip.digest} on this worker, and {self.digest} where the work began. Put the same files on every node"
            )
        return clip

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the opened model out of what is sent.

        Raises:
            BadSpec: a model that has no name.
        """
        if not self.spec:
            raise BadSpec(
                "a live or changed model (registers, read through another) cannot be opened by other processes. Type a model by its name or path"
            )
        return ModelSetup, (self.spec, self.weights, self.digest, self.device, self.dtype, self.preprocess)
