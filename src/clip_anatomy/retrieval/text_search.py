"""Texts found for an image by heads of the text tower: the dual of `search`.

The text tower splits as exactly as the image tower: ⟨text, image⟩ = Σ_h ⟨part_h(text), image⟩ + the rest. With the chosen text heads H

    score(text) = Σ_{h ∈ H} ⟨u_h(text) − μ_h, Q_h image⟩        u: head coordinates of contributions divided by ‖text‖

so that only what these heads say of a text counts, its mean over the texts taken away.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.tokenizer import check_texts
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.retrieval.automatic_heads import ChosenHead, heads_varying_along
from clip_anatomy.retrieval.query_pictures import read_query
from clip_anatomy.retrieval.text_table import decimals, text_table
from clip_anatomy.split.basis import HeadBasis, basis_of, coordinates_of
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of

__all__ = ["TextHit", "TextRanking", "search_captions", "search_texts"]

SCHEMA = "clip-anatomy/search-texts/1"
BATCH = 64
MEASURES = ("dot", "cosine")
TextHeadSpec = str | Sequence[tuple[int, int]]
"""Heads of the text tower: "all", "auto" (those that vary most along the image), "words=colour" (along these words), "9.3,10.1", or (layer, head) pairs."""


@dataclass(frozen=True)
class TextHit:
    """One text that was found.

    Attributes:
        rank: 1 for the best.
        score: sum of the chosen heads' contributions to the cosine, or the cosine of what they wrote with the image.
        text: the text.
        shares: what each head adds; they add up to the score.
        ids: images of the store that have it as a caption.
    """

    rank: int
    score: float
    text: str
    shares: tuple[float, ...]
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class TextRanking(Result):
    """Texts that were found for a picture.

    Attributes:
        query: the picture, in words.
        model: the model.
        measure: "dot" or "cosine".
        heads: heads of the text tower that were compared, and why.
        hits: best first.
        texts: how many there were to choose from.
    """

    query: str
    model: str
    measure: str
    heads: tuple[ChosenHead, ...]
    hits: tuple[TextHit, ...]
    texts: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def summary(self) -> str:
        """Return the texts as a table, with the images that have them."""
        rows = [
            [
                str(hit.rank),
                decimals(hit.score),
                hit.text,
                ", ".join(hit.ids[:2]) + (f" and {len(hit.ids) - 2} more" if len(hit.ids) > 2 else ""),
            ]
            for hit in self.hits
        ]
        heads = f"{len(self.heads)} heads of the text tower" if len(self.heads) > 1 else "one head of the text tower"
        return "\n".join(
            [
                text_table(["", "score", "text", "of"], rows),
                f"texts like {self.query}, of {self.texts:,}, by {heads}",
            ]
        )


def search_texts(
    clip: Clip,
    image: Float[Tensor, " embed"],
    texts: Sequence[str],
    heads: TextHeadSpec = "all",
    k: int = 20,
    *,
    measure: str = "dot",
    query: str = "the picture",
    progress: Progress | None = None,
) -> TextRanking:
    """Find the texts that some heads of the text tower hold closest to an image.

    Args:
        clip: an opened model.
        image: an image embedding, of any length.
        texts: texts to choose from.
        heads: see `TextHeadSpec`.
        k: how many texts.
        measure: "dot": parts of the cosine between text and image; "cosine": lengths divided out.
        query: what to call the image.
        progress: called as texts are read.

    Raises:
        BadText: no texts, or some that are no strings.
        BadSpec: heads that the text tower does not have.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> result = search_texts(clip, clip.encode_image(examples()[:1])[0], ["a red circle", "a star", "grass"], k=2)
        >>> len(result.hits)
        2
    """
    if measure not in MEASURES:
        raise BadSpec(f"measure {measure!r} is not known. Type one of: {', '.join(MEASURES)}")
    if k < 1:
        raise BadInput(f"k {k}: 1 or more was expected. Type k=20")
    unique = list(dict.fromkeys(check_texts(texts)))
    basis = basis_of(clip.text_tower)
    coordinates = _coordinates(clip, basis, unique, progress or silent)
    unit = torch.nn.functional.normalize(image.detach().cpu().double(), dim=-1)
    chosen = _choose(clip, basis, coordinates, heads, unit)
    pairs = [(one.layer, one.head) for one in chosen]
    x = torch.stack([coordinates[:, layer, head] for layer, head in pairs], 1)
    x = x - x.mean(0)
    aim = torch.stack([basis.rows[layer, head] @ unit for layer, head in pairs])
    shares = (x * aim).sum(-1)
    if measure == "cosine":
        shares = shares / (x.flatten(1).norm(dim=-1, keepdim=True) * aim.norm()).clamp_min(1e-12)
    scores = shares.sum(-1)
    order = torch.sort(scores, descending=True, stable=True).indices[:k].tolist()
    hits = [TextHit(r, float(scores[at]), unique[at], tuple(shares[at].tolist())) for r, at in enumerate(order, 1)]
    return TextRanking(query, clip.name, measure, chosen, tuple(hits), len(unique))


@public
def search_captions(
    store: Store | str | Path,
    query: Any,
    heads: TextHeadSpec | None = None,
    k: int = 20,
    *,
    measure: str | None = None,
    allow_urls: bool = False,
    clip: Clip | None = None,
    progress: Progress | None = None,
) -> TextRanking:
    """Find captions of a store for pictures, by chosen heads of the text tower.

    Args:
        store: a store whose images have captions.
        query: a picture, a path, a stored id, or several (their mean).
        heads: see `TextHeadSpec`; all by default.
        k: how many captions.
        measure: as in `search_texts`; "dot" by default.
        allow_urls: fetch http(s) addresses.
        clip: the store's model, if it is open.
        progress: called as captions are read.

    Raises:
        BadInput: no captions in the store, or the query is no picture.
        StoreError: a store of another model.
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    clip = clip or model_of(opened)
    opened.manifest.refuse_other(clip.name, clip.digest, opened.path)
    captions: dict[str, dict[str, None]] = {}  # the ids of each, in order
    for row in opened.rows():
        for caption in row.captions:
            captions.setdefault(caption, {})[row.id] = None
    if not captions:
        raise BadInput(
            f"the images of {opened.path} have no captions. Type: clip-anatomy index SOURCE STORE --labels TABLE with a column captions"
        )
    pictures, texts = read_query(query, opened, lambda: clip, allow_urls=allow_urls)
    if texts or not pictures:
        raise BadInput("captions are searched by a picture. Give a path or id:ID")
    image = torch.stack([one.embedding for one in pictures]).mean(0)
    name = " + ".join(one.name for one in pictures)
    spec = "all" if heads is None else heads
    ranking = search_texts(
        clip, image, list(captions), spec, k, measure=measure or "dot", query=name, progress=progress
    )
    return replace(ranking, hits=tuple(replace(hit, ids=tuple(captions[hit.text])) for hit in ranking.hits))


