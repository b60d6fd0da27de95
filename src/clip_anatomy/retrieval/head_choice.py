"""Which heads a search looks at: named one by one, by property, role or words, or found by themselves."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.naming.atlas import Atlas, AtlasHead
from clip_anatomy.retrieval.automatic_heads import HALF, MOST, along, by_themselves
from clip_anatomy.retrieval.ranking import Used
from clip_anatomy.store.store import Store

__all__ = ["HeadSpec", "checked_pairs", "choose", "holding", "property_in"]

HeadSpec = str | Sequence[tuple[int, int]]
"""(layer, head) pairs, "9.3,10.1", "all", "auto", "property=colour", "role=colour", "words=texture of fabric", or a bare word: a property, else words."""

PART = 0.15  # least share of a head's explained variance that texts of a property explain; chosen on the demo world's validation split
NOTHING = "no heads were chosen. Type heads='property=colour', '9.3,10.1', 'words=striped', 'auto' or 'all'"
EMPTY = "a an the of in on at to its it this that is are be only just same like with and or for by but from as any some"
SPELT = {"color": "colour", "colors": "colour", "grey": "gray"}  # what is written two ways


def choose(
    store: Store,
    spec: HeadSpec,
    *,
    atlas: Callable[[], Atlas],
    more: Float[Tensor, "more layer head d"],
    less: Float[Tensor, "less layer head d"],
    text: Float[Tensor, "text embed"] | None = None,
    embed: Callable[[str], Float[Tensor, "1 embed"]] | None = None,
) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    """Choose heads.

    Args:
        store: the store.
        spec: see `HeadSpec`.
        atlas: gives an atlas where roles or words are asked for.
        more: coordinates of the pictures that the results should be like, for "auto".
        less: of those that they should not be like.
        text: embeddings of texts that were asked for, for "auto" without pictures.
        embed: text → embedding, to find heads for words that no head's texts hold.

    Returns:
        The heads with the reason for each, the best first; and notes.

    Raises:
        BadSpec: no such role or words, heads that are not stored, or nothing that reads as a choice.
    """
    manifest = store.manifest
    if not isinstance(spec, str):
        return _checked(store, _pairs(spec)), ()
    spec = spec.strip()
    if not spec.strip(" ,."):
        raise BadSpec(NOTHING)
    kind, given, value = spec.partition("=")
    if spec == "all":
        return tuple(Used(layer, head) for layer in manifest.layers for head in range(manifest.heads)), ()
    if spec == "auto":
        return by_themselves(store, more, less, text)
    if not given and re.fullmatch(r"[\d.,\s]+", spec):
        return _checked(store, _pairs([part.strip() for part in spec.split(",") if part.strip()])), ()
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
    """The property that a choice of heads names; None if it names none.

    `property=colour` does, and so does a bare word or two that come down to a property the atlas knows: "colour", "its colors",
    "the background only".
    """
    if not isinstance(spec, str):
        return None
    kind, given, value = spec.strip().partition("=")
    if (given and kind != "property") or kind in ("auto", "all") or kind[:1].isdigit():
        return None
    words = _words(value if given else kind)
    known = next((name for name in _roles_of(atlas()) if _words(name) == words), None) if len(words) == 1 else None
    return known or (value.strip() if given else None)


def checked_pairs(store: Store, spec: HeadSpec) -> tuple[tuple[int, int], ...]:
    """Heads that are named one by one (or "all"), as (layer, head) pairs.

    Raises:
        BadSpec: another kind of choice, or heads that are not stored.
    """
    if isinstance(spec, str) and not (spec.strip() == "all" or re.fullmatch(r"[\d.,\s]+", spec)):
        raise BadSpec(f"heads {spec!r}: a fixed set was expected. Type LAYER.HEAD,LAYER.HEAD or all")
    nothing = torch.zeros(0, len(store.manifest.layers), store.manifest.heads, store.manifest.d)

    def none() -> Atlas:
        raise AssertionError("numbered heads need no atlas")

    used, _ = choose(store, spec, atlas=none, more=nothing, less=nothing)
    return tuple((one.layer, one.head) for one in used)


def _pairs(given: Sequence[Any]) -> list[tuple[int, int]]:
    """(layer, head) of each; "9.3" is one too."""
    found: list[tuple[int, int]] = []
    for one in given:
        try:
            layer, head = one.split(".") if isinstance(one, str) else one
            found.append((int(layer), int(head)))
        except (TypeError, ValueError):
            raise BadSpec(f"heads {one!r}: LAYER.HEAD was expected. Type, for example, 9.3,10.1 or [(9, 3)]") from None
    return found


def _checked(store: Store, pairs: Sequence[tuple[int, int]]) -> tuple[Used, ...]:
    for layer, head in pairs:
        store.layer_at(layer)
        if not 0 <= head < store.manifest.heads:
            raise BadSpec(
                f"head {layer}.{head} is not stored: layers {_said(store.manifest.layers)} have heads 0 to {store.manifest.heads - 1}. "
                "Type one of these"
            )
    if len(set(pairs)) < len(pairs):
        raise BadSpec(f"heads {pairs}: one is named twice. Type each once")
    return tuple(Used(layer, head) for layer, head in pairs)


def _said(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _roles_of(atlas: Atlas) -> set[str]:
    return {name for head in atlas.heads for name, _ in head.role.shares} | set(atlas.roles)


def _kept(store: Store, heads: Sequence[AtlasHead]) -> list[AtlasHead]:
    return [one for one in heads if one.layer in store.manifest.layers]


def _with_role(store: Store, atlas: Atlas, role: str) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    if role in atlas.roles and (found := _kept(store, atlas.with_role(role))):
        return tuple(Used(one.layer, one.head, f"{role}, {one.role.confidence:.0%} sure") for one in found), ()
    shares = {(one.layer, one.head): dict(one.role.shares).get(role, 0.0) for one in _kept(store, atlas.heads)}
    best = max(shares.values(), default=0.0)
    if best <= 0:
        raise BadSpec(f"no head has the role {role!r}. Type one of: {', '.join(sorted(_roles_of(atlas)))}")
    order = sorted(shares, key=lambda at: -shares[at])
    chosen = [at for at in order if shares[at] >= HALF * best][:MOST]
    note = f"no head's role is {role!r}; these are the heads that have most of it"
    return tuple(Used(*at, f"{role}, {shares[at]:.0%} of its evidence") for at in chosen), (note,)


def _with_property(store: Store, atlas: Atlas, name: str) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    """Every head that texts of a property explain to some part, whatever its role."""
    shares = {(one.layer, one.head): dict(one.role.shares).get(name, 0.0) for one in _kept(store, atlas.heads)}
    chosen = [at for at in sorted(shares, key=lambda at: -shares[at]) if shares[at] >= PART]
    if not chosen:
        return _with_role(store, atlas, name)
    return tuple(Used(*at, f"{name}, {shares[at]:.0%} of its evidence") for at in chosen), ()


def holding(head: AtlasHead, words: str) -> float:
    """How well a head's named span holds some words: variance that its texts explain, each by the share of the words in it.

    A word that names a role counts with that role's share. Plurals are the same word; words without content do not count.
    """
    wanted = _words(words)
    if not wanted:
        return 0.0
    total = sum((text.gain * len(wanted & _words(text.text)) / len(wanted) for text in head.texts), 0.0)
    return total + sum((share for name, share in head.role.shares if wanted & _words(name)), 0.0) / len(wanted)


def _words(text: str) -> set[str]:
    said: list[str] = re.findall(r"\w+", text.lower())
    found = {SPELT.get(word, word) for word in said} - {*EMPTY.split()}
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found}


def _with_words(
    store: Store, atlas: Atlas, words: str, embed: Callable[[str], Tensor] | None
) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    if not _words(words):
        raise BadSpec(f"{words!r} holds no word to choose heads by. Type words=texture, or role=ROLE")
    held = {(one.layer, one.head): holding(one, words) for one in _kept(store, atlas.heads)}
    best = max(held.values(), default=0.0)
    if best > 0:
        order = sorted(held, key=lambda at: -held[at])
        chosen = [at for at in order if held[at] >= HALF * best][:MOST]
        roles = {(one.layer, one.head): one.role.name for one in atlas.heads}
        return tuple(Used(*at, f"{roles[at]}, its texts hold {words!r} ({held[at]:.2f})") for at in chosen), ()
    if embed is None:
        raise BadSpec(f"no text of any head holds {words!r}. Type other words, or role=ROLE")
    found = along(store.moments(), embed(words), f"varies along {words!r}")
    return found, (
        f"no text of any head holds {words!r}; these are the heads that vary most along the model's own embedding of it",
    )
