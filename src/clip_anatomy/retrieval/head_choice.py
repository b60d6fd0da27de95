"""Which heads a search compares: named one by one, by property, role or words, or chosen automatically."""

import re
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.naming.atlas import Atlas, AtlasHead
from clip_anatomy.retrieval.automatic_heads import (
    HALF,
    MAX_HEADS,
    ChosenHead,
    automatic_heads,
    heads_varying_along,
)
from clip_anatomy.store.store import Store

__all__ = ["HeadSpec", "choose_heads", "property_in", "word_share"]

HeadSpec = str | Sequence[tuple[int, int]]
"""(layer, head) pairs, "9.3,10.1", "all", "auto", "property=colour", "role=colour", "words=texture of fabric", or a bare word: a property, else words."""

LEAST_SHARE = (
    0.15  # of a head's explained variance that texts of a property explain; chosen on the demo world's validation split
)
NO_HEADS = "no heads were chosen. Type heads='property=colour', '9.3,10.1', 'words=striped', 'auto' or 'all'"
STOP_WORDS = (
    "a an the of in on at to its it this that is are be only just same like with and or for by but from as any some"
)
SPELLINGS = {"color": "colour", "colors": "colour", "grey": "gray"}


def choose_heads(
    store: Store,
    spec: HeadSpec,
    *,
    atlas: Callable[[], Atlas],
    like: Float[Tensor, "like layer head d"],
    unlike: Float[Tensor, "unlike layer head d"],
    text: Float[Tensor, "text embed"] | None,
    embed: Callable[[str], Float[Tensor, "1 embed"]],
) -> tuple[tuple[ChosenHead, ...], tuple[str, ...]]:
    """Choose heads.

    Args:
        store: the store.
        spec: see `HeadSpec`.
        atlas: gives an atlas where roles or words are asked for.
        like: coordinates of the pictures that the results should be like, for "auto".
        unlike: of those that they should not be like.
        text: embeddings of the query's texts, for "auto" without pictures.
        embed: text → embedding, to find heads for words that no head's texts hold.

    Returns:
        The heads with the reason for each, the best first; and notes.

    Raises:
        BadSpec: no such role or words, heads that are not stored, or nothing that reads as a choice.
    """
    if not isinstance(spec, str):
        return _numbered(store, spec), ()
    spec = spec.strip()
    if not spec.strip(" ,."):
        raise BadSpec(NO_HEADS)
    kind, given, value = spec.partition("=")
    if spec == "all":
        manifest = store.manifest
        return tuple(ChosenHead(layer, head) for layer in manifest.layers for head in range(manifest.heads)), ()
    if spec == "auto":
        return automatic_heads(store, like, unlike, text)
    if not given and re.fullmatch(r"[\d.,\s]+", spec):
        return _numbered(store, [part.strip() for part in spec.split(",") if part.strip()]), ()
    if given and kind not in ("property", "role", "words"):
        raise BadSpec(
            f"heads {spec!r} is not known. Type property=PROPERTY, role=ROLE, words=WORDS, LAYER.HEAD,LAYER.HEAD, auto or all"
        )
    if kind == "role" and given:
        return _with_role(store, atlas(), value.strip())
    if (name := property_in(spec, atlas)) is not None:
        return _with_property(store, atlas(), name)
    return _with_words(store, atlas(), value if given else spec, embed)


def property_in(spec: HeadSpec, atlas: Callable[[], Atlas]) -> str | None:
    """Return the property that a choice of heads names; None if it names none.

    `property=colour` does, and so does a bare word or two that come down to a property the atlas knows: "colour", "its colors",
    "the background only".
    """
    if not isinstance(spec, str):
        return None
    kind, given, value = spec.strip().partition("=")
    if (given and kind != "property") or kind in ("auto", "all") or kind[:1].isdigit():
        return None
    words = _words(value if given else kind)
    known = next((name for name in _roles(atlas()) if _words(name) == words), None) if len(words) == 1 else None
    return known or (value.strip() if given else None)


