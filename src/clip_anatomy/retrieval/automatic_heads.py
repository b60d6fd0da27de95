"""Heads that a search finds by themselves: those in which pictures agree more than chance, or that vary most along a text."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.retrieval.ranking import Used
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store

__all__ = ["HALF", "MOST", "agreeing", "along", "by_themselves"]

MOST = 8  # heads chosen by words or by themselves, at most
MOST_OF_IT = 0.75  # heads are added until they hold this share of the variance along a text
HALF = 0.5  # heads that are less than half as good as the best one are left out
SURE = 3.0  # standard deviations of what chance does; 1 in 740 if it were normal


def along(moments: Moments, text: Float[Tensor, "text embed"], why: str) -> tuple[Used, ...]:
    """Heads whose contributions vary most along some texts: tᵀ Q_hᵀ C_h Q_h t, as a share of all heads'."""
    assert moments.basis is not None
    inside = torch.einsum("te,lhde->tlhd", torch.nn.functional.normalize(text.double(), dim=-1), moments.basis.rows)
    varies = torch.einsum("tlhd,lhde,tlhe->lh", inside, moments.covariance, inside)
    share = varies / varies.sum().clamp_min(1e-300)
    order = share.flatten().argsort(descending=True, stable=True).tolist()[:MOST]
    found: list[Used] = []
    told = 0.0
    for at in order:
        layer, head = divmod(at, share.shape[1])
        if told < MOST_OF_IT:
            found.append(Used(moments.layers[layer], head, f"{why}, {float(share[layer, head]):.0%} of all heads"))
        told += float(share[layer, head])
    return tuple(found)


def agreeing(
    moments: Moments, more: Float[Tensor, "more layer head d"], less: Float[Tensor, "less layer head d"]
) -> Float64[Tensor, "layer head"]:
    """How much more some pictures agree in each head than pictures drawn by chance, in standard deviations.

    With x = u − μ and P = n(n − 1)/2 pairs: the mean of ⟨x_i, x_j⟩ over pairs of independent images has expectation 0 and variance
    tr(C²)/P, exactly (its terms are uncorrelated). With pictures to be unlike, the mean over n·m pairs of both kinds is taken
    off, which adds tr(C²)/(n m). For one picture alone: (|x|² − tr C) / √(2 tr(C²)), how unusual it is (the scale is that of
    a normal distribution).
    """
    covariance = moments.covariance
    square = covariance.square().sum((-1, -2)).clamp_min(1e-300)  # tr(C²), C symmetric
    x, y = more.double() - moments.mean, less.double() - moments.mean
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


def by_themselves(
    store: Store, more: Tensor, less: Tensor, text: Tensor | None
) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    """Heads in which pictures agree, or one is unusual; for a text alone, those that vary most along it. With notes.

    Args:
        store: the store.
        more: coordinates of the pictures that the results should be like [image, layer, head, d].
        less: of those that they should not be like.
        text: embeddings of texts, for a question without pictures.

    Raises:
        BadInput: nothing to choose by, or a store of one image.
    """
    if len(store) < 2:
        raise BadInput(f"{store.path} has too few images to know what is unusual. Type heads='all', or LAYER.HEAD")
    moments = store.moments()
    if not len(more):
        if text is None:
            raise BadInput("there is nothing to choose heads by. Type heads='role=ROLE', or give a picture")
        return along(moments, text, "varies along the text"), ()
    score = agreeing(moments, more, less)
    many = len(more) > 1 or len(less) > 0
    word = "they agree" if many else "it is unusual here"
    found = _best_of(moments, score, lambda value: f"{word}, {value:+.1f} σ over chance".replace("-", "−"), SURE)
    if found:
        return found, ()
    best = tuple(Used(layer, head) for layer in store.manifest.layers for head in range(store.manifest.heads))
    said = "these pictures agree in no head more than chance does" if many else "this picture is unusual in no head"
    return best, (
        f"{said}; all heads are compared. Type --only colour, or another property, to say what should be alike",
    )


def _best_of(moments: Moments, score: Tensor, why: Callable[[float], str], least: float) -> tuple[Used, ...]:
    """The heads with at least half of the best score and more than `least`, best first."""
    heads = score.shape[1]
    order = score.flatten().argsort(descending=True, stable=True).tolist()[:MOST]
    best = float(score.max())
    found: list[Used] = []
    for at in order:
        layer, head = divmod(at, heads)
        value = float(score[layer, head])
        if value > least and value >= HALF * best:
            found.append(Used(moments.layers[layer], head, why(value)))
    return tuple(found)
