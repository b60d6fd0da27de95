"""What `explain` writes: a PNG for each picture and text, one page that holds everything, all numbers as JSON."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json, atomic_output
from clip_anatomy.errors import BadInput
from clip_anatomy.images.input_size import describe_size
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.drawings import ON_PAGE, file_name, listed_texts, on_page_note
from clip_anatomy.report.explain_figure import draw, explain_figure
from clip_anatomy.report.explain_page import ExplainedPicture, explain_page
from clip_anatomy.report.figures import need_matplotlib
from clip_anatomy.report.html import framed
from clip_anatomy.report.model_facts import model_facts
from clip_anatomy.report.shown_picture import view_of
from clip_anatomy.split.explanation import SCHEMA, Explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KIND", "figure", "html", "save", "write"]

FEW = 20  # figures that are drawn without being asked for
KIND = Kind("report", "explain.json", SCHEMA)


def save(explanation: Explanation, folder: Path, *, pictures: bool | None = None) -> Path:
    """Write figures, page and numbers into a folder, whole or not at all."""
    if pictures is not False:
        need_matplotlib()
    with atomic_output(folder, KIND) as output:
        write(explanation, output, pictures=pictures)
    return folder


def write(
    explanation: Explanation, output: AtomicOutput, progress: Progress | None = None, *, pictures: bool | None = None
) -> int:
    """Write page and numbers into an atomic output, and a figure for each picture and text.

    Args:
        explanation: what is drawn.
        output: where to; see `atomic_output`.
        progress: told how many pictures are drawn.
        pictures: whether figures are drawn; by default where there are `FEW`, since each takes a third of a second.

    Returns:
        How many figures were left away.
    """
    tell, count = progress or silent, len(explanation) * len(explanation.texts)
    drawn = count <= FEW if pictures is None else pictures
    explained: list[ExplainedPicture] = []
    for i, each in enumerate(_explained(explanation, None if drawn else ON_PAGE)):
        tell("drawing", i, len(explanation))
        if len(explained) < ON_PAGE:
            explained.append(each)
        for k, text in enumerate(explanation.texts if drawn else ()):
            output.write(
                f"{file_name(i, each.picture.label, f'{k:02d}', text.text)}.png", draw(*_drawn(explanation, each, k))
            )
    output.write(KIND.mark, as_json({**explanation.to_dict(), "files": [*output.files, REPORT]}))
    output.write(REPORT, _page(explanation, explained))
    return 0 if drawn else count


def figure(explanation: Explanation) -> "Figure":
    """Draw the first picture with the text that fits it best."""
    need_matplotlib()
    each = next(_explained(explanation))
    return explain_figure(*_drawn(explanation, each, int(each.explanation.cosine.argmax())))


def html(explanation: Explanation) -> str:
    """Return the page, in a frame for notebooks."""
    return framed(_page(explanation, list(_explained(explanation, ON_PAGE))))


def _page(explanation: Explanation, explained: list[ExplainedPicture]) -> str:
    title = f"Why {'this picture matches' if len(explanation) == 1 else 'these pictures match'} a text"
    if explanation.versus is not None:
        other = explanation.images[0].versus
        title = (
            f"What differs from {other}, text by text"
            if explanation.versus.clip is explanation.clip
            else f"What differs from the model {other}"
        )
    facts = [*model_facts(explanation.clip)]
    if explanation.size is not None:
        facts.append(("looked at", describe_size(explanation.size, explanation.clip.preprocess)))
    if explanation.templates is not None:
        facts.append(("prompts", listed_texts(explanation.templates)))
    notes = [*explanation.notes, *on_page_note(len(explained), len(explanation))]
    return explain_page(title, explained, explanation.texts, facts, notes=notes, failed=explanation.failed)


def _drawn(explanation: Explanation, each: ExplainedPicture, text: int) -> tuple[Any, ...]:
    less = "" if each.explanation.versus is None else f" minus {each.explanation.versus}"
    name, other_picture = Path(each.picture.label).name, each.explanation.other_patches is not None
    model = explanation.clip.name
    caption = f"{name}{less} · {model}" if other_picture else f"{name} · {model}{less}"
    return each.picture, each.explanation, text, explanation.texts[text].text, caption


def _explained(explanation: Explanation, most: int | None = None) -> Iterator[ExplainedPicture]:
    if explanation.pictures is None or explanation.geometries is None:
        raise BadInput(
            "these images were preprocessed tensors, which cannot be drawn. Type: explain(clip, paths, texts)"
        )
    other = (
        None
        if explanation.versus is None or explanation.versus.clip is not explanation.clip
        else next(_explained(explanation.versus)).picture
    )
    some = zip(explanation.pictures, explanation.geometries, explanation.images, strict=True)
    for picture, where, split in islice(some, most):
        shown = view_of(picture.read(keep_mode=True), picture.name, where)
        yield ExplainedPicture(shown, split, picture.caption, other)
