"""The exact split: every embedding as a sum over layers, heads, MLPs, the input embedding and the biases."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.split.basis import HeadBasis, basis_of
from clip_anatomy.split.layernorm import (
    Convention,
    centered_to_joint,
    check_convention,
    last_bias,
    pooled_to_joint,
    shared_bias,
    shared_term,
    to_joint,
    write_heads,
    written_biases,
)
from clip_anatomy.split.tokens import TokenSource, token_contributions, unit_texts
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import LayerReading, Trace


@public
@dataclass(frozen=True, repr=False)
class Contributions(Compact):
    """Parts of each cosine: the same axes as `Parts` with `text` last. Everything sums to `cosine`."""

    cosine: Float[Tensor, "image text"]
    heads: Float[Tensor, "image layer head text"]
    mlps: Float[Tensor, "image mlp text"]
    input_embedding: Float[Tensor, "image text"]
    bias: Float[Tensor, "image text"]

    def total(self) -> Float[Tensor, "image text"]:
        """Sum of all parts; equals `cosine` up to float error."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.input_embedding + self.bias


@public
@dataclass(frozen=True, repr=False)
class Parts(Compact):
    """An embedding, exactly as the sum of what wrote it (not normalised: `total()` equals the host's `encode_image`).

    For the text tower the first axis counts texts and the readout row is the end-of-text token; all else is the same.
    A tower that is one part (a foreign text tower) has nothing but its input embedding, which is the whole.
    A CLIP-ResNet is split where its tokens meet the joint space: one layer, the heads of its attention pool, whose token 0 is the
    mean of all places; `mlps` is empty, `input-embedding` is zero and `bias` is the out-projection's.

    Attributes:
        embedding: what the host library returns.
        heads: what every head wrote, summed over the tokens it looked at.
        mlps: what every MLP wrote, one per layer (none in a CLIP-ResNet); the MLP behind an attention pool is one more, the last.
        input_embedding: the residual stream before the first block.
        bias: LayerNorm's β and every out-projection's b_O (`centered`); zero under `official`, which spreads both over the parts.
        convention: how LayerNorm's mean and the biases are shared: "centered" or "official".
    """

    embedding: Float[Tensor, "image embed"]
    heads: Float[Tensor, "image layer head embed"]
    mlps: Float[Tensor, "image mlp embed"]
    input_embedding: Float[Tensor, "image embed"]
    bias: Float[Tensor, "image embed"]
    convention: Convention
    trace: Trace = field(repr=False)
    source: TokenSource = field(repr=False)
    known: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def total(self) -> Float[Tensor, "image embed"]:
        """Sum of all parts; equals `embedding` up to float error."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.input_embedding + self.bias

    @property
    def residue(self) -> Float[Tensor, " image"]:
        """‖total − embedding‖ / ‖embedding‖ per image: the error of the split, about 1e-6 for float32 models."""
        return (self.total() - self.embedding).norm(dim=-1) / self.embedding.norm(dim=-1)

    @cached_property
    def basis(self) -> HeadBasis | None:
        """Frames of the heads, from the weights; None for a tower that has none."""
        return basis_of(self.source.network, self.convention) if self.heads.shape[1] else None

    def toward(self, text: Float[Tensor, "text embed"]) -> Contributions:
        """Split each cosine with a text into the contributions of the parts.

        Args:
            text: embeddings of the other tower [text, embed], of any length.

        Returns:
            Contributions with `text` as last axis; they sum to the cosine.
        """
        unit = unit_texts(text, self.embedding.shape[1]).to(self.embedding.device)
        length = self.embedding.norm(dim=-1)

        def dot(x: Tensor) -> Tensor:
            return (x @ unit.T) / length.view(-1, *[1] * (x.dim() - 1))

        return Contributions(
            *(dot(x) for x in (self.embedding, self.heads, self.mlps, self.input_embedding, self.bias))
        )

    def tokens(self, text: Float[Tensor, "text embed"]) -> Float[Tensor, "image layer head token text"]:
        """Split each head's contribution to each cosine by the token it read it from.

        Contracted with the texts while the tower runs: nothing of size [token, embed] or [token, token] is ever held. Texts
        given to `decompose(texts=...)` are answered from there; others cost one more forward.

        Args:
            text: embeddings of the other tower [text, embed], of any length.

        Returns:
            Contributions; summed over `token` they equal `toward(text).heads`.
        """
        if self.known is not None and self.known[0].shape == text.shape and torch.equal(self.known[0], text.float()):
            return self.known[1]
        return token_contributions(self.source, text, self.convention)[0]

    def class_to_class(self) -> Float[Tensor, "image layer embed"]:
        """Tell what each layer's attention wrote from the readout token to itself, summed over heads (token 0 of every head)."""
        directions = torch.eye(self.embedding.shape[1], device=self.embedding.device)
        own = token_contributions(self.source, directions, self.convention, only_readout=True)[0]
        return own.sum(2)[:, :, 0] * self.embedding.norm(dim=-1)[:, None, None]


