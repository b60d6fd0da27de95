"""One self-contained HTML page: plain words first, every number behind them, no network, no script needed to read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_anatomy.loading.typed_texts import TypedText
from clip_anatomy.report.html import page
from clip_anatomy.report.map_overlay import least_share
from clip_anatomy.report.palette import ValueGrid, ends_of, limit_of
from clip_anatomy.report.shown_picture import ShownPicture
from clip_anatomy.split.picture_explanation import PictureExplanation, sink_patch, strongest_region, summands

__all__ = ["ExplainedPicture", "explain_page"]

LOUDEST = 5
OPEN = 3  # pictures whose cards stand open on the page


@dataclass(frozen=True)
class ExplainedPicture:
    """Hold one picture and its split cosines.

    Attributes:
        picture: as figures show it.
        explanation: its cosines with all texts, split.
        caption: what is known about it.
        other: the picture that it is the difference to, if it is.
    """

    picture: ShownPicture
    explanation: PictureExplanation
    caption: str = ""
    other: ShownPicture | None = None


def explain_page(
    title: str,
    explained: Sequence[ExplainedPicture],
    typed: Sequence[TypedText],
    facts: Sequence[tuple[str, str]],
    *,
    notes: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page of `explain`.

    Args:
        title: the headline.
        explained: the pictures that could be read.
        typed: the texts.
        facts: name and value of what is needed to make the page again.
        notes: what a reader must know before believing a number.
        failed: name and error of pictures that could not be read.
    """
    limits = map_limits([each.explanation for each in explained])
    sigmoid = any(each.explanation.sigmoid for each in explained)
    return page(
        "explain.html",
        kind="explain",
        script="explain.js",
        title=title,
        several=len(typed) > 1,
        versus=explained[0].explanation.versus if explained else None,
        sigmoid=sigmoid,
        rule="probability" if sigmoid else f"share among these texts; {100 / max(1, len(typed)):.1f} % says nothing",
        many=len(explained) > OPEN,
        images=[_image(each, typed, limits) for each in explained],
        questions=typed,
        notes=notes,
        failed=failed,
        facts_of_model=facts,
        residue=max((float(each.explanation.residue.abs().max()) for each in explained), default=0.0),
        resnet=bool(explained) and all(not len(each.explanation.mlps) for each in explained),
    )


def map_limits(explanations: Sequence[PictureExplanation]) -> dict[str, float]:
    """Return the value with the full colour of each view's maps, for all pictures and texts of the page: what says little looks pale."""
    limits: dict[str, float] = {}
    for each in explanations:
        for name, view in _views(each).items():
            for patches in (view.patches, *([] if view.other_patches is None else [view.other_patches])):
                limits[name] = max(limits.get(name, 0.0), least_share(patches.shape[:2]), limit_of(patches))
    return limits


def _views(explanation: PictureExplanation) -> dict[str, PictureExplanation]:
    """Return the explanation against the other texts, where there are any, and alone."""
    return ({"versus": explanation.contrast()} if len(explanation.cosine) > 1 else {}) | {"alone": explanation}


def _image(each: ExplainedPicture, typed: Sequence[TypedText], limits: Mapping[str, float]) -> dict[str, Any]:
    explanation = each.explanation
    views = _views(explanation)
    texts = [
        {
            "question": typed[text],
            "cosine": float(explanation.cosine[text]),
            "cosines": None if explanation.cosines is None else [float(each[text]) for each in explanation.cosines],
            "share": float(explanation.probability[text]),
            "views": [_view(name, view, text, limits[name]) for name, view in views.items()],
        }
        for text in explanation.cosine.argsort(descending=True).tolist()
    ]
    patches = explanation.patches.shape[:2]
    return {
        "picture": each.picture,
        "other": each.other,
        "versus": explanation.versus,
        "caption": each.caption,
        "patches": patches,
        "sink": sink_patch(explanation),
        "one_part": explanation.one_part,
        "texts": texts,
    }


def _view(name: str, explanation: PictureExplanation, text: int, limit: float) -> dict[str, Any]:
    """Tell what a card shows of one text, alone or against the others; the map's colours on the scale of the page."""
    parts, patches = explanation.ranked_parts(text), explanation.ranked_patches(text)
    layers = [explanation.layers(k).abs().flatten() for k in range(explanation.cosine.shape[0])]
    longest = max((float(one.max()) for one in layers if len(one)), default=0.0) or 1.0
    return {
        "name": name,
        "cosine": float(explanation.cosine[text]),
        "loudest": max(parts, key=lambda part: abs(part.value)),
        "region": strongest_region(explanation.patches[..., text]),
        "map": ValueGrid(explanation.patches[..., text], limit),
        "other_map": None
        if explanation.other_patches is None
        else ValueGrid(explanation.other_patches[..., text], limit),
        "ends": ends_of(explanation.patches, limit),
        "heads": ValueGrid(explanation.heads[..., text], limit_of(explanation.heads)),
        "layers": ValueGrid(explanation.layers(text), longest),
        "summands": summands(explanation, text),
        "yes": [part for part in parts[:LOUDEST] if part.value > 0],
        "no": [part for part in parts[::-1][:LOUDEST] if part.value < 0],
        "places": [patch for patch in (*patches[:2], *patches[:-3:-1]) if patch.value],
    }
