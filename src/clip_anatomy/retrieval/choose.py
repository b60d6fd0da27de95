"""Which heads a search looks at: named one by one, by role, by words, or found by themselves."""

import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.anatomy.atlas import Atlas, AtlasHead
from clip_anatomy.anatomy.moments import Moments
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.library.store import Store
from clip_anatomy.retrieval.ranking import Used

__all__ = ["HeadSpec", "agreeing", "along", "checked_pairs", "choose", "holding", "property_in"]

HeadSpec = str | Sequence[tuple[int, int]]
"""(layer, head) pairs, "9.3,10.1", "all", "auto", "property=colour", "role=colour", "words=texture of fabric", or a bare word: a property, else words."""

MOST = 8  # heads chosen by words or by themselves, at most
MOST_OF_IT = 0.75  # heads are added until they hold this share of the variance along a text
PART = 0.15  # least share of a head's explained variance that texts of a property explain; chosen on the demo world's validation split
HALF = 0.5  # heads that are less than half as good as the best one are left out
SURE = 3.0  # standard deviations of what chance does; 1 in 740 if it were normal
EMPTY_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "its",
        "it",
        "this",
        "that",
        "is",
        "are",
        "be",
        "only",
        "just",
        "same",
        "like",
        "with",
        "and",
        "or",
        "for",
        "by",
        "but",
        "from",
        "as",
        "any",
        "some",
    ]
)


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
    about = store.about
    if not isinstance(spec, str):
        return _checked(store, [(int(layer), int(head)) for layer, head in spec]), ()
    spec = spec.strip()
    kind, given, value = spec.partition("=")
    if spec == "all":
        return tuple(Used(layer, head) for layer in about.layers for head in range(about.heads)), ()
    if spec == "auto":
        return _by_themselves(store, more, less, text)
    if not given and re.fullmatch(r"[\d.,\s]+", spec):
        try:
            pairs = [tuple(int(n) for n in part.strip().split(".")) for part in spec.split(",") if part.strip()]
            return _checked(store, [(layer, head) for layer, head in pairs]), ()
        except ValueError as error:
            if isinstance(error, BadSpec):
                raise
            raise BadSpec(f"heads {spec!r}: LAYER.HEAD was expected. Type, for example, 9.3,10.1") from None
    if given and kind not in ("property", "role", "words"):
        raise BadSpec(
            f"heads {spec!r} is not known. Type property=PROPERTY, role=ROLE, words=WORDS, LAYER.HEAD,LAYER.HEAD, auto or all"
        )
    named = atlas()
    if kind == "role" and given:
        return _with_role(store, named, value.strip())
    if (name := property_in(spec, named)) is not None:
        return _with_property(store, named, name)
    words = value if given else spec
    return _with_words(store, named, words, embed)


def property_in(spec: HeadSpec, atlas: Atlas) -> str | None:
    """The property that a choice of heads names: `property=colour`, or `colour` alone where the atlas knows it; else None."""
    if not isinstance(spec, str):
        return None
    kind, given, value = spec.strip().partition("=")
    if given:
        return value.strip() if kind == "property" else None
    return kind if kind in _roles_of(atlas) else None


def checked_pairs(store: Store, spec: HeadSpec) -> tuple[tuple[int, int], ...]:
    """Heads that are named one by one (or "all"), as (layer, head) pairs.

    Raises:
        BadSpec: another kind of choice, or heads that are not stored.
    """
    if isinstance(spec, str) and not (spec.strip() == "all" or re.fullmatch(r"[\d.,\s]+", spec)):
        raise BadSpec(f"heads {spec!r}: a fixed set was expected. Type LAYER.HEAD,LAYER.HEAD or all")
    nothing = torch.zeros(0, len(store.about.layers), store.about.heads, store.about.d)

    def none() -> Atlas:
        raise AssertionError("numbered heads need no atlas")

    used, _ = choose(store, spec, atlas=none, more=nothing, less=nothing)
    return tuple((one.layer, one.head) for one in used)