def _numbered(store: Store, given: Sequence[str | tuple[int, int]]) -> tuple[ChosenHead, ...]:
    """Read heads by their numbers: (9, 3), or "9.3"."""
    pairs: list[tuple[int, int]] = []
    for one in given:
        try:
            layer, head = one.split(".") if isinstance(one, str) else one
            pairs.append((int(layer), int(head)))
        except (TypeError, ValueError):
            raise BadSpec(f"heads {one!r}: LAYER.HEAD was expected. Type, for example, 9.3,10.1 or [(9, 3)]") from None
    for layer, head in pairs:
        store.layer_at(layer)
        if not 0 <= head < store.manifest.heads:
            layers = ", ".join(map(str, store.manifest.layers))
            raise BadSpec(
                f"head {layer}.{head} is not stored: layers {layers} have heads 0 to {store.manifest.heads - 1}. Type one of these"
            )
    if len(set(pairs)) < len(pairs):
        raise BadSpec(f"heads {pairs}: one is named twice. Type each once")
    if not pairs:
        raise BadSpec(NO_HEADS)
    return tuple(ChosenHead(layer, head) for layer, head in pairs)


def _roles(atlas: Atlas) -> set[str]:
    return {name for head in atlas.heads for name, _ in head.role.shares} | set(atlas.roles)


def _stored(store: Store, heads: Sequence[AtlasHead]) -> list[AtlasHead]:
    return [one for one in heads if one.layer in store.manifest.layers]


def _shares(store: Store, atlas: Atlas, name: str) -> dict[tuple[int, int], float]:
    """Tell what part of each head's evidence is of a property, most first."""
    shares = {(one.layer, one.head): dict(one.role.shares).get(name, 0.0) for one in _stored(store, atlas.heads)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _with_role(store: Store, atlas: Atlas, role: str) -> tuple[tuple[ChosenHead, ...], tuple[str, ...]]:
    if role in atlas.roles and (heads := _stored(store, atlas.with_role(role))):
        return tuple(
            ChosenHead(one.layer, one.head, f"{role}, {one.role.confidence:.0%} sure", evidence=one.role.confidence)
            for one in heads
        ), ()
    shares = _shares(store, atlas, role)
    best = max(shares.values(), default=0.0)
    if best <= 0:
        raise BadSpec(f"no head has the role {role!r}. Type one of: {', '.join(sorted(_roles(atlas)))}")
    chosen = [at for at, share in shares.items() if share >= HALF * best][:MAX_HEADS]
    note = f"no head's role is {role!r}; these are the heads that have most of it"
    return tuple(_by_evidence(at, role, shares[at]) for at in chosen), (note,)


def _with_property(store: Store, atlas: Atlas, name: str) -> tuple[tuple[ChosenHead, ...], tuple[str, ...]]:
    """Return every head that texts of a property explain to some part, whatever its role."""
    shares = {at: share for at, share in _shares(store, atlas, name).items() if share >= LEAST_SHARE}
    if not shares:
        return _with_role(store, atlas, name)
    return tuple(_by_evidence(at, name, share) for at, share in shares.items()), ()


def _by_evidence(at: tuple[int, int], name: str, share: float) -> ChosenHead:
    return ChosenHead(*at, f"{name}, {share:.0%} of its evidence", evidence=share)


def word_share(head: AtlasHead, words: str) -> float:
    """Return how well a head's texts hold some words: variance that they explain, each by the share of the words in it.

    A word that names a role counts with that role's share. Plurals are the same word; words without content do not count.
    """
    wanted = _words(words)
    if not wanted:
        return 0.0
    total = sum((text.gain * len(wanted & _words(text.text)) / len(wanted) for text in head.texts), 0.0)
    return total + sum((share for name, share in head.role.shares if wanted & _words(name)), 0.0) / len(wanted)


def _words(text: str) -> set[str]:
    tokens: list[str] = re.findall(r"\w+", text.lower())
    words = {SPELLINGS.get(word, word) for word in tokens} - {*STOP_WORDS.split()}
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words}


def _with_words(
    store: Store, atlas: Atlas, words: str, embed: Callable[[str], Tensor]
) -> tuple[tuple[ChosenHead, ...], tuple[str, ...]]:
    if not _words(words):
        raise BadSpec(f"{words!r} holds no word to choose heads by. Type words=texture, or role=ROLE")
    share = {(one.layer, one.head): word_share(one, words) for one in _stored(store, atlas.heads)}
    best = max(share.values(), default=0.0)
    if best > 0:
        chosen = [at for at in sorted(share, key=lambda at: -share[at]) if share[at] >= HALF * best][:MAX_HEADS]
        roles = {(one.layer, one.head): one.role.name for one in atlas.heads}
        return tuple(ChosenHead(*at, f"{roles[at]}, its texts hold {words!r} ({share[at]:.2f})") for at in chosen), ()
    return heads_varying_along(store.moments(), embed(words), f"varies along {words!r}"), (
        f"no text of any head holds {words!r}; these are the heads that vary most along the model's own embedding of it",
    )
