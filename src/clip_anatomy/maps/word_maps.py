"""A map per word of a sentence: the text tower is split as exactly as the image tower, and both are bilinear together.

The sentence's unit embedding is Σ_word part(word) + rest, where a word's part is what the text tower's heads read from its tokens
and the rest is what start and end marks, MLPs and biases wrote. A patch's share of the cosine is linear in the text, so

    map(sentence) = Σ_word map(part(word)) + map(rest)            exactly

A word's part is read in its sentence: "orange" before "bird" points at the bird that is orange.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.data.picture_batches import PictureBatch
from clip_anatomy.errors import BadSpec, BadText
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.loading.word_pieces import word_tokens
from clip_anatomy.maps.contrast import NOTHING
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.public_functions import public
from clip_anatomy.split.tokens import token_map


@public
@dataclass(frozen=True)
class WordMaps:
    """Maps of one sentence.

    Attributes:
        words: a map per word, named by it ("a (2)" for the second "a"); shares of the cosine with the whole sentence.
        sentence: the map of the sentence.
        rest: the sentence's map minus those of its words.
        left_out: words that did not fit into the model's context.
    """

    words: Maps
    sentence: Maps
    rest: Maps
    left_out: tuple[str, ...] = ()


@public
def word_maps(clip: Clip, images: Images | Tensor | PictureBatch, sentence: str, **options: Any) -> WordMaps:
    """Show where each word of a sentence is answered, beside the sentence itself.

    Args:
        clip: an opened model with a tokenizer.
        images: as for `heatmap`.
        sentence: one text.
        **options: of `heatmap` with method "decomposition": size, window, stride, layers, heads.

    Returns:
        Maps whose values are shares of the cosine; those of the words and the rest sum to the sentence's.

    Raises:
        BadText: a sentence without a word.
        BadSpec: an option that is not of the decomposition, or `against`: nothing is subtracted, so that words add up to the text.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = word_maps(ca.load("demo"), examples()[:1], "a bird on the water")
        >>> result.words.texts
        ('a', 'bird', 'on', 'the', 'water')
        >>> total = result.words.values.sum(1, keepdim=True) + result.rest.values
        >>> bool((total - result.sentence.values).abs().max() < 1e-5)
        True
    """
    for name in ("method", "against"):
        if name in options:
            raise BadSpec(
                f"{name}= is not for words: they are split by the decomposition. Type: word_maps without {name}="
            )
    names, parts, unit, cut = word_directions(clip, sentence)
    rest = unit - parts.sum(0, keepdim=True)
    directions = torch.cat([parts, rest, unit])
    maps = heatmap(clip, images, directions, against=NOTHING, **options)
    # `heatmap` takes texts as unit vectors: each map is given back the length of its direction.
    values = maps.values * directions.norm(dim=-1).to(maps.values).view(1, -1, 1, 1)
    count = len(names)

    def some(first: int, last: int, texts: tuple[str, ...]) -> Maps:
        return replace(maps, values=values[:, first:last], texts=texts, method="words")

    return WordMaps(
        some(0, count, names), some(count + 1, count + 2, (sentence,)), some(count, count + 1, ("(rest)",)), cut
    )


def word_directions(
    clip: Clip, sentence: str
) -> tuple[tuple[str, ...], Float[Tensor, "text embed"], Float[Tensor, "1 embed"], tuple[str, ...]]:
    """Split a sentence's unit embedding into what its words wrote into it.

    Returns:
        The words; the part of each, summed over the heads and layers of the text tower; the unit embedding of the sentence;
        words beyond the context.

    Raises:
        BadText: no word, or a model without a tokenizer.
    """
    ids, names, spans, cut = split_words(clip, sentence)
    embed = clip.text_tower.embed
    per_token = token_map(clip.text_tower, ids, torch.eye(embed, device=clip.device))[0]
    parts = torch.stack([per_token[tokens].sum(0) for tokens in spans]) if spans else per_token.new_zeros(0, embed)
    unit = F.normalize(clip.encode_text(ids), dim=-1)
    return names, parts, unit, cut


def split_words(
    clip: Clip, sentence: str
) -> tuple[Int[Tensor, "1 token"], tuple[str, ...], list[list[int]], tuple[str, ...]]:
    """Read a sentence: its token ids, its words, the tokens of each, and words beyond the context.

    Raises:
        BadText: no word, or a model without a tokenizer.
    """
    if not isinstance(sentence, str) or not sentence.strip():
        raise BadText(f"{sentence!r} holds no word. Type a sentence, e.g. 'a red circle on the grass'")
    ids = clip.ids([sentence])
    spans = word_tokens(clip.tokenizer, sentence, ids.shape[1])
    names = tuple(word for word, tokens in spans if tokens)
    return ids, _apart(names), [tokens for _, tokens in spans if tokens], tuple(w for w, tokens in spans if not tokens)


def _apart(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        name if name not in names[:at] else f"{name} ({names[:at].count(name) + 1})" for at, name in enumerate(names)
    )


def as_typed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Take the numbers of repeated words off again.

    Example:
        >>> as_typed(("a", "star", "left", "of", "a (2)", "circle"))
        ('a', 'star', 'left', 'of', 'a', 'circle')
    """
    plain = (name.rpartition(" (")[0] for name in names)
    return tuple(word if word in names[:at] else names[at] for at, word in enumerate(plain))
