"""How far down a tower is split, in a few words: what `check` prints and docs/models.md lists."""

from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer


def split_kind(tower: Tower) -> str:
    """Say what of a tower is split, and what is one part.

    Example:
        >>> import clip_anatomy as ca
        >>> split_kind(ca.load("demo").vision)
        'every block, 8 × 6 heads'
    """
    heads = f"{tower.layers} × {tower.heads} heads"
    if tower.architecture == "absent":
        return "none"
    if tower.architecture == "whole":
        why = getattr(tower, "why", "")
        return f"one part, not split: {why}" if why else "one part, not split"
    if tower.architecture == "places":
        return f"the mean of {tower.grid[0]} × {tower.grid[1]} places; what makes them is one part"
    if not isinstance(tower, Transformer):
        return f"the attention pool, {heads}; what makes its places is one part"
    phrases = [f"every block, {heads}"]
    if tower.pooling is not None:
        mlp = ", whose MLP is a part" if tower.pooling.up is not None else ""
        phrases.append(f"through an attention pool{mlp}")
    elif tower.pool == "mean":
        phrases.append(f"through the mean of the {'patches' if tower.kind == 'image' else 'words'}")
    stem = getattr(tower.embedding, "stem", None)
    if stem is not None:
        phrases.append("what makes the patches is one part, the input embedding")
    return "; ".join(phrases)
