"""A repair as a folder: edit.json for `clip-anatomy apply`, repair.png and repair.json."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json, atomic_output
from clip_anatomy.edits.edit_files import remove_unnamed
from clip_anatomy.report.html import notebook_figures

if TYPE_CHECKING:
    from PIL import Image

    from clip_anatomy.studies.repair import RepairResult
    from clip_anatomy.studies.text_repair import TextRepair
    from clip_anatomy.studies.typo_repair import TypoRepair

    Repaired = RepairResult | TypoRepair | TextRepair

__all__ = ["EDIT", "figure", "html", "repair_folder", "save"]

EDIT, FIGURE, NUMBERS = "edit.json", "repair.png", "repair.json"
KIND = Kind("repair", NUMBERS, "clip-anatomy/repair/", (EDIT, FIGURE, NUMBERS))


@contextmanager
def repair_folder(folder: Path | None) -> "Generator[Callable[[Repaired], None]]":
    """Make sure that a folder can be written before any work is done, and fill it whole or not at all.

    Args:
        folder: where; None to write nothing.

    Yields:
        A function to call with the result.

    Raises:
        OutputError: it cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    if folder is None:
        yield lambda result: None
        return
    from clip_anatomy.report.figures import need_matplotlib

    need_matplotlib()
    with atomic_output(folder, KIND) as output:
        yield lambda result: _write(result, output)
    remove_unnamed(folder / EDIT)


def save(result: "Repaired", folder: Path) -> Path:
    """Write edit, figure and numbers into a folder."""
    with repair_folder(folder) as write:
        write(result)
    return folder


def figure(result: "Repaired") -> "Image.Image":
    """Draw the repair as one picture."""
    from PIL import Image

    return Image.open(BytesIO(_png(result)))


def html(result: "Repaired") -> str:
    """Return the figure and the summary for a notebook."""
    return notebook_figures([(_png(result), "repair", result.summary())])


def _write(result: "Repaired", output: AtomicOutput) -> None:
    output.write(FIGURE, _png(result))
    result.edit.save(output.folder / EDIT)
    output.write(NUMBERS, as_json(result.to_dict()))


def _png(result: "Repaired") -> bytes:
    """Draw the figure, with the pictures behind the ablated parts or those that were attacked."""
    from clip_anatomy.progress import shown
    from clip_anatomy.report.repair_figure import draw_repair
    from clip_anatomy.report.text_repair_figure import draw_text_repair
    from clip_anatomy.report.thumbnails import thumbnails
    from clip_anatomy.report.typo_figure import draw_typo
    from clip_anatomy.studies.example_images import changed_answers, cue_examples
    from clip_anatomy.studies.repair_ablations import checked_parts
    from clip_anatomy.studies.text_repair import TextRepair
    from clip_anatomy.studies.typo_repair import TypoRepair

    if isinstance(result, TypoRepair):
        return draw_typo(result)
    if isinstance(result, TextRepair):
        return draw_text_repair(result)
    store, cue_search, effect = result.store, result.cue, result.effect
    with shown("drawing"):
        examples = cue_examples(store, cue_search, checked_parts(store, effect.ablation))
        changed = changed_answers(store, cue_search, effect)
        rows = {row.id: row for one in examples for row in one.rows} | {one.row.id: one.row for one in changed.shown}
        pictures = {row.id: image for row, image, _ in thumbnails(rows.values()) if image is not None}
        caption = f"{store.path.name}, model {store.manifest.model}"
        return draw_repair(cue_search, effect, caption, changed=changed, examples=examples, pictures=pictures)
