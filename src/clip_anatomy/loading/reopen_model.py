"""Open a model as a store or an edit says that it was made."""

from collections.abc import Mapping
from pathlib import Path

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import load_recorded, refuse_stray_weights
from clip_anatomy.loading.model_origin import Origin

__all__ = ["opened_again"]


def opened_again(
    places: Mapping[str, str],
    beside: Path,
    spec: str,
    model: "Clip | str | None" = None,
    weights: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
) -> Clip:
    """Open a model as a store or an edit says that it was made.

    Args:
        places: its `Origin.to_dict`; empty in files that are older than it.
        beside: the folder of the file that says it.
        spec: the model's name, where nothing else is said.
        model: the model, or another name or path of it, instead.
        weights: a checkpoint file instead.
        device: where to.
        dtype: in which precision.

    Raises:
        BadSpec: it is not where it was, says what was looked for, and how to pass it; or a checkpoint for a model that takes none.
    """
    refuse_stray_weights(places.get("spec", spec) if model is None else model, weights)
    if isinstance(model, Clip):
        return model
    if model is not None:
        return load_recorded(model, spec, weights=weights, device=device, dtype=dtype)
    known = {key: value for key, value in places.items() if weights is None or not key.startswith("weights")}
    origin = Origin.read(known, beside, spec)
    try:
        return load_recorded(
            None, origin.spec_anywhere, weights=weights or origin.weights or None, device=device, dtype=dtype
        )
    except BadSpec as error:
        raise BadSpec(
            f"{beside} was made with a model called {origin.spec!r}, which cannot be opened by that name here ({error}). Type model= "
            "with what it was loaded from, or in Python with the opened model"
        ) from error
