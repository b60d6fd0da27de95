"""What two pictures differ in for one text, or two models for one picture: one exact split minus another."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from clip_anatomy.data.picture_files import head_of, is_picture
from clip_anatomy.data.typed_pictures import is_address
from clip_anatomy.errors import BadInput
from clip_anatomy.files import path_of
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.split.picture_explanation import PictureExplanation

__all__ = ["Versus", "minus", "other_model"]

Versus = Clip | ModelSource | ImageLike
"""Another picture, or another model (opened, live, or what `load` opens). A string is a picture where it is named like one."""


def other_model(versus: Versus, device: str) -> Clip | None:
    """Return the other model, opened on the same device; None where `versus` is another picture."""
    if isinstance(versus, Clip):
        return versus
    if isinstance(versus, nn.Module) or (isinstance(versus, str | Path) and not _is_picture(versus)):
        return as_clip(versus, device)
    return None


def _is_picture(typed: str | Path) -> bool:
    """Tell a picture from a model's spec, folder or checkpoint: an address, a file whose name or first bytes are a picture's."""
    path = path_of(typed)
    return is_address(typed) or is_picture(path.name, lambda: head_of(path))


def minus(own: PictureExplanation, other: PictureExplanation, name: str, *, other_picture: bool) -> PictureExplanation:
    """Subtract one split from another: the parts sum to the difference of the cosines.

    Places of two pictures have nothing to do with each other: their maps are kept side by side. Places of one picture are subtracted.

    Args:
        own: cosines of a picture with texts.
        other: of another picture by the same model, or of the same picture by another model.
        name: what the other is called.
        other_picture: which of the two it is.

    Raises:
        BadInput: the two are not made of the same parts.
    """
    parts = ("heads", "mlps") if other_picture else ("heads", "mlps", "patches")
    for part in parts:
        mine, theirs = (list(getattr(each, part).shape[:-1]) for each in (own, other))
        if mine != theirs:
            raise BadInput(
                f"versus {name}: it has {part} {theirs}, this model {mine}; only models of one architecture differ part by part. Give a model with as "
                "many layers, heads and patches, such as one trained further from the same start"
            )
    named = ("heads", "mlps", "input_embedding", "bias", "class_token", *parts[2:])
    return replace(
        own,
        cosine=own.cosine - other.cosine,
        **{part: getattr(own, part) - getattr(other, part) for part in named},
        other_patches=other.patches if other_picture else None,
        versus=name,
        cosines=(own.cosine, other.cosine),
    )
