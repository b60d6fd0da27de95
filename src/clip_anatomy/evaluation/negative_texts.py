"""Texts that are not in a picture: what a map of a text is compared with."""

from collections.abc import Sequence

import torch

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from clip_anatomy.naming.bundled_pools import general_pool, world_pool

__all__ = ["negative_texts"]

SHORTEST = 3  # letters of a word that counts: cats and dogs do
# Words that say nothing of a picture.
EMPTY = """
    the and with for from are has its his her not but that this these those into onto over under near some very one two photo
    photograph picture image all there their other which what when while
""".split()  # noqa: SIM905


def negative_texts(clip: Clip, texts: Sequence[str], count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Descriptions from a pool that share no word of substance with any of the texts (endings of the plural aside).

    Args:
        clip: the bundled model gets descriptions of its own world, which it knows; others the general pool.
        texts: what was asked.
        count: how many.
        seed: of the draw.

    Raises:
        BadSpec: the pool has not so many.
    """
    pool = world_pool() if isinstance(clip.tokenizer, WordTokenizer) else general_pool(40)
    asked = {word for text in texts for word in _words(text)}
    free = [text for text in pool.texts if not asked & _words(text)]
    if len(free) < count:
        raise BadSpec(f"only {len(free)} of the pool's texts share no word with yours. Type: contrast=['a text', ...]")
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(free[i] for i in order[:count])


def _words(text: str) -> set[str]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {word.removesuffix("s") for word in words if len(word) >= SHORTEST and word not in EMPTY}
