"""The answers of an ablation by the workers of an engine: each takes some thousand images of the store, and all sets of parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.engine.engine import Engine, engine_of, in_order, works_here
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.model_setup import ModelSetup
from clip_anatomy.progress import Progress
from clip_anatomy.store.store import Store
from clip_anatomy.studies.rerun_embeddings import rerun_embeddings

__all__ = ["predictions_by", "rerun_picks"]

ROWS = 4096  # images of a task: whole pieces, so that sums are taken over the same images as in one process
Answer = Callable[..., Int[Tensor, "set image"]]


@dataclass(frozen=True)
class _AnswerSetup:
    """A store by its place, a model where one is needed, and what is the same for all images."""

    place: str
    model: ModelSetup | None
    function: Answer
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def device(self) -> str:
        """Where the model wants to be; a store alone is read by processors."""
        return "cpu" if self.model is None else self.model.device

    def open(self) -> "tuple[Store, tuple[Clip, ...], _AnswerSetup]":
        """Open the store, and the model if there is one."""
        return Store.open(self.place), () if self.model is None else (self.model.open(),), self


def _answers(state: tuple[Store, tuple[Clip, ...], _AnswerSetup], rows: np.ndarray) -> Tensor:
    store, opened, setup = state
    return setup.function(store, *opened, *setup.arguments, rows=rows, **setup.options)


def predictions_by(
    engine: Engine | str,
    store: Store,
    clip: Clip | None,
    function: Answer,
    *arguments: Any,
    rows: np.ndarray | None,
    progress: Progress,
    **options: Any,
) -> Int[Tensor, "set image"]:
    """Answer for some images of a store.

    Args:
        engine: what runs it.
        store: which; its place must be readable by all workers.
        clip: its model, where the function takes one.
        function: (store, [clip,] *arguments, rows=, progress=, **options) → answers.
        *arguments: of the function.
        rows: which images, ascending; all by default.
        progress: told how many are done.
        **options: of the function.
    """
    if works_here(engine):
        opened = () if clip is None else (clip,)
        return function(store, *opened, *arguments, rows=rows, progress=progress, **options)
    images = np.arange(len(store)) if rows is None else rows
    setup = _AnswerSetup(store.place, None if clip is None else ModelSetup.of(clip), function, arguments, options)
    tasks = [images[first : first + ROWS] for first in range(0, len(images), ROWS)]
    picks: list[Tensor] = []
    with engine_of(engine) as running:
        for answers in in_order(running.map(_answers, tasks, setup=setup)):
            picks.append(answers)
            progress("answering", sum(one.shape[1] for one in picks), len(images))
    return torch.cat(picks, 1)


def rerun_picks(
    store: Store,
    clip: Clip,
    sets: Sequence[Sequence[Replacement]],
    texts: Tensor,
    *,
    rows: np.ndarray,
    progress: Progress | None = None,
) -> Int[Tensor, "set image"]:
    """Run some pictures of a store again with parts held, and answer.

    Args:
        store: which.
        clip: its model.
        sets: parts that are held.
        texts: one embedding per class.
        rows: which images.
        progress: told how many are done.
    """
    embeddings = rerun_embeddings(store, clip, sets, rows, progress)
    return (embeddings @ texts.float().T).argmax(-1).int()
