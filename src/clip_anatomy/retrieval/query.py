"""What a search looks for: pictures and texts → heads → vectors to compare → the direction to look for in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.progress import Progress
from clip_anatomy.retrieval.automatic_heads import ChosenHead
from clip_anatomy.retrieval.head_choice import HeadSpec, choose_heads, property_in
from clip_anatomy.retrieval.query_pictures import QueryPicture, coordinates_of_pictures, read_query
from clip_anatomy.retrieval.store_atlas import atlas_of, property_directions
from clip_anatomy.retrieval.subspace import Space, space_of
from clip_anatomy.store.store import Store

__all__ = ["Query", "prepare_query"]

MEASURES = ("cosine", "dot")
NEGATIVE_WEIGHT = 0.5  # of the mean of what the results should be unlike


@dataclass(frozen=True)
class Query:
    """What a search looks for, ready to be compared with every image.

    Attributes:
        like: pictures to be like.
        unlike: pictures to be unlike.
        texts: texts to match.
        negative_texts: texts not to match.
        heads: the heads that are compared (in mode "without": that are left out), with reasons.
        choice: how they were chosen, as it was typed; "" where they were given as pairs.
        focus: the property or texts along which images are compared; "" for all directions.
        space: the vectors that are compared.
        direction: what is looked for in them; of unit length for cosines.
        measure: "cosine" or "dot".
        notes: what a reader must know.
    """

    like: tuple[QueryPicture, ...]
    unlike: tuple[QueryPicture, ...]
    texts: tuple[str, ...]
    negative_texts: tuple[str, ...]
    heads: tuple[ChosenHead, ...]
    choice: str
    focus: str
    space: Space = field(repr=False, compare=False)
    direction: Float64[Tensor, " out"] = field(repr=False, compare=False)
    measure: str = "cosine"
    notes: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """ "heads", "whole" or "without"."""
        return self.space.mode

    @property
    def summary(self) -> str:
        """The query in words."""
        wanted = [*(one.name for one in self.like), *(f"“{text}”" for text in self.texts)]
        unwanted = [*(one.name for one in self.unlike), *(f"“{text}”" for text in self.negative_texts)]
        return " + ".join(wanted) + "".join(f" − {one}" for one in unwanted)

    def vectors(self, pictures: Sequence[QueryPicture]) -> Float64[Tensor, "image out"]:
        """Return the vectors of some of its pictures in `space`."""
        return _vectors(self.space, pictures)


def prepare_query(
    store: Store,
    query: Any,
    clip: Callable[[], Clip],
    *,
    heads: HeadSpec,
    negative: Any = None,
    mode: str = "heads",
    focus: str | Sequence[str] | None = None,
    measure: str | None = None,
    atlas: Atlas | str | Path | None = None,
    allow_urls: bool = False,
    progress: Progress | None = None,
) -> Query:
    """Do everything that comes before the scan. The arguments are those of `search`, but for the model.

    Args:
        store: the store.
        query: pictures, ids and texts.
        clip: opens the store's model, called only where it is needed.
        heads: which heads.
        negative: pictures, ids and texts to be unlike.
        mode: one of `subspace.MODES`.
        focus: a property, or texts that differ in it.
        measure: one of MEASURES; None for cosine with pictures, dot for texts alone.
        atlas: names of the heads.
        allow_urls: fetch http(s) addresses.
        progress: called as an atlas is made.

    Raises:
        BadInput: nothing was asked for, or nothing is left to look for.
        BadSpec: an unknown measure, mode, property or choice of heads.
    """
    if measure is not None and measure not in MEASURES:
        raise BadSpec(f"measure {measure!r} is not known. Type one of: {', '.join(MEASURES)}")
    like, texts = read_query(query, store, clip, allow_urls=allow_urls)
    unlike, negative_texts = read_query(negative, store, clip, allow_urls=allow_urls)
    if not (like or unlike or texts or negative_texts):
        raise BadInput("nothing was asked. Give a picture, a stored id or a text: search(store, 'photo.jpg')")

    def embed(texts: Sequence[str]) -> Float[Tensor, "text embed"]:
        return torch.nn.functional.normalize(clip().encode_text([*texts]), dim=-1).cpu()

    atlases: list[Atlas] = []

    def named() -> Atlas:
        if not atlases:
            atlases.append(atlas_of(store, clip, atlas, progress))
        return atlases[0]

    wanted = embed(texts) if texts else None
    unwanted = embed(negative_texts) if negative_texts else None
    chosen: tuple[ChosenHead, ...] = ()
    notes: tuple[str, ...] = ()
    if mode != "whole":
        text = wanted if wanted is not None else None if unwanted is None else unwanted[:1]
        chosen, notes = choose_heads(
            store, heads, atlas=named, like=coordinates_of_pictures(like, store), unlike=coordinates_of_pictures(unlike, store),
            text=text, embed=lambda words: clip().encode_text([words]).cpu(),
        )  # fmt: skip
    name, directions = _focus(focus, property_in(heads, named) if mode == "heads" and focus is None else None, clip)
    space = space_of(store, mode, [(one.layer, one.head) for one in chosen], focus=directions)
    cosine = measure == "cosine" if measure else bool(like or unlike)

    direction = _direction(space, like, unlike, wanted, unwanted, cosine=cosine)
    return Query(
        like=like,
        unlike=unlike,
        texts=texts,
        negative_texts=negative_texts,
        heads=chosen,
        choice=heads if isinstance(heads, str) and mode != "whole" else "",
        focus=name,
        space=space,
        direction=direction,
        measure="cosine" if cosine else "dot",
        notes=notes,
    )


def _focus(
    focus: str | Sequence[str] | None, chosen_by: str | None, clip: Callable[[], Clip]
) -> tuple[str, Float64[Tensor, "out embed"] | None]:
    """Return the directions that are compared: as asked for, else of the property that heads were chosen by, for they see more than it."""
    if focus is not None:
        texts = focus.split("|") if isinstance(focus, str) and "|" in focus else focus
        return texts if isinstance(texts, str) else " | ".join(texts), property_directions(clip(), texts)
    if chosen_by is not None:
        try:
            return chosen_by, property_directions(clip(), chosen_by)
        except BadSpec:  # named by an atlas over other texts: the heads alone
            pass
    return "", None


def _direction(
    space: Space,
    like: Sequence[QueryPicture],
    unlike: Sequence[QueryPicture],
    texts: Tensor | None,
    negative_texts: Tensor | None,
    *,
    cosine: bool,
) -> Float64[Tensor, " out"]:
    """mean(like) + mean(texts) − ½ mean(unlike) − ½ mean(negative texts); each of unit length where cosines are asked for."""
    terms = [
        (1.0, _vectors(space, like) if like else None),
        (-NEGATIVE_WEIGHT, _vectors(space, unlike) if unlike else None),
        (1.0, None if texts is None else space.place_text(texts)),
        (-NEGATIVE_WEIGHT, None if negative_texts is None else space.place_text(negative_texts)),
    ]
    total = torch.zeros(space.size, dtype=torch.float64)
    for weight, vectors in terms:
        if vectors is not None:
            total = total + weight * (torch.nn.functional.normalize(vectors, dim=-1) if cosine else vectors).mean(0)
    length = float(total.norm())
    if length < 1e-12:
        raise BadInput(
            "nothing is left to look for: in what is compared the query is an average image. Type mode='whole'"
        )
    return total / length if cosine else total


def _vectors(space: Space, pictures: Sequence[QueryPicture]) -> Float64[Tensor, "image out"]:
    return space.place(torch.stack([one.heads for one in pictures]), torch.stack([one.embedding for one in pictures]))
