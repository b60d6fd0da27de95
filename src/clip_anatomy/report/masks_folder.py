"""What `segment` writes: masks as PNG, COCO JSON and npz, prompts for SAM, paintings, a page; one picture at a time."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from markupsafe import Markup
from numpy import ndarray
from PIL import Image

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json
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

__all__ = ["KIND", "figure", "html", "overlaid", "write"]

KIND = Kind("masks", "segment.json", SCHEMA)
COCO, NPZ, PROMPTS = "masks.coco.json", "masks.npz", "prompts.json"
LONGEST = 2048  # side of the paintings


def write(
    masks: Masks, output: AtomicOutput, progress: Progress | None = None, *, pictures: bool | None = None
) -> None:
    """Write every picture, one after the other, into an atomic output.

    Args:
        masks: what is written.
        output: where to; see `atomic_output`.
        progress: told how many pictures are written.
        pictures: whether paintings and contact sheets are written too, as they are by default; masks are numbers, and always are.
    """
    tell, drawn = progress or silent, pictures is not False
    sections: list[Markup] = []
    rows: list[SheetRow] = []
    for i, name in enumerate(masks.names):
        tell("writing masks", i, len(masks))
        labels, picture = masks.labels[i], _picture(masks, i)
        output.write(f"{file_name(i, name, 'mask')}.png", png(labels, masks.texts))
        on_sheet = drawn and sum(len(row.cells) for row in rows) < ON_SHEETS
        if not drawn and len(sections) >= ON_PAGE:
            continue
        painting = _painting(picture, labels, len(masks.texts))
        if drawn:
            ending, content = image_bytes(with_swatches(painting, [(hue, text.short) for text, hue in _colours(masks)]))
            output.write(f"{file_name(i, name, 'painted')}.{ending}", content)
        if len(sections) >= ON_PAGE and not on_sheet:
            continue
        cells = _cells(masks, i, picture, painting)
        rows += [SheetRow(Path(name).name, cells)] if on_sheet else []
        if len(sections) < ON_PAGE:
            sections.append(masks_section(labels, name, cells))
    tell("writing the page", 0, 1)
    numbers = masks.to_dict()
    try:
        write_npz(output.folder / NPZ, masks)
    except OSError as error:
        raise OutputError(
            f"{output.out / NPZ} cannot be written: {error.strerror}. Type another place: out=NAME"
        ) from error
    output.write(COCO, as_json(numbers.pop("coco")))
    fields = ("image", "width", "height", "prompts", "together")
    prompts = [{key: value for key, value in one.items() if key in fields} for one in numbers["images"]]
    output.write(PROMPTS, as_json({"how": str(masks.how), "images": prompts}))
    write_sheets(output, _sheets(masks, rows))
    output.write(REPORT, _page(masks, sections))
    output.write(KIND.mark, as_json({**numbers, "files": output.files}))


def figure(masks: Masks) -> Image.Image:
    """Draw the masks of the first picture as a contact sheet."""
    picture = _picture(masks, 0)
    cells = _cells(masks, 0, picture, _painting(picture, masks.labels[0], len(masks.texts)))
    return Image.open(BytesIO(_sheets(masks, [SheetRow(Path(masks.names[0]).name, cells)])[0]))


def overlaid(masks: Masks, image: int) -> Image.Image:
    """Paint the masks over their picture, with the texts below."""
    painting = _painting(_picture(masks, image), masks.labels[image], len(masks.texts))
    return with_swatches(painting, [(hue, text.short) for text, hue in _colours(masks)])


def html(masks: Masks) -> str:
    """Return the page, in a frame for notebooks."""
    sections: list[Markup] = []
    for i, name in enumerate(masks.names[:ON_PAGE]):
        labels, picture = masks.labels[i], _picture(masks, i)
        cells = _cells(masks, i, picture, _painting(picture, labels, len(masks.texts)))
        sections.append(masks_section(labels, name, cells))
    return framed(_page(masks, sections))


def _picture(masks: Masks, image: int) -> Image.Image:
    if masks.maps.pictures is None:
        raise BadInput(
            "these images were preprocessed tensors, which cannot be drawn. Type: segment(clip, paths, texts)"
        )
    return masks.maps.pictures[image].read()


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


def _cells(masks: Masks, image: int, picture: Image.Image, painting: Image.Image) -> list[Cell]:
    """Return cells of one picture on the contact sheet: itself, its masks, the points and boxes of each text and of groups."""
    colours, shares = class_colours(len(masks.texts)), masks.shares(image)
    cells = [
        Cell(fitted(picture, SIDE), "the picture"),
        Cell(fitted(painting, SIDE), "masks" if len(masks.texts) > 1 else "mask"),
    ]
    for k, text in enumerate(masks.texts):
        if shares[text]:
            points = marked(picture, masks.prompts(image, k), colours[k])
            cells.append(Cell(points, f"{shorten(text)} {shares[text]:.1%}"))
    for group in masks.together:
        if sum(shares[text] > 0 for text in group) > 1:  # else it is what one of them says already
            prompts = masks.prompts(image, *group)
            all_of_them = len(group) == len(masks.texts)
            caption = "points for all together" if all_of_them else f"points for {shorten(prompts.text)}"
            cells.append(Cell(marked(picture, prompts, (90, 90, 90)), caption))
    return cells


def _title(masks: Masks) -> str:
    return f"Cut out: {listed_texts(masks.texts)}"


def _sheets(masks: Masks, rows: Sequence[SheetRow]) -> list[bytes]:
    legend = [((colour,), text.short) for text, colour in _colours(masks)]
    name = masks.maps.run.clip.name if masks.maps.run else masks.maps.method
    return contact_sheets(_title(masks), f"{name} - {masks.how}", rows, legend)


def _colours(masks: Masks) -> list[tuple[TypedText, tuple[int, int, int]]]:
    texts = masks.typed or tuple(map(TypedText, masks.texts))
    return list(zip(texts, class_colours(len(texts)), strict=True))


def _page(masks: Masks, sections: Sequence[Markup]) -> str:
    run = masks.maps.run
    facts = [*(model_facts(run.clip) if run else []), ("masks", str(masks.how))]
    facts += [("refined by", about) for name, about in REFINERS.items() if name == masks.how.refine]
    notes = [*masks.all_notes, *on_page_note(len(sections), len(masks))]
    texts, colours = zip(*_colours(masks), strict=True)
    return masks_page(_title(masks), sections, texts, colours, notes=notes, failed=masks.failed, facts=facts)
