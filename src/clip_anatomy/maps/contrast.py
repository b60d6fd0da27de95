"""Contrast: what is subtracted from every text before its map is drawn, so that the map shows what is special about the text.

Two texts minus their own mean are one direction and its mirror image: the second map says nothing that the first one did not.
So each text is compared with the same neutral set, the mean of descriptions of anything, and its map does not change with
the texts that stand beside it. Against each other, as the papers have it, is there on request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from clip_anatomy.naming.bundled_pools import general_pool, world_pool

__all__ = ["EACH_OTHER", "NEUTRAL", "NOTHING", "Against", "Contrast", "contrast_of", "neutral_texts"]

NEUTRAL, EACH_OTHER, NOTHING = "neutral", "each other", "nothing"
Against = str | Sequence[str] | Tensor | None


@dataclass(frozen=True)
class Contrast:
    """Hold what is subtracted from unit text embeddings.

    Attributes:
        description: what it is, in words; "" for nothing.
        direction: mean of unit embeddings; None for nothing, or for the mean of the texts themselves.
        each_other: whether it is the mean of the texts themselves.
    """

    description: str
    direction: Float[Tensor, "1 embed"] | None = field(default=None, repr=False)
    each_other: bool = False

    def subtracted_from(self, unit: Float[Tensor, "text embed"]) -> Float[Tensor, "text embed"]:
        """Return the directions whose maps are drawn."""
        if self.each_other:
            return unit - unit.mean(0)
        return unit if self.direction is None else unit - self.direction.to(unit)


def neutral_texts(clip: Clip) -> tuple[str, ...]:
    """Return descriptions of anything: a few of every property of the model's pool."""
    return world_pool(5).texts if isinstance(clip.tokenizer, WordTokenizer) else general_pool(1).texts


def contrast_of(clip: Clip, against: "Against | Contrast", templates: Sequence[str] | None = None) -> Contrast:
    """Embed what texts are compared with.

    Args:
        clip: an opened model.
        against: "neutral", the mean of descriptions of anything (nothing, for a model without a tokenizer); "each other", the
            mean of the texts; "nothing" or None; a text ("" is the empty one); several texts or embeddings, for their mean.
        templates: prompts that texts are put into.

    Raises:
        BadSpec: none of these.
        BadText: texts that cannot be embedded.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> [contrast_of(clip, what).description for what in ("neutral", "", ["a bird", "a fish"])]
        ['the mean of 40 descriptions of anything', 'the empty text', 'the mean of “a bird”, “a fish”']
    """
    if isinstance(against, Contrast):
        return against
    if against is None or (isinstance(against, str) and against == NOTHING):
        return Contrast("")
    if isinstance(against, str) and against == EACH_OTHER:
        return Contrast("the mean of the texts", each_other=True)
    if isinstance(against, Tensor):
        given = against.to(clip.device).float()
        given = given[None] if given.dim() == 1 else given
        if given.dim() != 2 or given.shape[1] != clip.text_tower.embed or not len(given):
            raise BadSpec(f"against is {list(against.shape)}; [text, {clip.text_tower.embed}] was expected. Type: against={NEUTRAL!r}")  # fmt: skip
        return Contrast(
            "the embedding given" if len(given) == 1 else f"the mean of {len(given)} embeddings", _mean(given)
        )
    if isinstance(against, str) and against == NEUTRAL:
        if clip.tokenizer is None:
            return Contrast("")
        texts = neutral_texts(clip)
        # Once a model, not once a call: at B/16 these texts cost what a few pictures do.
        name = f"neutral texts through {list(templates or ())}"
        direction = clip.remembered(name, lambda: _embedded(clip, texts, templates), clip.text_tower)
        return Contrast(f"the mean of {len(texts)} descriptions of anything", direction)
    if isinstance(against, str):
        return Contrast(f"“{against}”" if against else "the empty text", _embedded(clip, [against], templates))
    if not isinstance(against, Sequence) or not against or not all(isinstance(text, str) for text in against):
        raise BadSpec(f"against={against!r}: a text, texts, or {NEUTRAL}, {EACH_OTHER}, {NOTHING} were expected. Type: against={NEUTRAL!r}")  # fmt: skip
    listing = ", ".join(f"“{text}”" for text in against[:4]) + (
        f" and {len(against) - 4} more" if len(against) > 4 else ""
    )
    return Contrast(f"the mean of {listing}", _embedded(clip, against, templates))


def _embedded(clip: Clip, texts: Sequence[str], templates: Sequence[str] | None) -> Float[Tensor, "1 embed"]:
    return _mean(clip.encode_text(list(texts), templates=templates))


def _mean(embeddings: Float[Tensor, "text embed"]) -> Float[Tensor, "1 embed"]:
    return torch.atleast_2d(F.normalize(embeddings.float(), dim=-1).mean(0))
