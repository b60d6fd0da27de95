"""The proof of what goes into a model: a random picture and three texts through the host's own code and through ours.

Weights that are right on wrong pixels or wrong token ids give wrong answers without a sign. So preprocessing and tokenizer are
compared as the forwards are.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadText, ParityError
from clip_anatomy.images.preprocess import Preprocess
from clip_anatomy.loading.host import LoadedModel
from clip_anatomy.loading.parity import Comparison, Proof
from clip_anatomy.loading.token_ids import checked_ids, ids_of, read_as_far_as
from clip_anatomy.loading.tokenizer import Tokenizer
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer

LEVELS = 0.05
"""Mean difference of pixels that passes, of 255 levels. Filters on uint8 round a pixel in a hundred to the next level (0.01);
another filter, crop or factor moves the mean by tenths."""
TEXTS = ("a dog", "a photo of a very small dog beside a house. " * 40, "красный круг, 東京の犬 🐕")
"""A short one, one that no context holds, and one without a Latin letter."""


def random_picture(size: tuple[int, int]) -> Image.Image:
    """Draw a picture of odd sides, larger than `size` (row, col) by half and two thirds, with transparency, from its own generator."""
    rows, cols = size[0] * 3 // 2 | 1, size[1] * 5 // 3 | 1
    levels = torch.randint(0, 256, (rows, cols, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(levels.numpy(), "RGBA")


def compare_pixels(
    preprocess: Preprocess, hosts: Callable[[Image.Image], Tensor], *, against: str
) -> tuple[Comparison, str]:
    """Compare our pixels of a random picture with the host's.

    Returns:
        The mean difference in levels of 255, and in words what it is.
    """
    picture = random_picture(preprocess.size)
    try:
        theirs = hosts(picture)
    except (ValueError, RuntimeError):  # some processors take opaque pictures only
        picture = picture.convert("RGB")
        theirs = hosts(picture)
    ours = preprocess(picture)
    claim = f"pixels = {against}"
    if ours.shape != theirs.shape:
        shapes = f"ours are {list(ours.shape)}, theirs {list(theirs.shape)}"
        return Comparison(claim, "image", float("inf"), LEVELS), shapes
    levels = (ours - theirs).abs().mean((1, 2)) * 255 * torch.tensor(preprocess.std)
    return Comparison(claim, "image", float(levels.max()), LEVELS), f"{float(levels.max()):.2f} of 255 levels apart"


def compare_ids(
    tokenizer: Tokenizer, hosts: Callable[[list[str]], object], tower: Tower, *, against: str
) -> tuple[Comparison, str]:
    """Compare our ids of three texts with the host's, as far as the tower reads them.

    Returns:
        The number of texts whose ids differ, and the first of them in words.
    """
    ours, theirs = tokenizer(list(TEXTS)), ids_of(hosts(list(TEXTS)), len(TEXTS))
    pairs = list(zip(read_as_far_as(tower, ours), read_as_far_as(tower, theirs), strict=True))
    differ = [i for i, (a, b) in enumerate(pairs) if a != b]
    difference = ""
    if differ:
        a, b = pairs[differ[0]]
        difference = f"{TEXTS[differ[0]][:20]!r} is {a[:12]} here and {b[:12]} there"
    return Comparison(f"token ids = {against}", "text", float(len(differ)), 0.0), difference


def with_inputs(proof: Proof, loaded: LoadedModel, tower: Tower) -> Proof:
    """Add the comparison of pixels and of token ids to a proof, of each where the host has code of its own.

    Raises:
        ParityError: they differ; the message says how.
        BadText: texts do not end with the token at which the tower reads.
    """
    compared: list[Comparison] = []
    if loaded.inputs.pixels is not None:
        comparison, difference = compare_pixels(loaded.preprocess, loaded.inputs.pixels, against=proof.against)
        compared.append(_held(comparison, difference, "preprocess=Preprocess(size=(...), mean=..., std=...)"))
    if loaded.tokenizer is not None:
        _check_ends(loaded.tokenizer, tower)
        if loaded.inputs.ids is not None:
            comparison, difference = compare_ids(loaded.tokenizer, loaded.inputs.ids, tower, against=proof.against)
            compared.append(_held(comparison, difference, "tokenizer=..."))
    return replace(proof, inputs=tuple(compared))


def _held(comparison: Comparison, difference: str, instead: str) -> Comparison:
    if not comparison.holds:
        raise ParityError(
            f"our {comparison.claim} does not hold: {difference}. Type: load(..., {instead}), or parity=False to look at it anyway"
        )
    return comparison


def _check_ends(tokenizer: Tokenizer, tower: Tower) -> None:
    """Raise BadText where a tokenizer does not end texts with the id at which the tower reads.

    A tower that is read at the highest id reads somewhere in any text: then it must be one id, the same in different texts.
    One text at a time, since a function of the user's need not pad.
    """
    read = sorted({int(checked_ids(tower, ids_of(tokenizer([text]), 1)).max()) for text in ("a dog", "red")})
    if isinstance(tower, Transformer) and tower.pool == "argmax" and len(read) > 1:
        raise BadText(
            f"this tokenizer writes no end-of-text token that the model knows: its text tower reads the highest id of a text, "
            f"which is {read[0]} in one and {read[-1]} in another. Type: load(..., tokenizer=) with the model's own"
        )