def _coordinates(
    clip: Clip, basis: HeadBasis, texts: Sequence[str], progress: Progress
) -> Float64[Tensor, "text layer head d"]:
    parts: list[Tensor] = []
    for first in range(0, len(texts), BATCH):
        some = texts[first : first + BATCH]
        trace = clip.text_tower.trace(clip.ids(some))
        parts.append(coordinates_of(basis, clip.text_tower, trace).cpu())
        progress("reading texts", first + len(some), len(texts))
    return torch.cat(parts)


def _choose(
    clip: Clip, basis: HeadBasis, coordinates: Tensor, heads: TextHeadSpec, image: Tensor
) -> tuple[ChosenHead, ...]:
    tower = clip.text_tower
    if heads == "all":
        return tuple(ChosenHead(layer, head) for layer in range(tower.layers) for head in range(tower.heads))
    if isinstance(heads, str) and (heads == "auto" or heads.startswith("words=")):
        words = heads.partition("=")[2]
        if len(coordinates) < 2:
            raise BadInput("one text alone does not tell heads apart. Type heads='all'")
        text = clip.encode_text([words]).cpu() if words else image[None].float()
        why = f"varies along {words!r}" if words else "varies along the picture"
        return heads_varying_along(Moments.of(coordinates, basis=basis), text, why)
    try:
        pairs = [tuple(map(int, p.split("."))) for p in heads.split(",")] if isinstance(heads, str) else [*heads]
        chosen = [(int(layer), int(head)) for layer, head in pairs]
    except ValueError:
        raise BadSpec(
            f"text heads {heads!r}: type all, auto, words=WORDS or LAYER.HEAD,LAYER.HEAD (roles are known for image heads only)"
        ) from None
    if not chosen or len({*chosen}) < len(chosen):
        raise BadSpec(
            f"text heads {heads!r}: each is to be named once. Type all, auto, words=WORDS or LAYER.HEAD,LAYER.HEAD"
        )
    for layer, head in chosen:
        if not (0 <= layer < tower.layers and 0 <= head < tower.heads):
            raise BadSpec(
                f"the text tower has no head {layer}.{head}: layers 0 to {tower.layers - 1}, heads 0 to {tower.heads - 1}"
            )
    return tuple(ChosenHead(layer, head) for layer, head in chosen)
