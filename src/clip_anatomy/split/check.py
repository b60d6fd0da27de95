"""The proofs behind `check`: our forward is the host's, and the parts sum to what the host returns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.host import read_host
from clip_anatomy.loading.parity import TOLERANCE, random_ids, random_pixels, relative
from clip_anatomy.split.layernorm import CONVENTIONS
from clip_anatomy.split.parts import Parts, decompose, decompose_text


@dataclass(frozen=True)
class Check:
    """One claim and its measured error.

    Attributes:
        claim: what must hold.
        tower: in which tower.
        convention: how the mean and the biases were shared; "" where nothing was split.
        error: relative difference of embeddings, or largest absolute difference of cosines.
        allowed: the most that passes.
    """

    claim: str
    tower: Literal["image", "text"]
    convention: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the error is small enough (NaN is not)."""
        return self.error <= self.allowed


def checks(clip: Clip) -> Iterator[Check]:
    """Measure every claim on two random pictures and two random texts, one by one.

    Args:
        clip: an opened model, with or without its own parity proof.

    Yields:
        Parity of both towers, then for each convention and tower: parts sum to the embedding, tokens sum to their heads, and
        everything sums to the cosine. Compared with the host library's own output where its model is at hand, else with our
        forward, whose parity the recorded embeddings prove.
    """
    pixels, ids = _random_inputs(clip)
    allowed = TOLERANCE[clip.vision.dtype]
    sums = max(allowed, TOLERANCE[torch.float32])  # parts are summed in float32 whatever the model's dtype is
    with torch.no_grad():
        ours = clip.vision.encode(pixels), clip.text_tower.encode(ids)
        if clip.host is not None:
            host = read_host(clip.host)
            theirs = host.encode_image(pixels), host.encode_text(ids)
            yield Check(f"embedding = {host.library}'s", "image", "", relative(ours[0], theirs[0]), allowed)
            yield Check(f"embedding = {host.library}'s", "text", "", relative(ours[1], theirs[1]), allowed)
        else:
            theirs = ours
            if clip.proof is not None:
                yield Check(f"embedding = {clip.proof.against}", "image", "", clip.proof.image, clip.proof.tolerance)
                yield Check(f"embedding = {clip.proof.against}", "text", "", clip.proof.text, clip.proof.tolerance)
        image, text = theirs[0].float(), theirs[1].float()
        for convention in CONVENTIONS:
            yield from _sums(decompose(clip, pixels, convention, texts=text), image, text, "image", sums)
            yield from _sums(decompose_text(clip, ids, convention, images=image), text, image, "text", sums)


def _sums(
    parts: Parts,
    embedding: Float[Tensor, "image embed"],
    other: Float[Tensor, "text embed"],
    tower: Literal["image", "text"],
    allowed: float,
) -> Iterator[Check]:
    toward = parts.toward(other)
    unit = torch.nn.functional.normalize
    cosine = unit(embedding.double(), dim=-1) @ unit(other.double(), dim=-1).T
    tokens = (parts.tokens(other).double().sum(3) - toward.heads.double()).abs().max()
    how = parts.convention
    yield Check("parts sum to the embedding", tower, how, relative(parts.total(), embedding), allowed)
    yield Check("tokens sum to their heads", tower, how, float(tokens), allowed)
    yield Check("shares sum to the cosine", tower, how, float((toward.total().double() - cosine).abs().max()), allowed)


def _random_inputs(clip: Clip) -> tuple[Tensor, Tensor]:
    """Two pictures and two texts that differ, so that mixing up a batch shows."""
    pixels, ids = random_pixels(clip.vision), random_ids(clip.text_tower)
    other = ids.clone()
    end = max(1, 2 * ids.shape[1] // 3)  # where random_ids puts the end of the text
    other[0, :end] = ids[0, :end].flip(0)
    return torch.cat([pixels, pixels.flip(3) * 0.7]), torch.cat([ids, other])
