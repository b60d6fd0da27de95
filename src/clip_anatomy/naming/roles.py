"""Roles: what a head is about, in one word, offline, by two scores that err in different ways.

    by picks          share of the variance that a head's first texts explain, added up per property of the text
    by text variance  per property p with texts t_1 … t_n:  Σ_j (t_j − t̄)ᵀ C (t_j − t̄) / n,  C the head's covariance: how far
                      the head tells p's texts apart from image to image. With G_p = Σ_j (t_j − t̄)(t_j − t̄)ᵀ / n it is
                      ⟨C, G_p⟩, so that it needs the three moments only

The first hangs on which single texts won, often by a hair; the second looks at all texts of the pool, and favours properties
whose texts lie far apart. Each is scaled to add up to one; a role is the property with the largest mean of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.grammar import BOTH
from clip_anatomy.naming.textspan import check_pool
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.moments import Moments

__all__ = ["MIXED", "UNNAMED", "Role", "roles"]

UNNAMED = "unnamed"  # its texts explain too little of it
MIXED = "mixed"  # no property leads clearly
LEAD = 0.1  # of the winner's share: a smaller lead is none
LEAST = 0.15  # of the evidence: a smaller share is no name, however many properties there are
DOUBTED = 2.5  # times that, where the scores disagree


@dataclass(frozen=True)
class Role:
    """What a head is about.

    Attributes:
        name: a property, "mixed" or "unnamed".
        confidence: 0 … 1; the winner's share if both scores put it first, half of it if they do not, 0 without a winner.
        shares: (property, mean share of both scores), largest first, those above zero.
        by_picks: the property that the picks name.
        by_text_variance: the property with the largest text variance.
        source: "texts", or name of the language model that gave the name.
        why: a reason in words, where a language model gave one.
        raw: its whole answer.
    """

    name: str
    confidence: float
    shares: tuple[tuple[str, float], ...] = ()
    by_picks: str = ""
    by_text_variance: str = ""
    source: str = "texts"
    why: str = ""
    raw: str = ""

    @property
    def leading_share(self) -> float:
        """Share of the evidence of the property that leads, halved where the two scores do not both put it first."""
        if not self.shares:
            return 0.0
        agree = all(first in ("", self.shares[0][0]) for first in (self.by_picks, self.by_text_variance))
        return self.shares[0][1] * (1.0 if agree else 0.5)

    @property
    def named(self) -> bool:
        """Whether this is the name of one property."""
        return self.name not in (UNNAMED, MIXED, "")


def roles(
    span: TextSpanResult,
    moments: Moments,
    pool_embeddings: "Tensor | NDArray[Any]",
    properties: Sequence[str],
    *,
    lead: float = LEAD,
) -> dict[tuple[int, int], Role]:
    """Give every head of a span a role, from its texts' properties.

    Args:
        span: what `textspan` found; its first `span.top_k` picks are looked at.
        moments: the moments behind it.
        pool_embeddings: the same pool [text, embed].
        properties: what each text is about, "" where nobody knows, "a + b" where it is about both (see `tag`).
        lead: a winner that is not this far ahead of the second, as a share of its own (2.5 times as far where the scores
            disagree), leaves the head "mixed".

    Returns:
        (layer, head) → role, for the heads that the span covers.

    Raises:
        BadInput: a property per text was not given, or no text has one.

    Example:
        >>> from clip_anatomy.naming.textspan import textspan
        >>> moments = Moments.of(torch.tensor([[3.0, 0.1], [-3.0, 0.1], [0.0, -0.2]])[:, None, None])
        >>> pool = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.0, 1.0], [0.1, -1.0]])
        >>> span = textspan(moments, pool, texts_per_head=2)
        >>> role = roles(span, moments, pool, ["colour", "colour", "size", "size"])[0, 0]
        >>> role.name, role.by_picks, role.by_text_variance
        ('colour', 'colour', 'colour')
    """
    pool = check_pool(pool_embeddings, moments)
    if len(properties) != len(pool):
        raise BadInput(f"{len(properties)} properties for {len(pool)} texts: give one for each.")
    names = tuple(dict.fromkeys(name for text in properties for name in text.split(BOTH) if name))
    if not names:
        raise BadInput(
            "no text of this pool says what property it is about, so roles cannot be told. Write the property after a tab in each "
            "line of the pool, or use general_pool()."
        )
    picks, variance = _by_picks(span, properties, names), _by_text_variance(span, moments, pool, properties, names)
    head_roles: dict[tuple[int, int], Role] = {}
    for layer, head in span.heads():
        at = span.layers.index(layer), head
        head_roles[layer, head] = _role(picks[at], variance[at], names, bool(span.unnamed[at]), lead)
    return head_roles


def _by_picks(
    span: TextSpanResult, properties: Sequence[str], names: tuple[str, ...]
) -> Float64[Tensor, "layer head property"]:
    """Tell what each property's texts add to the explained variance, among a head's first picks."""
    votes = torch.zeros(len(properties) + 1, len(names), dtype=torch.float64)  # the last row: no pick
    for text, given in enumerate(properties):
        about = [names.index(name) for name in given.split(BOTH) if name]
        for place in about:
            votes[text, place] += 1 / len(about)
    first = min(span.top_k, span.texts_per_head)
    gain = span.cumulative[:, :, :first].diff(dim=2, prepend=torch.zeros_like(span.cumulative[:, :, :1])).clamp(min=0)
    return torch.einsum("lhp,lhpn->lhn", gain, votes[span.indices[:, :, :first]])


def _by_text_variance(
    span: TextSpanResult,
    moments: Moments,
    pool: Float64[Tensor, "text embed"],
    properties: Sequence[str],
    names: tuple[str, ...],
) -> Float64[Tensor, "layer head property"]:
    """Tell how far each head tells the texts of a property apart."""
    covariance = moments.covariance
    shares = torch.zeros(*covariance.shape[:2], len(names), dtype=torch.float64)
    for place, name in enumerate(names):
        texts = pool[[at for at, given in enumerate(properties) if given == name]]
        if len(texts) < 2:
            continue
        apart = texts - texts.mean(0)
        for layer, head in torch.nonzero(span.covered).tolist():
            inside = apart if moments.basis is None else apart @ moments.basis.rows[layer, head].T
            shares[layer, head, place] = ((inside @ covariance[layer, head]) * inside).sum() / len(texts)
    return shares.clamp(min=0)


def _role(
    picks: Float64[Tensor, " property"],
    variance: Float64[Tensor, " property"],
    names: tuple[str, ...],
    unnamed: bool,
    lead: float,
) -> Role:
    both = torch.stack([picks, variance])
    whole = both.sum(1, keepdim=True)
    scaled = both / whole.clamp(min=1e-300)
    share = scaled.sum(0) / max(int((whole > 0).sum()), 1)
    order = share.argsort(descending=True, stable=True).tolist()
    shares = [(names[at], float(share[at])) for at in order if float(share[at]) > 0]
    firsts = [names[int(one.argmax())] if float(one.sum()) > 0 else "" for one in both]
    if unnamed or not shares:
        return Role(UNNAMED, 0.0, tuple(shares), *firsts)
    best = shares[0][1]
    second = shares[1][1] if len(shares) > 1 else 0.0
    agree = all(first in ("", shares[0][0]) for first in firsts)
    needed = lead * best * (1 if agree else DOUBTED)
    if len(names) > 1 and (best - second < needed or best < max(LEAST, 1.2 / len(names))):
        return Role(MIXED, 0.0, tuple(shares), *firsts)
    return Role(shares[0][0], best if agree else best / 2, tuple(shares), *firsts)
