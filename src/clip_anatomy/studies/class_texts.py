"""Texts that stand for classes: prompts filled with names, embedded together, averaged; the demo world's as its own bench asks them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.world.accuracy import prompts
from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.loading.tokenizer import average_prompts, fill_templates
from clip_anatomy.loading.zero_shot import imagenet_templates

__all__ = ["WORLD", "attribute_with", "class_texts", "values_of"]

TEMPLATES = ("a photo of a {}.",)
PAPER = "imagenet"  # the 80 templates of CLIP's own recipe, which the paper takes
DIGITS = ("1", "2", "3", "4")
WORLD = (*ATTRIBUTES, "digit")
"""What the demo world asks of its pictures."""


def values_of(attribute: str) -> tuple[str, ...]:
    """The values of an attribute of the demo world.

    Example:
        >>> values_of("digit")
        ('1', '2', '3', '4')
    """
    return ATTRIBUTES.get(attribute, DIGITS)


def attribute_with(names: Sequence[str]) -> str:
    """The first attribute of the demo world that has all these values, "" for none.

    Example:
        >>> attribute_with(["sky", "water"]), attribute_with(["sky", "red"])
        ('background', '')
    """
    return next((one for one in WORLD if names and {*names} <= {*values_of(one)}), "")


def class_texts(
    clip: Clip, names: Sequence[str], templates: Sequence[str] | str | None = None, attribute: str = ""
) -> Float[Tensor, "text embed"]:
    """One embedding per name: the mean of its prompts' unit embeddings.

    Args:
        clip: the model.
        names: of the classes; underscores are read as spaces.
        templates: prompts with one {} each, or "imagenet" for the 80 of CLIP's own recipe; by default "a photo of a {}."
        attribute: an attribute of the demo world whose values the names are: asked with prompts that it was never trained on.

    Raises:
        BadText: a template without a place for the name.
    """
    if attribute:
        known = dict(zip(values_of(attribute), prompts(attribute), strict=True))
        sets = [known[name] for name in names]
    else:
        sets = [fill_templates(name.replace("_", " "), _listed(templates)) for name in names]
    found = embed_texts(clip, [text for one in sets for text in one]).cpu()
    return torch.stack([average_prompts(some) for some in found.split([len(one) for one in sets])])


def _listed(templates: Sequence[str] | str | None) -> Sequence[str]:
    if templates is None or not len(templates):
        return TEMPLATES
    given = (templates,) if isinstance(templates, str) else tuple(templates)
    return imagenet_templates() if given == (PAPER,) else given
