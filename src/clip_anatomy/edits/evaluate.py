"""What the named directions are worth: zero-shot accuracy with heads replaced by their texts, or by their mean.

Protocol of Gandelsman et al. (ICLR 2024), §4.2, figures 3 and 7: heads outside the last layers are mean-ablated, the
others are replaced by their TextSpan reconstruction, MLPs and all else stay; the class is the largest dot product.
Contributions are divided by ‖embedding‖, and nothing is run again (direct effects only). Since picks are nested and
directions orthogonal, the accuracies for every number of texts come out of one pass over the images, as running sums.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.head_batches import HasHeads, contributions_of

__all__ = ["Batch", "Replaced", "ablate_layers", "batch_of", "evaluate"]

Batch = tuple[Float[Tensor, "_image layer head d"], Float[Tensor, "_image embed"], Int64[Tensor, " _image"]]
"""(heads, rest, labels): head contributions in the coordinates of the moments, the sum of everything else in the joint
space, both divided by ‖embedding‖, and each image's class. `_image`: batches may differ in size."""


@dataclass(frozen=True)
class Replaced:
    """Zero-shot accuracies in 0..1.

    Attributes:
        whole: of the model as it is.
        kept: heads outside the spans mean-ablated, covered heads as they are: what the texts have to reach.
        mean: all heads mean-ablated: what no text at all gives.
        by_texts: covered heads replaced by their reconstruction, per pool and number of texts.
        unique: how many different texts were used for it.
        pools: names of the pools.
        texts_per_head: the numbers of texts.
        images: how many images were seen.
    """

    whole: float
    kept: float
    mean: float
    by_texts: Float64[Tensor, "pool pick"]
    unique: Int64[Tensor, "pool pick"]
    pools: tuple[str, ...]
    texts_per_head: tuple[int, ...]
    images: int

    def table(self) -> str:
        """The accuracies in percent, one pool a row, as in the paper's figure 7."""
        width = max([len(name) for name in self.pools] + [len("texts per head")])
        head = f"{'texts per head':<{width}}" + "".join(f"{m:>8}" for m in self.texts_per_head)
        rows = [
            f"{name:<{width}}" + "".join(f"{100 * value:>8.2f}" for value in self.by_texts[row].tolist())
            for row, name in enumerate(self.pools)
        ]
        whole, kept, mean = (f"{100 * value:.2f}" for value in (self.whole, self.kept, self.mean))
        foot = (
            f"whole model {whole}, heads kept {kept}, all heads at their mean {mean} (percent of {self.images} images)"
        )
        return "\n".join([head, *rows, foot])


def batch_of(parts: HasHeads, labels: Int64[Tensor, " image"], basis: HeadBasis | None = None) -> Batch:
    """Turn `Parts` of a batch into what `evaluate` reads.

    Args:
        parts: the split of a batch.
        labels: class of each image.
        basis: the frames of the moments, or None for the joint space. Layers that it leaves out count as rest: they are
            never ablated.
    """
    heads, _ = contributions_of(parts, basis, parts.convention)
    kept = parts.heads if basis is None else parts.heads[:, list(basis.layers)]
    rest = (parts.embedding - kept.sum((1, 2))) / parts.embedding.norm(dim=-1, keepdim=True)
    return heads, rest.detach().cpu(), labels


