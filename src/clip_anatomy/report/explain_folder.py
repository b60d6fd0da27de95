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


def save(found: Explanation, folder: Path, *, pictures: bool | None = None) -> Path:
    """Write figures, page and numbers into a folder, whole or not at all."""
    if pictures is not False:
        need_matplotlib()
    with atomic_output(folder, KIND) as output:
        write(found, output, pictures=pictures)
    return folder


def write(
    found: Explanation, output: AtomicOutput, progress: Progress | None = None, *, pictures: bool | None = None
) -> int:
    """Write page and numbers into an atomic output, and a figure for each picture and text.

    Args:
        found: what is drawn.
        output: where to; see `atomic_output`.
        progress: told how many pictures are drawn.
        pictures: whether figures are drawn; by default where there are `FEW`, since each takes a third of a second.

    Returns:
        How many figures were left away.
    """
    tell, count = progress or silent, len(found) * len(found.texts)
    drawn = count <= FEW if pictures is None else pictures
    explained: list[ExplainedPicture] = []
    for i, each in enumerate(_explained(found, None if drawn else ON_PAGE)):
        tell("drawing", i, len(found))
        if len(explained) < ON_PAGE:
            explained.append(each)
        for k, text in enumerate(found.texts if drawn else ()):
            output.write(
                f"{file_name(i, each.picture.label, f'{k:02d}', text.text)}.png", draw(*_drawn(found, each, k))
            )
    output.write(KIND.mark, as_json({**found.to_dict(), "files": [*output.files, REPORT]}))
    output.write(REPORT, _page(found, explained))
    return 0 if drawn else count


def figure(found: Explanation) -> "Figure":
    """Draw the first picture with the text that fits it best."""
    need_matplotlib()
    each = next(_explained(found))
    return explain_figure(*_drawn(found, each, int(each.explanation.cosine.argmax())))


def html(found: Explanation) -> str:
    """Return the page, in a frame for notebooks."""
    return framed(_page(found, list(_explained(found, ON_PAGE))))


def _page(found: Explanation, explained: list[ExplainedPicture]) -> str:
    title = f"Why {'this picture matches' if len(found) == 1 else 'these pictures match'} a text"
    if found.versus is not None:
        other = found.images[0].versus
        title = (
            f"What differs from {other}, text by text"
            if found.versus.clip is found.clip
            else f"What differs from the model {other}"
        )
    facts = [*model_facts(found.clip)]
    if found.size is not None:
        facts.append(("looked at", describe_size(found.size, found.clip.preprocess)))
    if found.templates is not None:
        facts.append(("prompts", listed_texts(found.templates)))
    notes = [*found.notes, *on_page_note(len(explained), len(found))]
    return explain_page(title, explained, found.texts, facts, notes=notes, failed=found.failed)


def _drawn(found: Explanation, each: ExplainedPicture, text: int) -> tuple[Any, ...]:
    less = "" if each.explanation.versus is None else f" minus {each.explanation.versus}"
    caption = f"{Path(each.picture.label).name} · {found.clip.name}{less}"
    return each.picture, each.explanation, text, found.texts[text].text, caption


def _explained(found: Explanation, most: int | None = None) -> Iterator[ExplainedPicture]:
    if found.pictures is None or found.geometries is None:
        raise BadInput(
            "these images were preprocessed tensors, which cannot be drawn. Type: explain(clip, paths, texts)"
        )
    other = (
        None if found.versus is None or found.versus.clip is not found.clip else next(_explained(found.versus)).picture
    )
    some = zip(found.pictures, found.geometries, found.images, strict=True)
    for picture, where, split in islice(some, most):
        shown = view_of(picture.read(keep_mode=True), picture.name, where)
        yield ExplainedPicture(shown, split, picture.caption, other)
