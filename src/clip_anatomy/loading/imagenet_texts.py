"""What CLIP's own zero-shot recipe ships with open_clip: names of the ImageNet classes, and the 80 prompt templates."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module

from clip_anatomy.loading.open_clip_models import need_open_clip
from clip_anatomy.public_functions import public

__all__ = ["imagenet_names", "imagenet_synsets", "imagenet_templates", "unique_names"]


@public
@cache
def imagenet_templates() -> tuple[str, ...]:
    """Return the 80 prompt templates of CLIP's ImageNet recipe (Radford et al. 2021, §3.1.4), each with one `{}`.

    Raises:
        MissingExtra: open_clip, which ships them, is not installed.

    Example:
        >>> len(imagenet_templates()), imagenet_templates()[0]
        (80, 'a bad photo of a {}.')
    """
    return tuple(str(template("{}")) for template in need_open_clip().OPENAI_IMAGENET_TEMPLATES)


@cache
def imagenet_names() -> tuple[str, ...]:
    """Return names of the 1,000 ImageNet classes as CLIP's authors curated them, in the order of their sorted synset numbers.

    Two names stand for two classes each (missile, sunglasses); the second gets its place in brackets through
    `unique_names` where labels must differ.

    Raises:
        MissingExtra: open_clip, which ships them, is not installed.

    Example:
        >>> len(imagenet_names()), imagenet_names()[0]
        (1000, 'tench')
    """
    return tuple(str(name) for name in need_open_clip().IMAGENET_CLASSNAMES)


def imagenet_synsets() -> tuple[str, ...] | None:
    """Return the 1,000 synset numbers (n01440764 …) in ascending order, from timm, which open_clip brings along; None without it."""
    try:
        labels = tuple(str(name) for name in import_module("timm.data").ImageNetInfo("imagenet-1k").label_names())
    except (ImportError, AttributeError, OSError):
        return None
    return labels if len(labels) == 1000 and list(labels) == sorted(labels) else None


def unique_names(names: Sequence[str], codes: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each later repetition followed by its code in brackets.

    Example:
        >>> unique_names(["crane", "ship", "crane"], ["n1", "n2", "n3"])
        ('crane', 'ship', 'crane (n3)')
    """
    taken: set[str] = set()
    unique: list[str] = []
    for name, code in zip(names, codes, strict=True):
        unique.append(f"{name} ({code})" if name in taken else name)
        taken.add(name)
    return tuple(unique)
