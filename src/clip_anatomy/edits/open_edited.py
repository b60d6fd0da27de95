"""Open the model that an edit was made for, edited."""

from functools import reduce
from operator import add
from pathlib import Path

from clip_anatomy.argument_kinds import described
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import refuse_stray_weights
from clip_anatomy.loading.reopen_model import opened_again

__all__ = ["open_edited", "read_edits"]


def read_edits(spec: str | Path) -> Edit:
    """Read one edit, or several whose files are joined by `+`."""
    if Path(spec).exists() or "+" not in str(spec):
        return Edit.load(spec)
    return reduce(add, (Edit.load(part.strip()) for part in str(spec).split("+")))


def open_edited(
    edit: "EditedClip | Edit | str | Path",
    model: "Clip | str | None" = None,
    *,
    weights: str | None = None,
    device: str = "auto",
) -> EditedClip:
    """Open the model that an edit was made for, edited.

    Args:
        edit: an edit, or the .json file of one, or several joined by +; one that is open is given back.
        model: the model, or its name or path, where it is found by another name than the edit's.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        BadSpec: the model cannot be opened by the name that the edit holds.
        BadInput: no edit, or one of another model.
    """
    if isinstance(edit, EditedClip):
        refuse_stray_weights(edit.clip, weights)
        if model is not None and model is not edit.clip:
            raise BadInput(
                f"model={described(model)} would not be used: this edited model is open, on {edit.clip.name}. Leave model= away, or "
                "type its edit with another model: EditedClip(clip, edited.edit)"
            )
        return edit
    read = edit if isinstance(edit, Edit) else read_edits(edit)
    beside = Path() if isinstance(edit, Edit) else Path(edit).parent
    origin = {} if read.origin is None else read.origin.to_dict(beside)
    clip = opened_again(origin, beside, read.model, model, weights, device=device, dtype=read.dtype)
    return EditedClip(clip, read)
