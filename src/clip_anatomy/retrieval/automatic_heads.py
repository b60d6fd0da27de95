"""Heads that a search chooses automatically: those in which pictures agree more than chance, or that vary most along a text."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store

__all__ = ["HALF", "MAX_HEADS", "ChosenHead", "agreement", "automatic_heads", "heads_varying_along"]

MAX_HEADS = 8  # chosen by words or automatically
VARIANCE_SHARE = 0.75  # heads are added until they hold this share of the variance along a text
HALF = 0.5  # heads that are less than half as good as the best one are left out
LEAST_SIGMA = 3.0  # standard deviations above chance; 1 in 740 if it were normal


@dataclass(frozen=True)
class ChosenHead:
    """One head that a search compares.

    Attributes:
        layer: its layer.
        head: its number.
        why: why it was chosen, in words.
        meaning: what the atlas says it is about: "colour: something red"; "" where no atlas was read.
        evidence: share of its evidence that is about the property it was chosen by; None where it was chosen otherwise.
    """

    layer: int
    head: int
    why: str = ""
    meaning: str = ""
    evidence: float | None = None

    @property
    def name(self) -> str:
        """`layer.head`, as it is typed."""
        return f"{self.layer}.{self.head}"

    @property
    def word(self) -> str:
        """What it is about in a word or two, else why it was chosen; "" where that takes more words."""
        first = (self.meaning or self.why.split(",", maxsplit=1)[0]).partition(":")[0].strip()
        return first if len(first) < 20 else ""


def heads_varying_along(moments: Moments, text: Float[Tensor, "text embed"], why: str) -> tuple[ChosenHead, ...]:
    """Return the heads whose contributions vary most along some texts: tᵀ Q_hᵀ C_h Q_h t, as a share of all heads'."""
    assert moments.basis is not None
    inside = torch.einsum("te,lhde->tlhd", torch.nn.functional.normalize(text.double(), dim=-1), moments.basis.rows)
    variance = torch.einsum("tlhd,lhde,tlhe->lh", inside, moments.covariance, inside)
    share = variance / variance.sum().clamp_min(1e-300)
    heads: list[ChosenHead] = []
    covered = 0.0
    for at in share.flatten().argsort(descending=True, stable=True).tolist()[:MAX_HEADS]:
        layer, head = divmod(at, share.shape[1])
        if covered < VARIANCE_SHARE:
            heads.append(
                ChosenHead(moments.layers[layer], head, f"{why}, {float(share[layer, head]):.0%} of all heads")
            )
        covered += float(share[layer, head])
    return tuple(heads)


def agreement(
    moments: Moments, like: Float[Tensor, "like layer head d"], unlike: Float[Tensor, "unlike layer head d"]
) -> Float64[Tensor, "layer head"]:
    """Return how much more some pictures agree in each head than pictures drawn by chance, in standard deviations.

    With x = u − μ and P = n(n − 1)/2 pairs: the mean of ⟨x_i, x_j⟩ over pairs of independent images has expectation 0 and variance
    tr(C²)/P, exactly (its terms are uncorrelated). With pictures to be unlike, the mean over n·m pairs of both kinds is taken
    off, which adds tr(C²)/(n m). For one picture alone: (|x|² − tr C) / √(2 tr(C²)), how unusual it is (the scale is that of
    a normal distribution).
    """
    covariance = moments.covariance
    square = covariance.square().sum((-1, -2)).clamp_min(1e-300)  # tr(C²), C symmetric
    x, y = like.double() - moments.mean, unlike.double() - moments.mean
    n, m = len(x), len(y)
    if n < 1:
        raise BadInput("no picture was given to choose heads by. Type heads='role=ROLE', or give a picture")
    if n == 1 and m == 0:
        return (x[0].square().sum(-1) - covariance.diagonal(dim1=-2, dim2=-1).sum(-1)) / (2 * square).sqrt()
    total = x.sum(0)
    together = torch.zeros_like(square)
    variance = torch.zeros_like(square)
    if n > 1:
        pairs = n * (n - 1) / 2
        together = (total.square().sum(-1) - x.square().sum((0, -1))) / 2 / pairs
        variance = square / pairs
    if m:
        together = together - (total * y.sum(0)).sum(-1) / (n * m)
        variance = variance + square / (n * m)
    return together / variance.sqrt()


def automatic_heads(
    store: Store, like: Tensor, unlike: Tensor, text: Tensor | None
) -> tuple[tuple[ChosenHead, ...], tuple[str, ...]]:
    """Choose the heads in which pictures agree, or one is unusual; for a text alone, those that vary most along it.

    Args:
        store: the store.
        like: coordinates of the pictures that the results should be like [image, layer, head, d].
        unlike: of those that they should not be like.
        text: embeddings of texts, for a query without pictures.

    Returns:
        The heads, best first, and notes. All heads, and a note that says so, where none stands out.

    Raises:
        BadInput: nothing to choose by, or a store of one image.
    """
    if len(store) < 2:
        raise BadInput(f"{store.path} has too few images to know what is unusual. Type heads='all', or LAYER.HEAD")
    moments = store.moments()
    if not len(like):
        if text is None:
            raise BadInput("there is nothing to choose heads by. Type heads='role=ROLE', or give a picture")
        return heads_varying_along(moments, text, "varies along the text"), ()
    several = len(like) > 1 or len(unlike) > 0
    why = "they agree" if several else "it is unusual here"
    score = agreement(moments, like, unlike)
    heads = _best(moments, score, lambda sigma: f"{why}, {sigma:+.1f} σ over chance".replace("-", "−"))
    if heads:
        return heads, ()
    every = tuple(ChosenHead(layer, head) for layer in store.manifest.layers for head in range(store.manifest.heads))
    reason = (
        "these pictures agree in no head more than chance does" if several else "this picture is unusual in no head"
    )
    return every, (
        f"{reason}; all heads are compared. Type heads='colour', or another property, to say what to compare",
    )


def _best(moments: Moments, score: Tensor, why: Callable[[float], str]) -> tuple[ChosenHead, ...]:
    """Return the heads with at least half of the best score and more than LEAST_SIGMA, best first."""
    heads: list[ChosenHead] = []
    for at in score.flatten().argsort(descending=True, stable=True).tolist()[:MAX_HEADS]:
        layer, head = divmod(at, score.shape[1])
        value = float(score[layer, head])
        if value > LEAST_SIGMA and value >= HALF * float(score.max()):
            heads.append(ChosenHead(moments.layers[layer], head, why(value)))
    return tuple(heads)
