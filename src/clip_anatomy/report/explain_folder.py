"""What `explain` writes: a PNG for each picture and text, one page that holds everything, all numbers as JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_anatomy.atomic_output import REPORT, Kind, Staging, as_json, slug, staged
from clip_anatomy.errors import BadInput
from clip_anatomy.progress import Progress, silent
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

KIND = Kind("report", "explain.json", SCHEMA)


def save(found: Explanation, folder: Path) -> Path:
    """Write figures, page and numbers into a folder, whole or not at all."""
    need_matplotlib()
    with staged(folder, KIND) as staging:
        write(found, staging)
    return folder


def write(found: Explanation, staging: Staging, progress: Progress | None = None) -> None:
    """Draw every picture and text, and write page and numbers into a staged folder.

    Args:
        found: what is drawn.
        staging: an entered staging folder.
        progress: told how many figures are drawn.
    """
    tell, count = progress or silent, len(found.texts)
    explained: list[ExplainedPicture] = []
    for i, each in enumerate(_explained(found)):
        explained.append(each)
        for k, text in enumerate(found.texts):
            tell("drawing", i * count + k, len(found) * count)
            name = f"{i:03d}-{slug(Path(each.picture.label).stem)}-{k:02d}-{slug(text.text)}.png"
            staging.write(name, draw(*_drawn(found, each, k)))
    staging.write(KIND.mark, as_json({**found.to_dict(), "files": [*staging.files, REPORT]}))
    staging.write(REPORT, _page(found, explained))


def figure(found: Explanation) -> "Figure":
    """Draw the first picture with the text that fits it best."""
    need_matplotlib()
    each = next(_explained(found))
    return explain_figure(*_drawn(found, each, int(each.explanation.cosine.argmax())))


def html(found: Explanation) -> str:
    """Return the page, in a frame for notebooks."""
    return framed(_page(found, list(_explained(found))))


def _page(found: Explanation, explained: list[ExplainedPicture]) -> str:
    title = f"Why {'this picture matches' if len(found) == 1 else 'these pictures match'} a text"
    facts = model_facts(found.clip)
    return explain_page(title, explained, found.texts, facts, notes=found.notes, failed=found.failed)


def _drawn(found: Explanation, each: ExplainedPicture, text: int) -> tuple[Any, ...]:
    caption = f"{Path(each.picture.label).name} · {found.clip.name}"
    return each.picture, each.explanation, text, found.texts[text].text, caption


def _explained(found: Explanation) -> Iterator[ExplainedPicture]:
    if found.pictures is None or found.geometries is None:
        raise BadInput(
            "these images were preprocessed tensors, which cannot be drawn. Type: explain(clip, paths, texts)"
        )
    for picture, where, split in zip(found.pictures, found.geometries, found.images, strict=True):
        yield ExplainedPicture(view_of(picture.read(keep_mode=True), picture.name, where), split, picture.caption)
