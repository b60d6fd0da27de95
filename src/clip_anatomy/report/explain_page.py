"""One self-contained HTML page: plain words first, every number behind them, no network, no script needed to read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_anatomy.report.html import page
from clip_anatomy.report.palette import ValueGrid, ends_of, limit_of
from clip_anatomy.report.shown_picture import Picture
from clip_anatomy.report.typed_texts import Question
from clip_anatomy.split.explanation import Answer, loudest_region, sink, summands

__all__ = ["ExplainedPicture", "explain_page"]

LOUDEST = 5


@dataclass(frozen=True)
class ExplainedPicture:
    """Hold one picture and its split cosines.

    Attributes:
        picture: as figures show it.
        answer: the cosines with all texts, split.
        caption: what is known about it.
    """

    picture: Picture
    answer: Answer
    caption: str = ""


def explain_page(
    title: str,
    explained: Sequence[ExplainedPicture],
    questions: Sequence[Question],
    facts: Sequence[tuple[str, str]],
    *,
    notes: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page of `explain`.

    Args:
        title: the headline.
        explained: the pictures that could be read.
        questions: the texts.
        facts: name and value of what is needed to make the page again.
        notes: what a reader must know before believing a number.
        failed: name and error of pictures that could not be read.
    """
    return page(
        "explain.html",
        kind="explain",
        script="explain.js",
        title=title,
        several=len(questions) > 1,
        images=[_image(each, questions) for each in explained],
        questions=questions,
        notes=notes,
        failed=failed,
        facts_of_model=facts,
        residue=max((float(each.answer.residue.abs().max()) for each in explained), default=0.0),
        resnet=bool(explained) and all(not len(each.answer.mlps) for each in explained),
    )


def _image(each: ExplainedPicture, questions: Sequence[Question]) -> dict[str, Any]:
    found = each.answer
    views = {"versus": found.contrast()} if len(questions) > 1 else {}
    views["alone"] = found
    texts = [
        {
            "question": questions[text],
            "cosine": float(found.cosine[text]),
            "share": float(found.probability[text]),
            "views": [_view(name, answer, text) for name, answer in views.items()],
        }
        for text in found.cosine.argsort(descending=True).tolist()
    ]
    patches = found.patches.shape[:2]
    return {"picture": each.picture, "caption": each.caption, "patches": patches, "sink": sink(found), "texts": texts}


def _view(name: str, found: Answer, text: int) -> dict[str, Any]:
    """What a card shows of one text, alone or against the others; colours on one scale for all texts of the picture."""
    voices, places = found.voices(text), found.places(text)
    limit = limit_of(found.patches)
    longest = max(float(found.layers(k).abs().max()) for k in range(found.cosine.shape[0])) or 1.0
    return {
        "name": name,
        "cosine": float(found.cosine[text]),
        "loudest": max(voices, key=lambda voice: abs(voice.value)),
        "region": loudest_region(found.patches[..., text]),
        "map": ValueGrid(found.patches[..., text], limit),
        "ends": ends_of(found.patches, limit),
        "heads": ValueGrid(found.heads[..., text], limit_of(found.heads)),
        "layers": ValueGrid(found.layers(text), longest),
        "summands": summands(found, text),
        "yes": [voice for voice in voices[:LOUDEST] if voice.value > 0],
        "no": [voice for voice in voices[::-1][:LOUDEST] if voice.value < 0],
        "places": [place for place in (*places[:2], *places[:-3:-1]) if place.value],
    }
