"""The proofs behind `check`: our forward is the host's, and the parts sum to what the host returns."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import ParityError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.live_models import read_host
from clip_anatomy.loading.load import ModelSource, load, refuse_stray_weights
from clip_anatomy.loading.parity import TOLERANCE, Proof, compare, random_pixels, random_texts, relative
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.layernorm import CONVENTIONS
from clip_anatomy.split.parts import Parts, decompose_tower
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.split_kind import split_kind

__all__ = ["Check", "CheckedClaim", "check"]


@dataclass(frozen=True)
class CheckedClaim:
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


@public
@dataclass(frozen=True, repr=False)
class Check(Result):
    """Every claim about one model, measured.

    Attributes:
        model: what was opened.
        layers: of its image tower.
        heads: of each of them.
        split: how far down each tower is split, image and text.
        claims: parity of both towers; for each convention and tower the sums of parts, of tokens, and toward the cosine.
        why: what the parity proof said on loading, where it failed.
    """

    model: str
    layers: int
    heads: int
    claims: tuple[CheckedClaim, ...]
    why: str = ""
    split: tuple[str, str] = ("", "")

    @property
    def holds(self) -> bool:
        """Whether everything holds."""
        return not self.why and all(claim.holds for claim in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """Return every claim with its error (None for NaN), ready for JSON."""
        rows = [
            {**asdict(one), "error": one.error if isfinite(one.error) else None, "holds": one.holds}
            for one in self.claims
        ]
        split = dict(zip(("image", "text"), self.split, strict=True))
        head = {
            "schema": "clip-anatomy/check/1",
            "model": self.model,
            "split": split,
            "holds": self.holds,
            "why": self.why,
        }
        return {**head, "checks": rows}

    def summary(self) -> str:
        """Return a table with a line per claim."""
        rows = [
            [
                one.claim,
                one.tower,
                one.convention,
                f"{one.error:.1e}",
                f"{one.allowed:.0e}",
                "yes" if one.holds else "NO",
            ]
            for one in self.claims
        ]
        columns = ["claim", "tower", "convention", ">error", ">allowed", "holds"]
        title = f"{self.model}: image tower split at {self.split[0]}; text tower at {self.split[1]}"
        return text_table(columns, rows, title=title)


@public
def check(
    model: Clip | ModelSource = "demo",
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Check:
    """Prove that a model is opened exactly, and that its parts sum to what its own library returns.

    Two random pictures and two random texts go through the model's own library and through ours.

    Args:
        model: an opened model, or what `load` opens.
        weights: as for `load`.
        device: as for `load`.
        dtype: as for `load`.
        progress: told each claim.

    Returns:
        Check. A model whose parity proof fails is measured all the same.

    Raises:
        BadSpec, BadCheckpoint, UnsupportedModel, MissingExtra: the model cannot be opened; see `load`.

    Example:
        >>> import clip_anatomy as ca
        >>> ca.check("demo").holds
        True
    """
    why, tell = "", progress or silent
    if isinstance(model, Clip):
        refuse_stray_weights(model, weights)
        clip = model
    else:
        try:
            clip = load(model, weights=weights, device=device, dtype=dtype)
        except ParityError as error:  # measured again below, beside everything else
            why = str(error)
            clip = load(model, weights=weights, device=device, dtype=dtype, parity=False)
    claims: list[CheckedClaim] = []
    for one in measured_claims(clip):
        claims.append(one)
        tell(f"checking {clip.name}", len(claims), None)
    split = split_kind(clip.vision), split_kind(clip.text_tower)
    return Check(clip.name, clip.vision.layers, clip.vision.heads, tuple(claims), why, split)


def measured_claims(clip: Clip) -> Iterator[CheckedClaim]:
    """Measure every claim on two random pictures and two random texts, one by one; of a tower alone, toward its own other embedding.

    Args:
        clip: an opened model, with or without its own parity proof.

    Yields:
        What the parity proof compares, then for each convention and tower: parts sum to the embedding, tokens sum to their
        heads, and everything sums to the cosine. Compared with the host library's own output where its model is at hand, else
        with our forward, whose parity the recorded embeddings prove.
    """
    towers = [tower for tower in (clip.vision, clip.text_tower) if tower.architecture != "absent"]
    inputs = {tower.kind: _two_inputs(tower) for tower in towers}
    # Parts are summed in float32 whatever the model's dtype is.
    sums = {tower.kind: max(TOLERANCE[torch.float32], TOLERANCE[tower.dtype]) for tower in towers}
    with torch.no_grad():
        if clip.host is None:
            theirs = {tower.kind: tower.encode(inputs[tower.kind]) for tower in towers}
            proof = clip.proof
        else:
            host = read_host(clip.host)
            encode = {"image": host.encode_image, "text": host.encode_text}
            theirs = {one.kind: (encode[one.kind] if host.exact else one.encode)(inputs[one.kind]) for one in towers}
            proof = Proof.of(
                [
                    compare(one, encode[one.kind], inputs[one.kind], against=host.library, exactly=host.exact)
                    for one in towers
                ],
                () if clip.proof is None else clip.proof.inputs,
                against=host.library,
            )
        if proof is not None:
            for one in proof.comparisons:
                yield CheckedClaim(one.claim, one.tower, "", one.difference, one.allowed)
            for one in proof.rounding:
                sums[one.tower] = max(sums[one.tower], one.allowed)
        for convention in CONVENTIONS:
            for tower in towers:
                own = theirs[tower.kind].float()
                other = theirs.get("text" if tower.kind == "image" else "image", own.flip(0)).float()
                parts = decompose_tower(tower, inputs[tower.kind], convention, other)
                yield from _sums(parts, own, other, tower.kind, sums[tower.kind])


def _two_inputs(tower: Tower) -> Tensor:
    """Draw two pictures that differ, so that mixing up a batch shows; or two texts."""
    if tower.kind == "text":
        return random_texts(tower)
    pixels = random_pixels(tower)
    return torch.cat([pixels, pixels.flip(3) * 0.7])


def _sums(
    parts: Parts,
    embedding: Float[Tensor, "image embed"],
    other: Float[Tensor, "text embed"],
    tower: Literal["image", "text"],
    allowed: float,
) -> Iterator[CheckedClaim]:
    toward = parts.toward(other)
    unit = torch.nn.functional.normalize
    cosine = unit(embedding.double(), dim=-1) @ unit(other.double(), dim=-1).T
    how = parts.convention
    yield CheckedClaim("parts sum to the embedding", tower, how, relative(parts.total(), embedding), allowed)
    if parts.heads.numel():
        tokens = (parts.tokens(other).double().sum(3) - toward.heads.double()).abs().max()
        yield CheckedClaim("tokens sum to their heads", tower, how, float(tokens), allowed)
    yield CheckedClaim(
        "shares sum to the cosine", tower, how, float((toward.total().double() - cosine).abs().max()), allowed
    )