def _checked(store: Store, pairs: Sequence[tuple[int, int]]) -> tuple[Used, ...]:
    for layer, head in pairs:
        store.layer_at(layer)
        if not 0 <= head < store.about.heads:
            raise BadSpec(
                f"head {layer}.{head} is not stored: layers {_said(store.about.layers)} have heads 0 to {store.about.heads - 1}. "
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
    return [one for one in heads if one.layer in store.about.layers]


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
    found = set(re.findall(r"\w+", text.lower())) - EMPTY_WORDS
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


def along(moments: Moments, text: Float[Tensor, "text embed"], why: str) -> tuple[Used, ...]:
    """Heads whose contributions vary most along some texts: tᵀ Q_hᵀ C_h Q_h t, as a share of all heads'."""
    assert moments.basis is not None
    inside = torch.einsum("te,lhde->tlhd", torch.nn.functional.normalize(text.double(), dim=-1), moments.basis.rows)
    varies = torch.einsum("tlhd,lhde,tlhe->lh", inside, moments.covariance, inside)
    share = varies / varies.sum().clamp_min(1e-300)
    order = share.flatten().argsort(descending=True, stable=True).tolist()[:MOST]
    found: list[Used] = []
    told = 0.0
    for at in order:
        layer, head = divmod(at, share.shape[1])
        if told < MOST_OF_IT:
            found.append(Used(moments.layers[layer], head, f"{why}, {float(share[layer, head]):.0%} of all heads"))
        told += float(share[layer, head])
    return tuple(found)


def agreeing(
    moments: Moments, more: Float[Tensor, "more layer head d"], less: Float[Tensor, "less layer head d"]
) -> Float64[Tensor, "layer head"]:
    """How much more some pictures agree in each head than pictures drawn by chance, in standard deviations.

    With x = u − μ and P = n(n − 1)/2 pairs: the mean of ⟨x_i, x_j⟩ over pairs of independent images has expectation 0 and variance
    tr(C²)/P, exactly (its terms are uncorrelated). With pictures to be unlike, the mean over n·m pairs of both kinds is taken
    off, which adds tr(C²)/(n m). For one picture alone: (|x|² − tr C) / √(2 tr(C²)), how unusual it is (the scale is that of
    a normal distribution).
    """
    covariance = moments.covariance
    square = covariance.square().sum((-1, -2)).clamp_min(1e-300)  # tr(C²), C symmetric
    x, y = more.double() - moments.mean, less.double() - moments.mean
    n, m = len(x), len(y)
    if n < 1:
        raise BadInput("no picture was given to choose heads by. Type heads='role=ROLE', or give a picture")
    if n == 1 and m == 0:
        return (x[0].square().sum(-1) - covariance.diagonal(dim1=-2, dim2=-1).sum(-1)) / (2 * square).sqrt()
    total = x.sum(0)
    together = torch.zeros_like(square)
    variance = torch.zeros_like(square)
    if n > 1:
        pairs = n * (n - 1) / 2
        together = (total.square().sum(-1) - x.square().sum((0, -1))) / 2 / pairs
        variance = square / pairs
    if m:
        together = together - (total * y.sum(0)).sum(-1) / (n * m)
        variance = variance + square / (n * m)
    return together / variance.sqrt()


def _by_themselves(
    store: Store, more: Tensor, less: Tensor, text: Tensor | None
) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    if len(store) < 2:
        raise BadInput(f"{store.path} has too few images to know what is unusual. Type heads='all', or LAYER.HEAD")
    moments = store.moments()
    if not len(more):
        if text is None:
            raise BadInput("there is nothing to choose heads by. Type heads='role=ROLE', or give a picture")
        return along(moments, text, "varies along the text"), ()
    score = agreeing(moments, more, less)
    many = len(more) > 1 or len(less) > 0
    word = "they agree" if many else "it is unusual here"
    found = _best_of(moments, score, lambda value: f"{word}, {value:+.1f} σ over chance".replace("-", "−"), SURE)
    if found:
        return found, ()
    best = tuple(Used(layer, head) for layer in store.about.layers for head in range(store.about.heads))
    said = "these pictures agree in no head more than chance does" if many else "this picture is unusual in no head"
    return best, (f"{said}; all heads are compared. Type --heads role=ROLE to ask for a property",)


def _best_of(moments: Moments, score: Tensor, why: Callable[[float], str], least: float) -> tuple[Used, ...]:
    """The heads with at least half of the best score and more than `least`, best first."""
    heads = score.shape[1]
    order = score.flatten().argsort(descending=True, stable=True).tolist()[:MOST]
    best = float(score.max())
    found: list[Used] = []
    for at in order:
        layer, head = divmod(at, heads)
        value = float(score[layer, head])
        if value > least and value >= HALF * best:
            found.append(Used(moments.layers[layer], head, why(value)))
    return tuple(found)
