"""What `explain_text` writes: a page and a figure that say, word by word and head by head, why a sentence means what it does; numbers as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.naming.text_explanation import SCHEMA, TextExplanation
from clip_anatomy.report.figures import FAINT, INK, LINE, PLAIN, Canvas, canvas, draw_grid, ink, png, ticks
from clip_anatomy.report.html import data_uri, encoded, framed, page
from clip_anatomy.report.pairs_page import css_colour
from clip_anatomy.report.palette import ValueGrid, limit_of
from clip_anatomy.report.thumbnails import small
from clip_anatomy.split.picture_explanation import signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "KIND", "figure", "html", "write"]

NUMBERS, FIGURE = "explain-text.json", "explain-text.png"
KIND = Kind("explain-text", NUMBERS, SCHEMA, (NUMBERS, FIGURE, REPORT))
STRONGEST, DRAWN = 6, 4  # parts that are listed; targets in the figure
WIDE, HEAD, ROW, SIDE = 11.0, 1.0, 1.75, 240  # inches; pixels of a picture
ON_PAGE = 24  # targets on the page


def write(explanation: TextExplanation, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    output.write(FIGURE, png(figure(explanation)))
    output.write(NUMBERS, as_json(explanation.to_dict()))
    output.write(REPORT, _page(explanation))


def html(explanation: TextExplanation) -> str:
    """Return the page, in a frame for notebooks."""
    return framed(_page(explanation))


def _page(explanation: TextExplanation) -> str:
    return page(
        "text.html",
        kind="explain-text",
        script=None,
        title="Why this sentence means that to CLIP",
        explanation=explanation,
        targets=[_target(explanation, at) for at in range(min(len(explanation.targets), ON_PAGE))],
    )


def _target(explanation: TextExplanation, at: int) -> dict[str, Any]:
    shares, words = explanation.shares, explanation.by_word
    limit, heads, layers = limit_of(words), shares.heads[..., at], shares.layers(at)
    picture = _picture(explanation, explanation.targets[at])
    cosine, rest = (
        float(shares.cosine[at]),
        [
            ("start and end marks", float(shares.class_token[at])),
            ("MLPs", float(shares.mlps[:, at].sum())),
            ("input embedding", float(shares.input_embedding[at])),
            ("biases", float(shares.bias[at])),
        ],
    )
    return {
        "name": explanation.targets[at],
        "picture": None if picture is None else data_uri(encoded(small(picture, SIDE))),
        "cosine": cosine,
        "words": [
            (word, value, css_colour(value, limit))
            for word, value in zip(explanation.words, words[:, at].tolist(), strict=True)
        ],
        "rest": rest,
        "heads": ValueGrid(heads, limit_of(shares.heads)),
        "layers": ValueGrid(layers, limit_of(torch.stack([shares.layers(k) for k in range(len(explanation.targets))]))),
        "strongest": [
            (name, value, explanation.named(name)) for name, value in explanation.strongest_parts(at, STRONGEST)
        ],
    }


def _picture(explanation: TextExplanation, name: str) -> Any:
    return next((one.read() for one in explanation.pictures or () if one.name == name), None)


def figure(explanation: TextExplanation) -> "Figure":
    """Draw the sentence once for each of its first targets, coloured by word, with the heads of the text tower and the loudest of them."""
    rows = min(DRAWN, len(explanation.targets))
    with canvas(WIDE, HEAD + ROW * rows + 0.15) as sheet:
        sheet.text(0.3, 0.38, f"Why “{shorten(explanation.sentence, 70)}” means that to CLIP", 13, weight="bold")
        caption = "shares of the cosine by the text tower's exact split; orange raises it, blue lowers it"
        sheet.text(0.3, 0.66, caption, 9, color=FAINT)
        for at in range(rows):
            _draw_target(sheet, explanation, at, HEAD + ROW * at)
    return sheet.figure


def _draw_target(sheet: Canvas, explanation: TextExplanation, at: int, top: float) -> None:
    target, left = explanation.targets[at], 0.3
    picture = _picture(explanation, target)
    if picture is not None:
        view = sheet.axes(left, top + 0.05, 1.2, 1.2)
        view.imshow(small(picture, SIDE))
        view.set_axis_off()
        left = 1.7
    name = Path(target).name if picture is not None else f"“{target}”"
    sheet.text(
        left,
        top + 0.15,
        f"{shorten(name, 52)}: cosine {signed(float(explanation.shares.cosine[at]))}",
        10,
        weight="bold",
    )
    _draw_words(sheet, explanation, at, left, top + 0.4)
    grid = sheet.axes(6.5, top + 0.08, 1.4, 1.25)
    draw_grid(grid, explanation.shares.heads[..., at], limit_of(explanation.shares.heads))
    grid.set_yticks(ticks(len(explanation.shares.heads)))
    grid.set_ylabel("layer", fontsize=7, color=FAINT)
    grid.tick_params(labelsize=6, colors=FAINT)
    for line, (part, value) in enumerate(explanation.strongest_parts(at, 4)):
        sheet.text(8.1, top + 0.2 + 0.31 * line, f"{part} {signed(value)}", 8.5, color=ink(value))
        sheet.text(8.1, top + 0.34 + 0.31 * line, shorten(explanation.named(part).strip(" ()"), 52), 7, color=FAINT)


def _draw_words(sheet: Canvas, explanation: TextExplanation, at: int, left: float, top: float) -> None:
    """Draw a bar a word, in the order of the sentence, and one for all that is no word."""
    values = explanation.by_word[:, at].tolist()
    rest = float(explanation.shares.cosine[at]) - sum(values)
    most = max(map(abs, (*values, rest)))
    axes = sheet.axes(left, top, 6.1 - left, 0.95)
    axes.bar(range(len(values) + 1), [*values, rest], color=[ink(value) for value in (*values, rest)], width=0.7)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set_ylim(-1.25 * most if min(*values, rest) < 0 else 0, 1.35 * most)
    labels = [*(shorten(word, 14) for word in explanation.words), "(rest)"]
    axes.set_xticks(range(len(labels)), labels, fontsize=8, **PLAIN)
    if len(labels) > 9:
        axes.tick_params(axis="x", rotation=45)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for place, value in enumerate((*values, rest)):
        axes.text(place, max(value, 0) + 0.04 * most, signed(value, 3), ha="center", fontsize=7, color=INK)
    for side in axes.spines.values():
        side.set_visible(False)
