"""The whole configuration of a run: everything that decides its figures, as people and programs read it."""

from dataclasses import asdict, fields, replace
from typing import Any

import torch

import clip_anatomy
from clip_anatomy.data.masked import Labelled, Masked
from clip_anatomy.evaluation.protocols import (
    PROTOCOLS,
    ForegroundSettings,
    LabelsSettings,
    SemanticSettings,
    Settings,
)
from clip_anatomy.evaluation.published_settings import PUBLISHED, settings_like
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.registry import methods_of

__all__ = ["configuration_of"]


def configuration_of(
    clip: Clip,
    protocol: str,
    chosen: Settings,
    data: Masked | Labelled,
    *,
    taken: dict[str, str],
    like: str | None = None,
) -> dict[str, Any]:
    """Everything that decides the figures, in the order in which people ask for it.

    Args:
        clip: the model.
        protocol: of PROTOCOLS.
        chosen: the settings that were used.
        data: the data set.
        taken: what is already known of this run.
        like: whose settings were asked for.
    """
    preset = PROTOCOLS[protocol].settings
    changed = [f.name for f in fields(chosen) if getattr(chosen, f.name) != getattr(preset, f.name)]
    options = getattr(methods_of(clip).get(chosen.method), "options", None)
    return {
        **taken,
        "data": data.name,
        "classes": len(data.classes),
        **{f"read {at}" if at > 1 else "read": note for at, note in enumerate(data.notes, 1)},
        "model": clip.name,
        "weights": clip.digest,
        "input": "{} × {} pixels".format(*clip.preprocess.size),
        "patch": "{} × {} pixels".format(*clip.patch),
        **asdict(chosen),
        "method options": None
        if options is None
        else {f.name: repr(getattr(options, f.name)) for f in fields(options)},
        **_said(chosen),
        **({} if like is None else _paper(like, protocol, chosen)),
        "changed from the preset": changed,
        "clip-anatomy": clip_anatomy.__version__,
        "torch": torch.__version__,
    }


def _paper(like: str, protocol: str, chosen: Settings) -> dict[str, Any]:
    """Whose settings these are, what its authors report, and what still differs from their release."""
    paper = PUBLISHED[like]
    theirs = replace(PROTOCOLS[protocol].settings, **settings_like(like, protocol))
    other = [
        f.name for f in fields(theirs) if f.name != "background" and getattr(chosen, f.name) != getattr(theirs, f.name)
    ]
    return {
        "settings of": paper.told + (f", but {', '.join(other)}" if other else ""),
        "mIoU reported there": f"{paper.reported[protocol]} % (ViT-B/16 of OpenAI, class names of its own)",
        "not as there": f"{paper.left}; class names, unless they were given",
    }


def _said(chosen: Settings) -> dict[str, str]:
    """What is fixed by the kind of protocol."""
    if isinstance(chosen, ForegroundSettings):
        return {
            "class": "predicted by the model among ImageNet's 1,000",
            "map": "minus the mean over the classes, all layers, cut at 0, stretched to 0..1 per picture",
            "foreground": "above the map's mean",
            "mIoU": "mean of background and foreground over the data set",
            "mAP": "of the pair [1 − map, map], mean over pictures",
        }
    if isinstance(chosen, SemanticSettings):
        return {
            "scaling": "bilinear as OpenCV's, long side at most 2048",
            "scores": "bilinear to the window's pixels, averaged where windows overlap, bilinear to the original size",
            "refinement": "none",
            "mIoU": "over the data set; classes neither there nor predicted are left out",
        }
    if isinstance(chosen, LabelsSettings):
        return {"picture": "the model's own scaling and crop", "mAP": "scikit-learn's definition, mean over classes"}
    return {
        "picture": "squashed to a square, not cropped",
        "measures": "as pysodmetrics has them: 256 levels, map stretched to 0..1",
    }
