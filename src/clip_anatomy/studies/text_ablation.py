"""Parts of the text tower replaced in every class text: which class each image of a store is given then. No image is read.

A class's unit embedding is the mean of its prompts', and those are sums of parts, so it is a sum of parts too:

    w_c = Σ_part x_part(c),   x_part(c) = mean over prompts of part / ‖embedding‖, over the length of that mean

Replacements change w_c as they change an image's embedding (`embedding_change`), with the scales held (direct effects). By the mean, a part is the same
vector for every class: it adds the same to all logits and decides nothing any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from clip_anatomy.edits.measured_replacements import replacements_of
from clip_anatomy.edits.replacement import Replacement, embedding_change
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.progress import Progress, silent
from clip_anatomy.split.parts import decompose_text
from clip_anatomy.store.store import Store
from clip_anatomy.studies.zero_shot_task import ZeroShotTask

__all__ = ["ClassParts", "TextTower", "class_parts", "text_predictions"]

BATCH, PIECE = 64, 8192
BYS = ("mean", "zero")


@dataclass(frozen=True)
class TextTower:
    """What named studies ask of a tower: its layers and heads.

    Attributes:
        depth: layers.
        heads: of a layer.
        convention: how LayerNorm's mean and biases are shared.
    """

    depth: int
    heads: int
    convention: str = "centered"

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer."""
        return tuple(range(self.depth))

    @staticmethod
    def of(clip: Clip) -> "TextTower":
        """Describe a model's text tower."""
        return TextTower(clip.text_tower.layers, clip.text_tower.heads)


@dataclass(frozen=True)
class ClassParts:
    """What every part of the text tower wrote into each class's unit embedding.

    Attributes:
        heads: of every head.
        mlps: of every MLP.
        start: the input embedding, and the biases with it, as `ablate` has them for pictures.
    """

    heads: Float[Tensor, "text layer head embed"]
    mlps: Float[Tensor, "text mlp embed"]
    start: Float[Tensor, "text embed"]

    def total(self) -> Float[Tensor, "text embed"]:
        """Return the sum of all parts: the classes' unit embeddings."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.start

    def of(self, part: Replacement) -> Float[Tensor, "text embed"]:
        """Return what the part of a replacement wrote."""
        if part.kind == "head":
            return self.heads[:, part.layer, part.head]
        return self.mlps[:, part.layer] if part.kind == "mlp" else self.start


def class_parts(clip: Clip, prompts: Sequence[Sequence[str]], *, progress: Progress | None = None) -> ClassParts:
    """Split the classes' unit embeddings by part.

    Args:
        clip: an opened model.
        prompts: of each class.
        progress: told how many classes are done.

    Example:
        >>> import clip_anatomy as ca
        >>> parts = class_parts(ca.load("demo"), [["a bird", "a photo of a bird"], ["a fish"]])
        >>> [round(float(one), 5) for one in parts.total().norm(dim=-1)]
        [1.0, 1.0]
    """
    tell, rows = progress or silent, list[tuple[Tensor, Tensor, Tensor]]()
    for done, some in enumerate(prompts):
        pieces: list[tuple[Tensor, Tensor, Tensor]] = []
        for first in range(0, len(some), BATCH):
            parts = decompose_text(clip, list(some[first : first + BATCH]))
            each = parts.heads, parts.mlps, parts.input_embedding + parts.bias
            length = parts.embedding.norm(dim=-1)
            pieces += zip(*((x / length.view(-1, *[1] * (x.dim() - 1))).cpu() for x in each), strict=True)
        heads, mlps, start = (torch.stack(one).mean(0) for one in zip(*pieces, strict=True))
        whole = (heads.sum((0, 1)) + mlps.sum(0) + start).norm()
        rows.append((heads / whole, mlps / whole, start / whole))
        tell("splitting class texts", done + 1, len(prompts))
    return ClassParts(*(torch.stack(one) for one in zip(*rows, strict=True)))


def text_predictions(
    store: Store,
    clip: Clip,
    task: ZeroShotTask,
    sets: Sequence[Selection],
    by: str = "mean",
    *,
    progress: Progress | None = None,
) -> Int32[Tensor, "set image"]:
    """Answer for every image which class is nearest, once for each set of replaced parts of the text tower.

    Args:
        store: of the images.
        clip: its model.
        task: what is asked; made of prompts.
        sets: parts of the text tower; an empty one is the whole model.
        by: "mean" over the classes, or "zero".
        progress: told class texts and images.

    Returns:
        The class with the largest logit, the first of equal ones.

    Raises:
        BadSpec: another way to replace, or parts that only an image tower has.
        BadInput: class embeddings that were made elsewhere, without prompts.
    """
    if by not in BYS:
        raise BadSpec(
            f"by={by!r}: parts of the text tower are replaced by their mean over the classes, or by zero. Type by='mean'"
        )
    if not task.prompts:
        raise BadInput(
            "class embeddings made elsewhere cannot be split. Type classes= and templates= instead of texts="
        )
    if wrong := [one.description for one in sets if one.class_to_class or one.tokens]:
        raise BadSpec(f"{wrong[0]}: a text has no class token. Type heads, MLPs or input-embedding of the text tower")
    parts = class_parts(clip, task.prompts, progress=progress)
    texts = [parts.total() + _change(parts, one, by) if one else task.texts for one in sets]
    picks = torch.zeros(len(sets), len(task.rows), dtype=torch.int32)
    tell = progress or silent
    for first in range(0, len(task.rows), PIECE):
        images = store.embeddings(task.rows[first : first + PIECE], unit=True)
        for row, some in enumerate(texts):
            picks[row, first : first + len(images)] = (images @ some.T).argmax(1).int()
        tell("answering", first + len(images), len(task.rows))
    return picks


def _change(parts: ClassParts, selection: Selection, by: str) -> Float[Tensor, "text embed"]:
    replacements: list[Replacement] = []
    for one in replacements_of(selection, by="zero", embed=parts.start.shape[1]):
        mean = None if by == "zero" else parts.of(one).mean(0, keepdim=True)
        replacements.append(one if mean is None else replace(one, by="mean", baseline=mean))
    return embedding_change(replacements, parts.of)
