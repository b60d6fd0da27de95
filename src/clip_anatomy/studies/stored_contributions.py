"""Contributions that a store supplies to replacements: of heads, MLPs, tokens and the input embedding, without reading an image."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.store.store import Store
from clip_anatomy.studies.token_parts import TokenParts

__all__ = ["ExtraTokens", "input_embedding", "stored_contribution"]

ExtraTokens = Mapping[tuple[int, ...], TokenParts]


def stored_contribution(
    store: Store, part: Replacement, rows: np.ndarray, tokens: ExtraTokens
) -> Float[Tensor, "image embed"]:
    """Read what a part wrote for some images, in the joint space, divided by ‖embedding‖.

    Args:
        store: the store.
        part: its replacement names it. The input embedding comes with the biases, which no store keeps apart.
        rows: which images.
        tokens: contributions of tokens, which a store does not hold, by tokens.
    """
    if part.kind == "head":
        frame = store.basis.rows[store.layer_at(part.layer), part.head]
        return store.heads(part.layer, part.head, rows).float() @ frame.float()
    if part.kind == "mlp":
        return store.mlps(part.layer, rows).float()
    if part.kind == "class-to-class":
        return tokens[(0,)].layer(part.layer, rows)
    if part.kind == "tokens":
        return tokens[part.tokens].all(rows)
    heads = sum(
        stored_contribution(store, Replacement("head", layer, head, "zero"), rows, tokens)
        for layer in store.manifest.layers
        for head in range(store.manifest.heads)
    )
    assert isinstance(heads, Tensor)
    return input_embedding(store, rows, heads)


def input_embedding(
    store: Store, rows: np.ndarray, heads: Float[Tensor, "image embed"]
) -> Float[Tensor, "image embed"]:
    """Give the input embedding with the biases: the unit embedding without what all heads (given here) and all MLPs wrote."""
    rest = store.embeddings(rows, unit=True) - heads
    for layer in store.manifest.layers:
        rest = rest - store.mlps(layer, rows).float()
    return rest
