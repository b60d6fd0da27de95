"""What is read off a host library's model: its tensors, borrowed; what they do not say; both towers and its own encoders.

Nothing is copied and nothing of the module is changed: no hooks, no mode, no gradient flags, no buffers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.images.preprocess import Preprocess
from clip_anatomy.loading.quantised import dequantised
from clip_anatomy.loading.score_rule import ScoreRule
from clip_anatomy.loading.tokenizer import Tokenizer
from clip_anatomy.towers.layers import Activation, Linear, Norm, Pool
from clip_anatomy.towers.protocol import Tower

PLAIN = (
    "What opens is listed in docs/models.md: every configuration of open_clip, CLIPs, SigLIPs and vision transformers of transformers, "
    "vision transformers, ConvNeXts and Swins of timm. Type: load('open_clip:ViT-B-16/openai'), or one of those"
)
NOT_OF_A_TOWER = {  # entries of a state dict that no tower reads
    "logit_scale",
    "logit_bias",
    "temperature",
    "attn_mask",
    "text.attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
}


@dataclass(frozen=True)
class HostInputs:
    """The host's own code for what goes into its model, to prove ours by; None where it has none for this model.

    Attributes:
        pixels: picture → normalised pixels [3, row, col].
        ids: texts → ids [text, token], padded.
    """

    pixels: Callable[[Image.Image], Tensor] | None = None
    ids: Callable[[list[str]], Any] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A host library's module, its tokenizer and its preprocessing, and the host's own code of both."""

    module: nn.Module
    tokenizer: Tokenizer | None
    preprocess: Preprocess
    inputs: HostInputs = HostInputs()


@dataclass(frozen=True)
class Host:
    """A host library's module as both towers, and its own encoders for the parity proof.

    Attributes:
        library: name and version.
        module: the module itself, unchanged.
        image_tower: over the module's own parameters.
        text_tower: likewise.
        encode_image: the library's own, pixels [image, 3, row, col] → [image, embed].
        encode_text: the library's own, ids [text, token] → [text, embed].
        rule: how its cosines become probabilities.
        exact: whether it computes with the weights that the towers have; not where those are dequantised.
    """

    library: str
    module: nn.Module
    image_tower: Tower
    text_tower: Tower
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]
    rule: ScoreRule
    exact: bool = True


@dataclass(frozen=True)
class TowerConfig:
    """What a state dict does not say about a transformer; `grid` is that of its table of patch positions."""

    heads: int
    activation: Activation
    eps: float
    pool: Pool
    pool_before_norm: bool = True
    causal: bool = False
    eos: int | None = None
    grid: tuple[int, int] | None = None

    def of_transformer(self) -> dict[str, Any]:
        """Give the fields that a `Transformer` has under the same names."""
        return {k: getattr(self, k) for k in ("heads", "activation", "pool", "pool_before_norm", "causal", "eos")}

    def grid_of(self, positions: Tensor) -> tuple[int, int]:
        """Give (rows, columns) of a table of positions [token, width] that begins with the class token: square if not said."""
        side = round((len(positions) - 1) ** 0.5)
        return self.grid or (side, side)


class BorrowedTensors:
    """A state dict that remembers which of its tensors were taken.

    What is handed out shares the storage of the user's own parameters and carries no gradient. Every tensor must be taken by
    a tower: one left over (an attention pool, a norm inside the attention, a gate) means an architecture that the linear
    split does not cover.

    Args:
        tensors: name → tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Start with nothing taken."""
        self._tensors = dict(tensors)
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Say whether the host has this tensor."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Walk the names."""
        return iter(tuple(self._tensors))

    def take(self, name: str) -> Tensor:
        """Borrow a tensor that every CLIP of the kind has, or raise UnsupportedModel."""
        if name not in self._tensors:
            raise UnsupportedModel(
                f"the model has no tensor '{name}', which every CLIP of its kind has. "
                "Supported: open_clip CLIP with a VisionTransformer or a ModifiedResNet, transformers CLIPModel."
            )
        self._taken.add(name)
        return borrowed(self._tensors[name])

    @property
    def taken(self) -> frozenset[str]:
        """The names of those that were taken."""
        return frozenset(self._taken)

    def give_back(self, kept: frozenset[str]) -> None:
        """Forget that any but these were taken: a reader that gave up."""
        self._taken = set(kept)

    def maybe(self, name: str) -> Tensor | None:
        """Borrow a tensor that some have."""
        return self.take(name) if name in self._tensors else None

    def first(self, prefixes: Sequence[str]) -> str:
        """Give the first of several names of a layer that is there, or else the first."""
        return next((one for one in prefixes if f"{one}.weight" in self._tensors), prefixes[0])

    def linear(self, prefix: str) -> Linear:
        """Borrow a linear layer, with or without bias."""
        return Linear(self.take(f"{prefix}.weight"), self.maybe(f"{prefix}.bias"))

    def norm(self, prefix: str, eps: float) -> Norm:
        """Borrow a LayerNorm."""
        return Norm(self.take(f"{prefix}.weight"), self.take(f"{prefix}.bias"), eps)

    def count(self, prefix: str) -> int:
        """Count the consecutive blocks named prefix.0, prefix.1, …"""
        n = 0
        while any(name.startswith(f"{prefix}.{n}.") for name in self._tensors):
            n += 1
        return n

    def refuse_left_over(self, model: str, apart: tuple[str, ...] = ()) -> None:
        """Raise UnsupportedModel if a tensor was not taken.

        Args:
            model: what the model is called in the message.
            apart: beginnings of names that belong to no tower, as a caption's decoder.
        """
        left = sorted(set(self._tensors) - self._taken - NOT_OF_A_TOWER)
        left = [name for name in left if not name.endswith("position_ids") and not name.startswith(apart)]
        if left:
            shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
            raise UnsupportedModel(f"{model}: tensors that the split does not read: {shown}. {PLAIN}")


def borrowed(tensor: Tensor) -> Tensor:
    """Give the same storage without a gradient, as an ordinary tensor.

    Tensors made under `torch.inference_mode` stay inference tensors through `detach`, and no gradient can flow past them.
    """
    plain = tensor.detach()
    if not plain.is_inference():
        return plain
    empty = torch.empty(0, dtype=plain.dtype, device=plain.device)
    return empty.set_(plain.untyped_storage(), plain.storage_offset(), plain.size(), plain.stride())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """List every parameter and buffer of a module by name; quantised weights as the numbers that they stand for."""
    held = {**dict(module.named_buffers()), **dict(module.named_parameters(remove_duplicate=False))}
    return {**held, **dequantised(module)}


def with_remainder(image_tower: nn.Module, pixels: Tensor) -> Tensor:
    """Pad pixels of whole patches to the size that timm insists on (384 for patches of 14): its convolution cuts what is added."""
    embedding: Any = getattr(getattr(image_tower, "trunk", image_tower), "patch_embed", None)
    if not getattr(embedding, "strict_img_size", False) or embedding.img_size is None:
        return pixels
    short = [whole - given for whole, given in zip(embedding.img_size, pixels.shape[-2:], strict=True)]
    inside = all(0 <= lacking < side for lacking, side in zip(short, embedding.patch_size, strict=True))
    return nn.functional.pad(pixels, (0, short[1], 0, short[0])) if inside and any(short) else pixels


def unsupported(reason: str) -> UnsupportedModel:
    """Make the error that names what was found in a model, and what is supported."""
    return UnsupportedModel(f"found {reason}. {PLAIN}")


def library_version(name: str) -> str:
    """Name a host library with its installed version."""
    return f"{name} {version('open_clip_torch' if name == 'open_clip' else name)}"
