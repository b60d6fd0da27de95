"""`Question`: which of these classes? With the texts that ask it, and those that stand for a suspected cue."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.store.store import Store
from clip_anatomy.studies.class_texts import WORLD, attribute_with, class_texts, values_of
from clip_anatomy.studies.columns import classes_of, codes_in, column_of, columns_of

__all__ = ["Question", "cue_texts", "question_of"]


@dataclass(frozen=True)
class Question:
    """One zero-shot question: which of these classes?

    Attributes:
        column: where the right answers are.
        classes: names, as in the column.
        texts: one unit embedding per class.
    """

    column: str
    classes: tuple[str, ...]
    texts: Float[Tensor, "text embed"]


def question_of(
    store: Store,
    clip: Clip,
    rows: np.ndarray,
    column: str,
    *,
    classes: Sequence[str] | str | None = None,
    templates: Sequence[str] | None = None,
    world: bool = False,
) -> Question:
    """A question from a column of some images.

    Args:
        store: the store.
        clip: its model.
        rows: the images that may be looked at for it.
        column: where the right answers are.
        classes: names of the classes, "a, b, c", or a text file of one a line; by default the values of the column.
        templates: prompts to average.
        world: pictures of the demo world, whose attributes are asked as its own bench asks them.

    Raises:
        BadInput: an empty column, labels that match no class.
    """
    told = column_of(store, column, rows)
    if not any(value not in (None, "") for value in told):
        raise BadInput(f"column {column!r} is empty for these images. Type one of: {columns_of(store)}")
    if world and classes is None and column in WORLD and templates is None:
        return Question(column, values_of(column), class_texts(clip, values_of(column), attribute=column))
    names = classes_of(classes) if classes is not None else tuple(sorted({str(v) for v in told if v not in (None, "")}))
    codes_in(told, names, column)
    return Question(column, names, class_texts(clip, names, templates))


def cue_texts(
    clip: Clip, cue: Sequence[str], templates: Sequence[str] | None = None, *, world: bool = False
) -> Float[Tensor, "text embed"]:
    """Embeddings of a cue in words: words alone are put into prompts, longer texts are taken as they are.

    Args:
        clip: the model.
        cue: texts; may be none.
        templates: prompts to average.
        world: for the demo world, whose own values are asked as its own bench asks them.
    """
    if not cue:
        return torch.zeros(0, clip.text_tower.embed)
    attribute = attribute_with(cue) if world and templates is None else ""
    words = all(len(text.split()) < 3 for text in cue) and not world
    return class_texts(clip, cue, templates if words else ("{}",), attribute)