def evaluate(
    batches: Iterable[Batch],
    spans: Mapping[str, TextSpanResult],
    classifier: Float[Tensor, "text embed"],
    texts_per_head: Sequence[int] = (10, 20, 30, 40, 50, 60),
) -> Replaced:
    """Measure zero-shot accuracy with heads replaced by their texts, for several pools and numbers of texts at once.

    Args:
        batches: (heads, rest, labels) per batch of images; read once, never kept.
        spans: one span per pool, over the same heads and moments; heads that a span does not cover are mean-ablated.
        classifier: one text embedding per class.
        texts_per_head: numbers of texts to measure.

    Returns:
        Accuracies on a pool × number grid, and the three figures to compare with.

    Raises:
        BadInput: spans of different heads or coordinates, no image, a label without a class.
    """
    if not spans:
        raise BadInput("no span to evaluate: give {'name of the pool': textspan(moments, pool)}")
    first, any_span = next(iter(spans.items()))
    for name, span in spans.items():
        if span.layers != any_span.layers or not torch.equal(span.covered, any_span.covered):
            raise BadInput(f"span {name!r} covers other heads than {first!r}: span the same heads for all pools.")
        if not torch.allclose(span.mean, any_span.mean, atol=1e-9):
            raise BadInput(f"span {name!r} is of other moments than {first!r}: use the same moments for all pools.")
    sizes = tuple(sorted(set(texts_per_head)))
    longest = min(span.texts_per_head for span in spans.values())
    if not sizes or sizes[0] < 1 or sizes[-1] > longest:
        raise BadInput(
            f"texts_per_head={list(sizes)}: the spans hold {longest} picks a head. Type numbers of 1..{longest}"
        )
    covered = any_span.covered
    readers = _readers(any_span, classifier)
    directions = {name: span.directions[covered] for name, span in spans.items()}  # [covered, pick, d]
    seen = right_whole = right_kept = right_mean = 0
    right = torch.zeros(len(spans), len(sizes), dtype=torch.int64)
    at_mean = torch.einsum("lhd,lhdt->t", any_span.mean, readers)
    for heads, rest, given in batches:
        labels = _checked(given, len(classifier))
        x = heads.detach().to("cpu", torch.float64)
        base = rest.detach().to("cpu", torch.float64) @ classifier.to("cpu", torch.float64).T
        deviation = (x - any_span.mean)[:, covered]  # [image, covered, d]
        seen += len(labels)
        right_whole += _right(base + torch.einsum("ilhd,lhdt->it", x, readers), labels)
        right_kept += _right(base + at_mean + torch.einsum("icd,cdt->it", deviation, readers[covered]), labels)
        right_mean += _right(base + at_mean, labels)
        for row, name in enumerate(spans):
            logits, start = base + at_mean, 0
            for column, stop in enumerate(sizes):
                some = directions[name][:, start:stop]
                along = torch.einsum("icd,cpd->icp", deviation, some)
                logits = logits + torch.einsum("icp,cpt->it", along, some @ readers[covered])
                right[row, column] += _right(logits, labels)
                start = stop
    if not seen:
        raise BadInput("no image to evaluate: give at least one batch.")
    unique = [[len(set(_used(span, m))) for m in sizes] for span in spans.values()]
    return Replaced(
        right_whole / seen,
        right_kept / seen,
        right_mean / seen,
        right.double() / seen,
        torch.tensor(unique),
        tuple(spans),
        sizes,
        seen,
    )


def ablate_layers(
    batches: Iterable[Batch],
    mean: Float64[Tensor, "layer head d"],
    classifier: Float[Tensor, "text embed"],
    basis: HeadBasis | None = None,
) -> Float64[Tensor, " layer"]:
    """Zero-shot accuracy with every head of the first layers at its mean: entry l ablates layers 0..l.

    Any parts on a layer axis will do: MLPs as [image, layer, 1, embed], with the heads in `rest`.

    Args:
        batches: as in `evaluate`.
        mean: dataset mean of the parts, `moments.mean`.
        classifier: one text embedding per class.
        basis: frames of the coordinates, or None for the joint space.
    """
    weights = classifier.detach().to("cpu", torch.float64)
    readers = _lift(basis, weights, mean.shape)
    right, seen = torch.zeros(mean.shape[0], dtype=torch.int64), 0
    for heads, rest, given in batches:
        labels = _checked(given, len(weights))
        x = heads.detach().to("cpu", torch.float64)
        logits = rest.detach().to("cpu", torch.float64) @ weights.T + torch.einsum("ilhd,lhdt->it", x, readers)
        for layer in range(len(right)):
            logits = logits - torch.einsum("ihd,hdt->it", x[:, layer] - mean[layer], readers[layer])
            right[layer] += _right(logits, labels)
        seen += len(labels)
    if not seen:
        raise BadInput("no image to evaluate: give at least one batch.")
    return right.double() / seen


def _readers(span: TextSpanResult, classifier: Tensor) -> Float64[Tensor, "layer head d text"]:
    return _lift(span.basis, classifier.detach().to("cpu", torch.float64), span.mean.shape)


def _lift(basis: HeadBasis | None, weights: Tensor, shape: Sequence[int]) -> Float64[Tensor, "layer head d text"]:
    """Classes as seen from each head's coordinates."""
    if basis is not None:
        return basis.rows @ weights.T
    layers, heads, d = shape
    if weights.shape[1] != d:
        raise BadInput(f"classifier of shape {list(weights.shape)} for contributions of {d}: give [text, {d}].")
    return weights.T.expand(layers, heads, -1, -1)


def _checked(labels: Tensor, classes: int) -> Tensor:
    labels = labels.detach().to("cpu")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise BadInput(
            f"labels {int(labels.min())}..{int(labels.max())} for {classes} classes: label images 0..{classes - 1}."
        )
    return labels


def _right(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(1) == labels).sum())


def _used(span: TextSpanResult, m: int) -> list[int]:
    chosen = span.indices[span.covered][:, :m]
    return chosen[chosen >= 0].tolist()
