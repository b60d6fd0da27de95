"""From what was asked to what is computed: pictures and texts → heads → vectors to compare → the direction to look for in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.retrieval.head_choice import HeadSpec, choose, property_in
from clip_anatomy.retrieval.query import Asked, Example, ask
from clip_anatomy.retrieval.ranking import Used
from clip_anatomy.retrieval.store_atlas import atlas_of, directions_of, model_of
from clip_anatomy.retrieval.subspace import Space, space_of
from clip_anatomy.store.store import Store

__all__ = ["Question", "Ready"]

MEASURES = ("cosine", "dot")


@dataclass(frozen=True)
class Ready:
    """A question that is ready to be put to the numbers.

    Attributes:
        asked: pictures and texts.
        heads: chosen heads with reasons.
        space: vectors to compare.
        direction: what to look for in them.
        cosine: whether lengths are divided out.
        notes: what a reader must know.
        focus: the property or texts along which they are compared; "" for all directions.
    """

    asked: Asked
    heads: tuple[Used, ...]
    space: Space
    direction: Float64[Tensor, " out"]
    cosine: bool
    notes: tuple[str, ...]
    focus: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked of a store, as it was typed; the fields are those arguments of `search` that have their names."""

    query: Any
    heads: HeadSpec = "auto"
    less: Any = None
    text: str | Sequence[str] = ()
    mode: str = "heads"
    focus: str | Sequence[str] | None = None
    measure: str | None = None
    centred: bool | None = None
    less_weight: float = 0.5
    text_weight: float = 1.0

    def ready(
        self,
        store: Store,
        clip: Clip | None = None,
        atlas: Atlas | str | Path | None = None,
        *,
        allow_urls: bool = False,
        report: Callable[[str, int, int], None] | None = None,
    ) -> Ready:
        """Do everything before the scan.

        Args:
            store: the store.
            clip: its model, if it is open; otherwise loaded when it is needed.
            atlas: names of the heads; by default those kept in the store, made there when they are needed.
            allow_urls: fetch http(s) addresses.
            report: called with what is being done, how much is done and how much there is.
        """
        if self.measure is not None and self.measure not in MEASURES:
            raise BadSpec(f"measure {self.measure!r} is not known. Type one of: {', '.join(MEASURES)}")
        if not (isfinite(self.less_weight) and isfinite(self.text_weight)):
            raise BadInput(
                f"less_weight {self.less_weight}, text_weight {self.text_weight}: numbers were expected. Type less_weight=0.5"
            )

        @cache
        def model() -> Clip:
            return clip if clip is not None else model_of(store)

        @cache
        def named() -> Atlas:
            return atlas_of(store, model, atlas, report)

        texts = [self.text] if isinstance(self.text, str) else self.text
        asked = ask(store, self.query, self.less, texts, model, allow_urls=allow_urls)
        used, notes = ((), ()) if self.mode == "whole" else _chosen(store, self.heads, asked, named, model)
        focus, along = self._focus(named, model)
        centred = self.mode == "heads" if self.centred is None else self.centred
        space = space_of(store, self.mode, [(one.layer, one.head) for one in used], centred=centred, focus=along)
        cosine = bool(asked.more or asked.less) if self.measure is None else self.measure == "cosine"
        direction = self._direction(asked, space, cosine=cosine)
        said = "" if focus is None else focus if isinstance(focus, str) else " | ".join(focus)
        return Ready(asked, used, space, direction, cosine, notes, said)

    def _focus(
        self, atlas: Callable[[], Atlas], model: Callable[[], Clip]
    ) -> tuple[str | Sequence[str] | None, Float64[Tensor, "out embed"] | None]:
        """What alone is compared: as asked for, else the property that heads were chosen by, for they see more than it."""
        if self.focus is not None:
            return self.focus, directions_of(model(), self.focus)
        if self.mode != "heads" or (name := property_in(self.heads, atlas)) is None:
            return None, None
        try:
            return name, directions_of(model(), name)
        except BadSpec:  # named by an atlas over other texts: the heads alone
            return None, None

    def _direction(self, asked: Asked, space: Space, *, cosine: bool) -> Float64[Tensor, " out"]:
        """mean of more − weight · mean of less + weight · texts, each of unit length where cosines are asked for."""

        def mean(vectors: Tensor) -> Tensor:
            return (torch.nn.functional.normalize(vectors, dim=-1) if cosine else vectors).mean(0)

        total = torch.zeros(space.size, dtype=torch.float64)
        if asked.more:
            total = total + mean(placed(space, asked.more))
        if asked.less:
            total = total - self.less_weight * mean(placed(space, asked.less))
        if asked.texts is not None:
            texts = space.place_text(asked.texts)
            count = len(asked.words)
            if count:
                total = total + self.text_weight * mean(texts[:count])
            if asked.unwanted:
                total = total - self.less_weight * mean(texts[count:])
        length = float(total.norm())
        if length < 1e-12:
            raise BadInput("what was asked cancels out: the same picture to be like and unlike? Give different ones")
        return total / length if cosine else total


def placed(space: Space, examples: Sequence[Example]) -> Float64[Tensor, "image out"]:
    """Vectors of pictures that were given."""
    return space.place(torch.stack([one.heads for one in examples]), torch.stack([one.embedding for one in examples]))


def _chosen(
    store: Store, heads: HeadSpec, asked: Asked, named: Callable[[], Atlas], model: Callable[[], Clip]
) -> tuple[tuple[Used, ...], tuple[str, ...]]:
    return choose(
        store,
        heads,
        atlas=named,
        more=asked.heads(asked.more, store),
        less=asked.heads(asked.less, store),
        text=None if asked.texts is None else asked.texts[: max(len(asked.words), 1)],
        embed=lambda words: model().encode_text([words]).cpu(),
    )
