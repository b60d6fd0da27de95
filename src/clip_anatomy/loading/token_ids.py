"""Token ids from wherever they come, a tokenizer of any library or a person: one shape, and one check for all of them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from clip_anatomy.errors import BadText
from clip_anatomy.towers.layers import WordEmbedding
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.readout import readout_of
from clip_anatomy.towers.transformer import Transformer

_PAD = "Let it pad: tokenizer(texts, padding='max_length', truncation=True, max_length=...)"


def ids_of(output: Any, texts: int) -> Int[Tensor, "text token"]:
    """Take the ids out of what a tokenizer returned: a tensor, an array, lists, or a mapping that holds them as `input_ids`.

    Args:
        found: what it returned.
        texts: how many texts it was given.

    Raises:
        BadText: no ids, of another number of texts, or rows of several lengths.
    """
    held = output["input_ids"] if isinstance(output, Mapping) and "input_ids" in output else output
    try:
        ids = held if isinstance(held, Tensor) else torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError) as error:
        ragged = isinstance(held, list | tuple) and all(isinstance(row, list | tuple) for row in held)
        why = f"rows of {sorted({len(row) for row in held})} ids" if ragged else f"a {type(output).__name__}"
        raise BadText(f"the tokenizer returned {why}; integers [text, token] were expected. {_PAD}") from error
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool or len(ids) != texts:
        raise BadText(
            f"the tokenizer returned {ids.dtype} {list(ids.shape)} for {texts} texts; integers [text, token], a row for each text, "
            f"were expected. {_PAD}"
        )
    return ids.long()


def checked_ids(tower: Tower, ids: Tensor) -> Int[Tensor, "text token"]:
    """Check ids against a text tower, and cut what stands behind the last token that a causal one reads.

    Raises:
        BadText: no integers [text, token], outside the vocabulary, without the token where the tower reads, or longer than
            the context.
    """
    vocabulary, context = tower.vocabulary, tower.grid[1]
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool or not ids.shape[1]:
        raise BadText(
            f"ids are {ids.dtype} {list(ids.shape)}; integers [text, token] with at most {context} tokens were "
            "expected. Type: clip.ids(['a text'])"
        )
    if not len(ids):
        return ids[:, :context].to(tower.device)
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise BadText(
            f"ids run from {int(ids.min())} to {int(ids.max())}; the vocabulary has {vocabulary}. "
            "Type: clip.ids(['a text']) with the model's own tokenizer"
        )
    if isinstance(tower, Transformer) and tower.pool == "eos":
        without = (ids != tower.eos).all(1).nonzero().flatten().tolist()
        if without:
            raise BadText(
                f"text {without[0]} has no end-of-text token (id {tower.eos}), where the model reads it: {ids[without[0], :8].tolist()} … "
                "Type: load(..., tokenizer=) with the model's own"
            )
    ids = ids[:, : _longest(tower, ids)]
    if ids.shape[1] > context:
        raise BadText(
            f"a text has {ids.shape[1]} tokens, the model's context at most {context} tokens. Shorten it, or let the tokenizer "
            f"cut it: load(..., tokenizer=) with one of context length {context}"
        )
    return ids.to(tower.device)


def read_as_far_as(tower: Tower, ids: Tensor) -> list[list[int]]:
    """Give the ids of each text that can change its embedding: of a causal tower up to the token that is read."""
    if not isinstance(tower, Transformer) or not tower.causal:
        return ids.tolist()
    ends = _ends(tower, ids).tolist()
    return [row[: end + 1] for row, end in zip(ids.tolist(), ends, strict=True)]


def _longest(tower: Tower, ids: Tensor) -> int:
    if not isinstance(tower, Transformer) or not (tower.causal or tower.blocks[0].in_stream):
        return ids.shape[1]
    if not tower.causal:  # padding that nothing looks at
        assert isinstance(tower.embedding, WordEmbedding)
        used = (ids != tower.embedding.pad).any(0).nonzero()
        return int(used.max()) + 1 if len(used) else 1
    return int(_ends(tower, ids).max()) + 1


def _ends(tower: Transformer, ids: Tensor) -> Int[Tensor, " text"]:
    index = readout_of(tower, ids, ids.shape[1]).index
    assert index is not None
    return index
