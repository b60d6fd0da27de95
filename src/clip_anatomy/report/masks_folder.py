"""What `segment` writes: masks as PNG, COCO JSON and npz, prompts for SAM, paintings, a page; one picture at a time."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from markupsafe import Markup
from numpy import ndarray
from PIL import Image

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json, atomic_output
from clip_anatomy.errors import BadInput, OutputError
from clip_anatomy.loading.typed_texts import TypedText, shorten
from clip_anatomy.maps.masks import SCHEMA, Masks
from clip_anatomy.maps.pamr import REFINERS
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.contact_sheet import Cell, SheetRow, contact_sheets, fitted
from clip_anatomy.report.drawings import (
    ON_PAGE,
    ON_SHEETS,
    file_name,
    image_bytes,
    listed_texts,
    on_page_note,
    write_sheets,
)
from clip_anatomy.report.html import framed
from clip_anatomy.report.map_legend import with_swatches
from clip_anatomy.report.maps_page import SIDE, masks_page, masks_section
from clip_anatomy.report.mask_files import class_colours, painted, png, write_npz
from clip_anatomy.report.model_facts import model_facts
from clip_anatomy.report.point_marks import marked

__all__ = ["KIND", "figure", "html", "overlaid", "save", "write"]

KIND = Kind("masks", "segment.json", SCHEMA)
COCO, NPZ, PROMPTS = "masks.coco.json", "masks.npz", "prompts.json"
LONGEST = 2048  # side of the paintings


def save(found: Masks, folder: Path, *, pictures: bool | None = None) -> Path:
    """Write masks, prompts, paintings and page into a folder, whole or not at all."""
    with atomic_output(folder, KIND) as output:
        write(found, output, pictures=pictures)
    return folder


def write(
    found: Masks, output: AtomicOutput, progress: Progress | None = None, *, pictures: bool | None = None
) -> None:
    """Write every picture, one after the other, into an atomic output.

    Args:
        found: what is written.
        output: where to; see `atomic_output`.
        progress: told how many pictures are written.
        pictures: whether paintings and contact sheets are written too, as they are by default; masks are numbers, and always are.
    """
    tell, drawn = progress or silent, pictures is not False
    sections: list[Markup] = []
    rows: list[SheetRow] = []
    for i, name in enumerate(found.names):
        tell("writing masks", i, len(found))
        labels, picture = found.labels[i], _picture(found, i)
        output.write(f"{file_name(i, name, 'mask')}.png", png(labels, found.texts))
        on_sheet = drawn and sum(len(row.cells) for row in rows) < ON_SHEETS
        if not drawn and len(sections) >= ON_PAGE:
            continue
        painting = _painting(picture, labels, len(found.texts))
        if drawn:
            ending, content = image_bytes(with_swatches(painting, [(hue, text.short) for text, hue in _colours(found)]))
            output.write(f"{file_name(i, name, 'painted')}.{ending}", content)
        if len(sections) >= ON_PAGE and not on_sheet:
            continue
        cells = _cells(found, i, picture, painting)
        rows += [SheetRow(Path(name).name, cells)] if on_sheet else []
        if len(sections) < ON_PAGE:
            sections.append(masks_section(labels, name, cells))
    tell("writing the page", 0, 1)
    numbers = found.to_dict()
    try:
        write_npz(output.folder / NPZ, found)
    except OSError as error:
        raise OutputError(
            f"{output.out / NPZ} cannot be written: {error.strerror}. Type another place: --out NAME"
        ) from error
    output.write(COCO, as_json(numbers.pop("coco")))
    kept = ("image", "width", "height", "prompts", "together")
    prompts = [{key: value for key, value in one.items() if key in kept} for one in numbers["images"]]
    output.write(PROMPTS, as_json({"how": str(found.how), "images": prompts}))
    write_sheets(output, _sheets(found, rows))
    output.write(REPORT, _page(found, sections))
    output.write(KIND.mark, as_json({**numbers, "files": output.files}))


def figure(found: Masks) -> Image.Image:
    """Draw the masks of the first picture as a contact sheet."""
    picture = _picture(found, 0)
    cells = _cells(found, 0, picture, _painting(picture, found.labels[0], len(found.texts)))
    return Image.open(BytesIO(_sheets(found, [SheetRow(Path(found.names[0]).name, cells)])[0]))


def overlaid(found: Masks, image: int) -> Image.Image:
    """Paint the masks over their picture, with the texts below."""
    painting = _painting(_picture(found, image), found.labels[image], len(found.texts))
    return with_swatches(painting, [(hue, text.short) for text, hue in _colours(found)])


def html(found: Masks) -> str:
    """Return the page, in a frame for notebooks."""
    sections: list[Markup] = []
    for i, name in enumerate(found.names[:ON_PAGE]):
        labels, picture = found.labels[i], _picture(found, i)
        cells = _cells(found, i, picture, _painting(picture, labels, len(found.texts)))
        sections.append(masks_section(labels, name, cells))
    return framed(_page(found, sections))


def _picture(found: Masks, image: int) -> Image.Image:
    if found.maps.pictures is None:
        raise BadInput(
            "these images were preprocessed tensors, which cannot be drawn. Type: segment(clip, paths, texts)"
        )
    return found.maps.pictures[image].read()


def _painting(picture: Image.Image, labels: Int16[ndarray, "row col"], texts: int) -> Image.Image:
    """Paint the labels over the picture; large ones are scaled down, since paintings are for eyes and the mask keeps every pixel."""
    scale = min(1.0, LONGEST / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if labels.shape != (picture.height, picture.width):
        rows, cols = (np.arange(n) * m // n for n, m in zip((size[1], size[0]), labels.shape, strict=True))
        labels = labels[np.ix_(rows, cols)]
    return Image.fromarray(painted(picture, labels, texts))


def _cells(found: Masks, image: int, picture: Image.Image, painting: Image.Image) -> list[Cell]:
    """Return cells of one picture on the contact sheet: itself, its masks, the points and boxes of each text and of groups."""
    colours, shares = class_colours(len(found.texts)), found.shares(image)
    cells = [
        Cell(fitted(picture, SIDE), "the picture"),
        Cell(fitted(painting, SIDE), "masks" if len(found.texts) > 1 else "mask"),
    ]
    for k, text in enumerate(found.texts):
        if shares[text]:
            points = marked(picture, found.prompts(image, k), colours[k])
            cells.append(Cell(points, f"{shorten(text)} {shares[text]:.1%}"))
    for group in found.together:
        if sum(shares[text] > 0 for text in group) > 1:  # else it is what one of them says already
            prompts = found.prompts(image, *group)
            all_of_them = len(group) == len(found.texts)
            words = "points for all together" if all_of_them else f"points for {shorten(prompts.text)}"
            cells.append(Cell(marked(picture, prompts, (90, 90, 90)), words))
    return cells


def _title(found: Masks) -> str:
    return f"Cut out: {listed_texts(found.texts)}"


def _sheets(found: Masks, rows: Sequence[SheetRow]) -> list[bytes]:
    legend = [((colour,), text.short) for text, colour in _colours(found)]
    name = found.maps.run.clip.name if found.maps.run else found.maps.method
    return contact_sheets(_title(found), f"{name} - {found.how}", rows, legend)


def _colours(found: Masks) -> list[tuple[TypedText, tuple[int, int, int]]]:
    texts = found.typed or tuple(map(TypedText, found.texts))
    return list(zip(texts, class_colours(len(texts)), strict=True))


def _page(found: Masks, sections: Sequence[Markup]) -> str:
    run = found.maps.run
    facts = [*(model_facts(run.clip) if run else []), ("masks", str(found.how))]
    facts += [("refined by", about) for name, about in REFINERS.items() if name == found.how.refine]
    notes = [*found.all_notes, *on_page_note(len(sections), len(found))]
    texts, colours = zip(*_colours(found), strict=True)
    return masks_page(_title(found), sections, texts, colours, notes=notes, failed=found.failed, facts=facts)
