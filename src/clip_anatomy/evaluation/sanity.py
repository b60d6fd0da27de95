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

Every figure has a chance level (for random weights: what the maps of two draws have in common; for the contrast a half) and a
95 % interval over maps or pictures, at least as wide as that scatter. The answer is yes where all of the interval is good, and
no where the model looks untrained (`towers.untrained`): what random weights draw changes with the text and with other random
weights too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture_batches import PictureBatch, picture_batches
from clip_anatomy.errors import BadSpec
from clip_anatomy.evaluation.sanity_result import (
    LIMITS,
    Measured,
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
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from clip_anatomy.maps.attention_sinks import sinks_of
from clip_anatomy.maps.contrast import NEUTRAL
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.registry import dense_method, method_of
from clip_anatomy.naming.bundled_pools import general_pool, world_pool
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.towers.randomize_weights import count_blocks, randomize_weights
from clip_anatomy.towers.untrained import looks_untrained

__all__ = ["LIMITS", "Sanity", "SanityCheck", "Sink", "negative_texts", "randomised", "rank_correlation", "sanity"]

BATCH = 16
SHORTEST = 3  # letters of a word that counts: cats and dogs do
# Words that say nothing of a picture.
EMPTY = """
    the and with for from are has its his her not but that this these those into onto over under near some very one two photo
    photograph picture image all there their other which what when while
""".split()  # noqa: SIM905


def rank_correlation(a: Float[Tensor, "*rows patch"], b: Float[Tensor, "*rows patch"]) -> Float[Tensor, "*rows"]:
    """Compute Spearman's ρ along the last axis, equal values on their mean rank; NaN where either is constant.

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


@public
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
        >>> result = sanity(ca.load("demo"), examples()[:2], ["a bird", "the sky"], "attention")
        >>> result.checks[0].verdict
        'changes with the text: no, it never looks at the text'
    """
    _refuse_nothing(draws, contrast)
    # Pixels only: 0.6 MB a picture.
    batches = list(picture_batches(clip, images, size, BATCH, own=options.get("window") is not None))
    templates, against = options.pop("templates", None), options.pop("against", NEUTRAL)
    embedded = Texts.of(clip, texts, templates)
    map_method = dense_method(clip) if isinstance(method, DenseAttention) else method_of(clip, method)
    if map_method.contrasts:  # embedded once, and the same whatever the texts
        options["against"] = embedded.contrast(clip, against, map_method.options.ALONE)
    known = embedded.embeddings
    other_names = _contrast(clip, texts, contrast, draws, seed)
    if other_names is None:
        other = _random_directions(known, draws, seed)
        other_names = tuple(f"random direction {i}" for i in range(len(other)))
    else:
        other = clip.encode_text(list(other_names), templates=templates)
    total = count_blocks(clip.vision)
    depths: list[int | None] = [*dict.fromkeys([1, max(1, total // 2), total]), None]
    pictures = sum(len(batch.places) for batch in batches)
    tell = _Steps(progress or silent, 4 + len(depths), pictures)
    maps = _Maps(batches, method, options)
    tell("the maps themselves")
    drawn = [heatmap(clip, batch.pixels, embedded, method, **options) for batch in batches]
    own = [one.values.flatten(2) for one in drawn]
    patches = min(one.shape[-1] for one in own)
    noise = (patches - 1) ** -0.5 if patches > 1 else 1.0
    untrained = untrained_towers(clip)
    trained = not untrained
    tell("negative texts")
    rounds = [_correlations(own, maps(clip, some)) for some in _rounds(other, len(known), draws)]
    checks = [text_check(Measured.of(torch.stack(rounds, 1), noise), per_text=map_method.per_text, trained=trained)]
    for depth in depths:
        tell("random weights")
        other_maps = maps(randomised(clip, depth, seed=seed), known)
        measured = Measured.of(_correlations(own, other_maps)[:, None], noise)
        chance = None
        if depth == total:  # what two draws have in common, whatever was learned
            tell("other random weights")
            second = _correlations(other_maps, maps(randomised(clip, depth, seed=seed + 1), known))
            chance = Measured.of(second[:, None])
        checks.append(weights_check(_blocks_in_words(depth, total), measured, chance, trained=trained))
    shares = _negative_shares(clip, batches, known, maps(clip, torch.cat([known, other])))
    checks.append(contrast_check(Measured.of(shares), trained=trained))
    tell("sinks")
    sinks, answer = _sinks_of_all(clip, batches, pictures)
    return Sanity(
        drawn[0].method, clip.name, drawn[0].texts, other_names, pictures, patches, (*checks, answer), sinks, untrained
    )


def _refuse_nothing(draws: int, contrast: Sequence[str] | None) -> None:
    if draws < 1:
        raise BadSpec(f"draws={draws}: 1 or more were expected. Type: draws=3")
    if contrast is not None and not len(contrast):
        raise BadSpec('contrast=[] leaves nothing to compare with. Type: contrast=["a text"], or leave it out')


@dataclass(frozen=True)
class _Maps:
    """Maps of the same pictures by one method, of any model and any texts."""

    batches: Sequence[PictureBatch]
    method: str | DenseAttention
    options: dict[str, Any]

    def __call__(self, model: Clip, texts: Tensor) -> list[Float[Tensor, "image text patch"]]:
        """Return the maps, a tensor for each batch."""
        return [
            heatmap(model, batch.pixels, texts, self.method, **self.options).values.flatten(2) for batch in self.batches
        ]


class _Steps:
    """Tell the progress of steps that take equally long, in pictures."""

    def __init__(self, progress: Progress, steps: int, pictures: int) -> None:
        self.progress, self.steps, self.pictures, self.done = progress, steps, pictures, 0

    def __call__(self, what: str) -> None:
        """Begin a step."""
        self.progress(f"sanity: {what}", self.done * self.pictures // self.steps, self.pictures)
        self.done += 1


def _rounds(other: Tensor, texts: int, draws: int) -> list[Tensor]:
    """Deal out negative texts, as many to a draw as there are texts."""
    return [other[[(draw * texts + i) % len(other) for i in range(texts)]] for draw in range(draws)]


def _blocks_in_words(depth: int | None, total: int) -> str:
    return "the whole image tower" if depth is None else f"the last {depth} of {total} block{'s' * (total > 1)}"


def _sinks_of_all(clip: Clip, batches: Sequence[PictureBatch], pictures: int) -> tuple[tuple[Sink, ...], SanityCheck]:
    parts = [sinks_of(clip.vision, batch.pixels) for batch in batches]
    every = [sink for batch, part in zip(batches, parts, strict=True) for sink in sinks_found(batch.places, part)]
    sinks = tuple(sorted(every, key=lambda sink: sink.image))
    share = Measured.of(torch.cat([part.share for part in parts])[:, None])
    common = sum(int(part.mask.sum()) for part in parts) / sum(part.mask.numel() for part in parts)
    return sinks, sinks_check(sinks, pictures, share, common)


def _negative_shares(
    clip: Clip, batches: Sequence[PictureBatch], known: Tensor, maps: Sequence[Tensor]
) -> Float[Tensor, "image negative"]:
    shares: list[Tensor] = []
    for batch, together in zip(batches, maps, strict=True):
        cosine = F.normalize(clip.encode_image(batch.pixels), dim=-1) @ F.normalize(known.float(), dim=-1).T
        shares.append(_share(together, cosine))
    return torch.cat(shares)


def negative_texts(clip: Clip, texts: Sequence[str], count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Draw descriptions from a pool that share no word of substance with any of the texts (endings of the plural aside).

    Args:
        clip: the bundled model gets descriptions of its own world, which it knows; others the general pool.
        texts: that they are compared with.
        count: how many.
        seed: of the draw.

    Raises:
        BadSpec: the pool has not so many.
    """
    pool = world_pool() if isinstance(clip.tokenizer, WordTokenizer) else general_pool(40)
    taken = {word for text in texts for word in _words(text)}
    free = [text for text in pool.texts if not taken & _words(text)]
    if len(free) < count:
        raise BadSpec(f"only {len(free)} of the pool's texts share no word with yours. Type: contrast=['a text', ...]")
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(free[i] for i in order[:count])


def _words(text: str) -> set[str]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {word.removesuffix("s") for word in words if len(word) >= SHORTEST and word not in EMPTY}


def randomised(clip: Clip, blocks: int | None = None, *, seed: int = 0) -> Clip:
    """Copy an opened model so that the last blocks of its image tower hold random weights.

    Args:
        clip: an opened model; it stays as it is, bit by bit.
        blocks: how many, from the output backwards (Adebayo's cascade); None for the whole image tower: also the patch
            embedding or stem, the positions, the outer LayerNorms and the projection.
        seed: of the draw. Blocks drawn with one seed are the same whatever `blocks` is.

    Returns:
        A Clip that shares the text tower and the blocks that were not drawn; its host module is left out, since it holds the
        learned weights.

    Raises:
        BadSpec: more blocks than there are, or fewer than none.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> other = randomised(clip, 1)
        >>> torch.equal(other.image_tower.blocks[0].up.weight, clip.image_tower.blocks[0].up.weight)
        True
        >>> torch.equal(other.image_tower.blocks[-1].up.weight, clip.image_tower.blocks[-1].up.weight)
        False
    """
    there = count_blocks(clip.vision)
    if blocks is not None and not 0 <= blocks <= there:
        raise BadSpec(
            f"blocks={blocks}: the image tower has {there}. Type: blocks={there}, or blocks=None for all of it"
        )
    drawn = randomize_weights(clip.vision, blocks, seed)
    return replace(clip, name=f"{clip.name}, random weights", vision=drawn, host=None, proof=None)


def _contrast(
    clip: Clip, texts: Sequence[str] | Tensor, contrast: Sequence[str] | None, draws: int, seed: int
) -> tuple[str, ...] | None:
    """Return the texts to compare with; None where embeddings were asked for, which are compared with random directions."""
    if contrast is not None:
        return tuple(contrast)
    if isinstance(texts, Tensor):
        return None
    return negative_texts(clip, [str(text) for text in texts], max(draws * len(texts), 4), seed=seed)


def _random_directions(known: Tensor, draws: int, seed: int) -> Tensor:
    shape = (max(draws * len(known), 4), known.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(known) * known.norm(dim=-1).mean()


def _share(
    maps: Float[Tensor, "image text patch"], cosine: Float[Tensor, "image own"]
) -> Float[Tensor, "image negative"]:
    """Return the share of the mass on each negative text beside the mass on each picture's nearest text."""
    texts = cosine.shape[1]
    mass = (maps - maps.mean((1, 2), keepdim=True)).relu().double().sum(2)
    nearest, rest = mass.gather(1, cosine.argmax(1, keepdim=True)), mass[:, texts:]
    return (rest / (nearest + rest)).float()


def _correlations(first: list[Tensor], second: list[Tensor]) -> Float[Tensor, " map"]:
    """Return the rank correlation of each map with its partner."""
    return torch.cat([rank_correlation(a, b).flatten() for a, b in zip(first, second, strict=True)])


def untrained_towers(clip: Clip) -> tuple[str, ...]:
    """Name the towers whose weights look as they were drawn."""
    towers = {"image tower": clip.vision, "text tower": clip.text_tower}
    return tuple(name for name, tower in towers.items() if looks_untrained(tower))
