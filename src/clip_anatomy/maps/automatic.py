"""Which map is drawn when nobody names one: by the kind of model and the question, with the evidence that stands in docs/maps.md."""

from dataclasses import dataclass

from clip_anatomy.loading.clip import Clip
from clip_anatomy.towers.transformer import Transformer

__all__ = ["AUTO", "Choice", "chosen_method"]

AUTO = "auto"
DEEP = 12  # blocks: the smallest tower of which segmentation figures are published (ViT-B)


@dataclass(frozen=True)
class Choice:
    """A method, and why.

    Attributes:
        method: of `heatmap`.
        why: the evidence in a line.
    """

    method: str
    why: str


EXACT = Choice(
    "decomposition",
    "exact shares of the cosine; the best of all on the demo world, and the only map whose values add up to something",
)
ONLY = Choice("decomposition", "the only exact map of a tower that is not a transformer's blocks to the end")
CLASSES = Choice(
    "scclip",
    "the best published mIoU among methods with CLIP alone and code (43.9, mean of eight data sets, B/16), re-run by others to the digit",
)


def chosen_method(clip: Clip, *, classes: bool = False) -> Choice:
    """Choose the map for a model: where it read a text, or (`classes`) which of several texts every pixel belongs to.

    Labels of pixels by several texts come from SC-CLIP on towers of twelve blocks or more with a class token, the kind that its
    figures are of; everything else from the decomposition. Neither could be measured on photographs where this was written.

    Example:
        >>> import clip_anatomy as ca
        >>> chosen_method(ca.load("demo"), classes=True).method
        'decomposition'
    """
    tower = clip.vision
    if not isinstance(tower, Transformer):
        return ONLY
    return CLASSES if classes and tower.layers >= DEEP and tower.pool == "class" else EXACT