@public
def decompose(
    clip: Clip,
    images: Images | Tensor,
    convention: Convention = "centered",
    *,
    texts: Sequence[str] | Tensor | None = None,
) -> Parts:
    """Split image embeddings exactly into what every layer, head and MLP wrote.

    Source: Gandelsman, Efros, Steinhardt, "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR 2024),
    §3. Costs one forward (the last block for the readout row only).

    Args:
        clip: an opened model.
        images: paths, PIL images, arrays, or a preprocessed tensor [image, 3, row, col].
        convention: "centered" centres each part by its own mean and keeps the biases apart, so that a part that writes nothing
            contributes nothing; "official" spreads mean and biases evenly over all parts, as the official code does.
        texts: strings or embeddings whose per-token contributions (`parts.tokens`) you want from the same forward.

    Returns:
        Parts, whose `total()` equals the host library's `encode_image` up to float error.

    Raises:
        BadImage: an image cannot be used.
        BadSpec: unknown convention.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> parts = ca.decompose(clip, examples()[:1])
        >>> parts.heads.shape[1:3] == (clip.image_tower.layers, clip.image_tower.heads)
        True
        >>> bool((parts.residue < 1e-5).all())
        True
    """
    check_convention(convention)
    wanted = clip.encode_text(texts) if texts is not None and not isinstance(texts, Tensor) else texts
    return decompose_tower(clip.vision, clip.pixels(images), convention, wanted)


@public
def decompose_text(
    clip: Clip, texts: Sequence[str] | Tensor, convention: Convention = "centered", *, images: Tensor | None = None
) -> Parts:
    """Split text embeddings the same way; the readout row is the end-of-text token.

    Args:
        clip: an opened model.
        texts: strings, or token ids [text, token].
        convention: as in `decompose`.
        images: image embeddings whose per-word contributions (`parts.tokens`) you want from the same forward.

    Returns:
        Parts with the texts on the first axis.

    Raises:
        BadText: no text, or one that is not a string.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> parts = ca.decompose_text(clip, ["a red circle"])
        >>> bool((parts.residue < 1e-5).all())
        True
    """
    check_convention(convention)
    return decompose_tower(clip.text_tower, clip.ids(texts), convention, images)


def decompose_tower(tower: Tower, inputs: Tensor, convention: Convention, texts: Tensor | None = None) -> Parts:
    """Split what one tower makes of its inputs: `decompose` and `decompose_text` for towers without a `Clip`.

    Args:
        tower: of any kind.
        inputs: pixels [image, 3, row, col] or token ids [text, token].
        convention: as in `decompose`.
        texts: embeddings of the other tower whose per-token contributions are wanted from the same forward.
    """
    source = TokenSource(tower, inputs)
    each_wrote: list[Tensor] = []
    joint = centered_to_joint if convention == "centered" else to_joint

    def write(layer: int, mixed: Tensor) -> None:
        wrote = write_heads(tower, layer, mixed.float())
        each_wrote.append(wrote if tower.rows == 1 else joint(tower, wrote))  # of many rows only the sum is kept

    def read(reading: LayerReading) -> None:
        # Now, while this block's W_O is still in the cache: at the end of the forward it would be read from memory again.
        write(reading.layer, reading.mixed)

    known = None
    if texts is None and tower.weighs_late:
        # Without a reader, queries, keys and values of every layer are not held until the end.
        trace = tower.trace(inputs)
        with torch.no_grad():
            for layer in range(tower.layers):
                write(layer, trace.mixed[:, layer])
    elif texts is None:
        trace = tower.trace(inputs, read)
    else:
        contributions, trace = token_contributions(source, texts, convention, each=read)
        known = (texts.float(), contributions)
    with torch.no_grad():
        scale = trace.scale[:, None, None, None]
        nothing = trace.input_embedding.new_zeros(len(trace.embedding), 0, tower.heads, trace.input_embedding.shape[1])
        wrote = torch.stack(each_wrote, 1) if each_wrote else nothing
        heads = joint(tower, wrote * scale) if tower.rows == 1 else wrote * scale
        fields: dict[str, Any] = (_centered if convention == "centered" else _official)(tower, trace, heads)
    return Parts(trace.embedding, **fields, convention=convention, trace=trace, source=source, known=known)


def _mlps(
    tower: Tower, trace: Trace, of_layers: Float[Tensor, "image layer embed"]
) -> Float[Tensor, "image mlp embed"]:
    """Return the MLPs of the layers, and the one behind an attention pool."""
    if not trace.pool_mlp.shape[1]:
        return of_layers
    return torch.cat([of_layers, pooled_to_joint(tower, trace.pool_mlp * trace.scale[:, None, None])], 1)


def _centered(tower: Tower, trace: Trace, heads: Float[Tensor, "image layer head embed"]) -> dict[str, Tensor]:
    def joint(x: Tensor) -> Tensor:
        return centered_to_joint(tower, x * trace.scale.view(-1, *[1] * (x.dim() - 1)))

    return {
        "heads": heads,
        "mlps": _mlps(tower, trace, joint(trace.mlp)),
        "input_embedding": joint(trace.input_embedding),
        "bias": joint(written_biases(tower, trace).sum(1)) + shared_bias(tower, trace) + last_bias(tower),
    }


def _official(tower: Tower, trace: Trace, heads: Float[Tensor, "image layer head embed"]) -> dict[str, Tensor]:
    def joint(x: Tensor) -> Tensor:
        return to_joint(tower, x * trace.scale.view(-1, *[1] * (x.dim() - 1)))

    share = shared_term(tower, trace)
    biases = joint(written_biases(tower, trace))[:, :, None] / tower.heads
    return {
        "heads": heads + biases + share[:, None, None] / tower.heads,
        "mlps": _mlps(tower, trace, joint(trace.mlp) + share[:, None]),
        "input_embedding": joint(trace.input_embedding) + share,
        "bias": torch.zeros_like(trace.embedding) + last_bias(tower),
    }
