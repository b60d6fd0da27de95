"""Four questions that a map must pass before anybody believes it.

text      Does it change with the text? Rank correlation of a text's map with the maps of negative texts.
weights   Does it change with what the model learned? Rank correlation with the map of the same model whose last block, half of
          its blocks, all of its blocks and whole image tower hold random weights (Adebayo et al. 2018, "Sanity checks for
          saliency maps", §3.1).
contrast  Does it know what is not there? Of the mass of a text's map and a negative text's map together, the share on the
          negative one; mass is what lies above the mean of all maps of the picture. Of each picture the text is asked that
          the model itself finds nearest, since the others may not be in it. Half is guessing.
sinks     Does it light up where the readout looks at nothing? Patches with an outlying token or attention, see `maps.sinks`.

Correlations are Spearman's over the patches of one map, means over maps. Two maps that have nothing to do with each other
scatter around 0 by 1 / √(patches − 1).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture_batches import picture_batches
from clip_anatomy.errors import BadSpec
from clip_anatomy.evaluation.negative_texts import negative_texts
from clip_anatomy.evaluation.randomised_weights import randomised
from clip_anatomy.evaluation.sanity_result import (
    LIMITS,
    Sanity,
    SanityCheck,
    Sink,
    contrast_check,
    sinks_check,
    sinks_found,
    text_check,
    weights_check,
)
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.maps.attention_sinks import sinks_of
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.registry import method_of
from clip_anatomy.progress import Progress, silent
from clip_anatomy.towers.redraw import count_blocks

__all__ = ["LIMITS", "Sanity", "SanityCheck", "Sink", "negative_texts", "rank_correlation", "sanity"]

BATCH = 16


def rank_correlation(a: Float[Tensor, "*rows patch"], b: Float[Tensor, "*rows patch"]) -> Float[Tensor, "*rows"]:
    """Spearman's ρ along the last axis, equal values on their mean rank; NaN where either is constant.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 90.0])).item()
        1.0
    """
    first, second = _ranks(a), _ranks(b)
    first, second = first - first.mean(-1, keepdim=True), second - second.mean(-1, keepdim=True)
    return ((first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))).to(a.dtype)


def _ranks(x: Tensor) -> Tensor:
    ordered, x = x.sort(-1).values.contiguous(), x.contiguous()
    return (torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)).double() / 2


def sanity(
    clip: Clip,
    images: Images | Tensor,
    texts: Sequence[str] | Tensor,
    method: str | DenseAttention = "decomposition",
    *,
    contrast: Sequence[str] | None = None,
    draws: int = 3,
    seed: int = 0,
    size: Size = None,
    progress: Progress | None = None,
    **options: Any,
) -> Sanity:
    """Ask whether a method's maps of these pictures mean something.

    The model stays as it is, bit by bit: random weights go into a copy.

    Args:
        clip: an opened model.
        images: as for `heatmap`.
        texts: as for `heatmap`; embeddings are compared with random directions unless `contrast` is given.
        method: of `heatmap`.
        contrast: texts that are in none of the pictures; by default descriptions from a pool without a word in common.
        draws: how many sets of negative texts, each as large as `texts`; methods compare a text with its set.
        seed: of all draws.
        size: as for `heatmap`.
        progress: told how far the questions are.
        **options: of `heatmap` and of the method.

    Returns:
        The answers; `LIMITS` has the limits and why they are there.

    Raises:
        BadSpec, BadText, BadImage, UnsupportedModel: as `heatmap`.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> found = sanity(ca.load("demo"), examples()[:2], ["a bird", "the sky"], "attention")
        >>> found.checks[0].verdict
        'changes with the text: no, it never looks at the text'
    """
    if draws < 1:
        raise BadSpec(f"draws={draws}: 1 or more were expected. Type: draws=3")
    if contrast is not None and not len(contrast):
        raise BadSpec('contrast=[] leaves nothing to compare with. Type: contrast=["a text"], or leave it out')
    seen = list(
        picture_batches(clip, images, size, BATCH, own=options.get("window") is not None)
    )  # pixels only: 0.6 MB a picture
    if isinstance(texts, Tensor):
        known = texts.to(clip.device)
    else:
        known = clip.encode_text(list(texts), templates=options.get("templates"))
    others = _contrast(clip, texts, contrast, draws, seed)
    if others is None:
        other = _random_directions(known, draws, seed)
        said = tuple(f"random direction {i}" for i in range(len(other)))
    else:
        other, said = clip.encode_text(list(others), templates=options.get("templates")), tuple(others)
    further = {k: v for k, v in options.items() if k != "templates"}
    pictures = sum(len(batch.places) for batch in seen)
    step = 0

    def tell(what: str) -> None:
        nonlocal step
        (progress or silent)(f"sanity: {what}", step * pictures // (3 + len(depths)), pictures)
        step += 1

    def maps(model: Clip, asked: Tensor) -> list[Tensor]:
        return [heatmap(model, batch.pixels, asked, method, **further).values.flatten(2) for batch in seen]

    total = count_blocks(clip.vision)
    depths: list[int | None] = [*dict.fromkeys([1, max(1, total // 2), total]), None]
    tell("the maps themselves")
    drawn = [heatmap(clip, batch.pixels, texts, method, **options) for batch in seen]
    own = [one.values.flatten(2) for one in drawn]
    tell("negative texts")
    correlations: list[Tensor] = []
    for draw in range(draws):
        asked = other[[(draw * len(known) + i) % len(other) for i in range(len(known))]]
        correlations += [rank_correlation(a, b) for a, b in zip(own, maps(clip, asked), strict=True)]
    per_text = isinstance(method, DenseAttention) or method_of(clip, method).per_text
    checks = [text_check(_mean(correlations), per_text=per_text)]
    for depth in depths:
        tell("random weights")
        without = maps(randomised(clip, depth, seed=seed), known)
        figure = _mean([rank_correlation(a, b) for a, b in zip(own, without, strict=True)])
        unit = "blocks" if total > 1 else "block"
        about = "the whole image tower" if depth is None else f"the last {depth} of {total} {unit}"
        checks.append(weights_check(about, figure, asked=depth == total))
    shares: list[Tensor] = []
    for batch, together in zip(seen, maps(clip, torch.cat([known, other])), strict=True):
        cosine = F.normalize(clip.encode_image(batch.pixels), dim=-1) @ F.normalize(known.float(), dim=-1).T
        shares.append(_share(together, cosine))
    checks.append(contrast_check(_mean(shares)))
    tell("sinks")
    parts = [sinks_of(clip.vision, batch.pixels) for batch in seen]
    every = [sink for batch, part in zip(seen, parts, strict=True) for sink in sinks_found(batch.places, part)]
    found = tuple(sorted(every, key=lambda sink: sink.image))
    checks.append(sinks_check(found, pictures, float(torch.cat([part.share for part in parts]).mean())))
    patches = min(part.found[0].numel() for part in parts)
    return Sanity(drawn[0].method, clip.name, drawn[0].texts, said, pictures, patches, tuple(checks), found)


def _contrast(
    clip: Clip, texts: Sequence[str] | Tensor, contrast: Sequence[str] | None, draws: int, seed: int
) -> tuple[str, ...] | None:
    """The texts to compare with; None where embeddings were asked for, which are compared with random directions."""
    if contrast is not None:
        return tuple(contrast)
    if isinstance(texts, Tensor):
        return None
    return negative_texts(clip, [str(text) for text in texts], max(draws * len(texts), 4), seed=seed)


def _random_directions(known: Tensor, draws: int, seed: int) -> Tensor:
    shape = (max(draws * len(known), 4), known.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(known) * known.norm(dim=-1).mean()


def _share(maps: Float[Tensor, "image text patch"], cosine: Float[Tensor, "image asked"]) -> Float[Tensor, " image"]:
    """Mass on a negative text beside the mass on each picture's nearest text, mean over the negative one."""
    texts = cosine.shape[1]
    mass = (maps - maps.mean((1, 2), keepdim=True)).relu().double().sum(2)
    asked, rest = mass.gather(1, cosine.argmax(1, keepdim=True)), mass[:, texts:]
    return (rest / (asked + rest)).nanmean(1).float()


def _mean(found: list[Tensor]) -> float:
    return float(torch.cat([one.flatten() for one in found]).nanmean())
