"""From pictures to masks on disk: PNG, COCO JSON, npz, prompts, paintings, a page; one picture at a time."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from clip_anatomy.atomic_output import REPORT, Kind, as_json
from clip_anatomy.errors import OutputError
from clip_anatomy.images.pixels import read_image
from clip_anatomy.maps.masks import Masks
from clip_anatomy.maps.pamr import REFINERS
from clip_anatomy.maps.segment import segment
from clip_anatomy.report import mask_files as files
from clip_anatomy.report.contact_sheet import Cell, Row, contact_sheets, fitted
from clip_anatomy.report.heatmap_run import ON_PAGE, ON_SHEETS
from clip_anatomy.report.map_files import Found, file_name, image_bytes
from clip_anatomy.report.map_request import Request
from clip_anatomy.report.maps_page import SIDE, masks_page, masks_section
from clip_anatomy.report.point_marks import marked
from clip_anatomy.report.step_progress import stages
from clip_anatomy.report.typed_texts import shorten

__all__ = ["KIND", "Cut", "as_dict", "walk"]

KIND = Kind("masks", "segment.json", "clip-anatomy/segment/1")
COCO, NPZ, PROMPTS = "masks.coco.json", "masks.npz", "prompts.json"
LONGEST = 2048  # side of the paintings


@dataclass
class Cut(Found):
    """What came of the pictures so far, and the masks.

    Attributes:
        coco: COCO's dictionary.
        how: how the masks were made.
    """

    coco: dict[str, Any] = field(default_factory=dict)
    how: str = ""


def walk(request: Request, given: dict[str, Any], groups: Sequence[tuple[str, ...]]) -> Cut:
    """Cut out of every picture what the texts say, and write it before the next one is read.

    Args:
        request: model, pictures, texts, and where to write.
        given: arguments of `segment`.
        groups: texts whose points are wanted together.

    Returns:
        What was found.

    Raises:
        BadImage: none of the pictures could be read.
    """
    found = Cut()
    sections: list[Markup] = []
    rows: list[Row] = []

    def act(image: Image.Image, label: str) -> None:
        masks = segment(request.clip, image, request.texts, **given)
        _remember(found, masks, label, groups)
        if request.staging is None:
            return
        cells = _write(request, found, masks, label, read_image(image), groups)
        if len(sections) < ON_PAGE:
            sections.append(masks_section(masks, label, cells))
        if sum(len(row.cells) for row in rows) < ON_SHEETS:
            rows.append(Row(Path(label).name, cells))

    found.each(request, "cutting out", act)
    if request.staging is not None:
        with stages() as tell:
            tell("writing the page", 0, 1)
            _finish(request, found, rows, sections)
    return found


def as_dict(request: Request, found: Cut) -> dict[str, Any]:
    """Everything found, ready for JSON."""
    return found.header(request, KIND, how=found.how) | {"coco": found.coco}


def _remember(found: Cut, masks: Masks, label: str, groups: Sequence[tuple[str, ...]]) -> None:
    found.how = found.how or str(masks.how)
    part = files.coco(
        masks,
        [label],
        first_image=len(found.images) + 1,
        first_annotation=len(found.coco.get("annotations", ())) + 1,
    )
    if found.coco:
        found.coco["images"] += part["images"]
        found.coco["annotations"] += part["annotations"]
    else:
        found.coco = part
    prompts = [masks.prompts(0, k).to_dict() for k in range(len(masks.texts))]
    labels = masks.labels[0]
    entry: dict[str, Any] = {
        "image": label,
        "width": labels.shape[1],
        "height": labels.shape[0],
        "threshold": float(f"{masks.cuts[0]:.6g}") if np.isfinite(masks.cuts[0]) else None,
        "unseen": round(float((labels < 0).mean()), 6),
        "shares": {text: round(share, 6) for text, share in masks.shares(0).items()},
        "prompts": prompts,
    }
    if groups:
        entry["together"] = [masks.prompts(0, *group).to_dict() for group in groups]
    found.images.append(entry)


def _write(  # noqa: PLR0917
    request: Request, found: Cut, masks: Masks, label: str, picture: Image.Image, groups: Sequence[tuple[str, ...]]
) -> list[Cell]:
    """Write one picture's files; gives its cells of the contact sheet."""
    place, labels = len(found.images) - 1, masks.labels[0]
    found.write(request, f"{file_name(place, label, 'mask')}.png", files.png(labels, masks.texts))
    if max(picture.size) > LONGEST:  # paintings are for eyes; the mask keeps every pixel
        scale = LONGEST / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        shown = picture.resize(size, Image.Resampling.LANCZOS)
        rows, cols = (np.arange(n) * m // n for n, m in zip((size[1], size[0]), labels.shape, strict=True))
        smaller = labels[np.ix_(rows, cols)]
    else:
        shown, smaller = picture, labels
    painting = Image.fromarray(files.painted(shown, smaller, len(masks.texts)))
    ending, content = image_bytes(painting)
    found.write(request, f"{file_name(place, label, 'painted')}.{ending}", content)
    colours = files.class_colours(len(masks.texts))
    cells = [
        Cell(fitted(picture, SIDE), "the picture"),
        Cell(fitted(painting, SIDE), "masks" if len(masks.texts) > 1 else "mask"),
    ]
    for k, text in enumerate(masks.texts):
        share = masks.shares(0)[text]
        if share:
            cells.append(Cell(marked(picture, masks.prompts(0, k), colours[k]), f"{shorten(text)} {share:.1%}"))
    for group in groups:
        asked = masks.prompts(0, *group)
        if sum(masks.shares(0)[text] > 0 for text in group) > 1:  # else it is what one of them says already
            words = "points for all together" if len(group) == len(masks.texts) else f"points for {shorten(asked.text)}"
            cells.append(Cell(marked(picture, asked, (90, 90, 90)), words))
    _into_npz(request, f"labels_{place}", labels, fresh=place == 0)
    return cells


def _into_npz(request: Request, name: str, array: np.ndarray, *, fresh: bool = False) -> None:
    staging = request.staging
    assert staging is not None
    # numpy writes an npz at once; a folder of photographs would have to be held in memory.
    held = BytesIO()
    np.lib.format.write_array(held, np.asanyarray(array), allow_pickle=False)
    try:
        with zipfile.ZipFile(staging.folder / NPZ, "w" if fresh else "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"{name}.npy", held.getvalue())
    except OSError as error:
        raise OutputError(
            f"{staging.out / NPZ} cannot be written: {error.strerror}. Type another place: --out NAME"
        ) from error


def _finish(request: Request, found: Cut, rows: Sequence[Row], sections: Sequence[Markup]) -> None:
    assert request.staging is not None
    questions = request.questions
    _into_npz(request, "images", np.array([one["image"] for one in found.images]))
    _into_npz(request, "texts", np.array([q.text for q in questions]))
    _into_npz(request, "how", np.array(found.how))
    found.files.append(NPZ)
    found.write(request, COCO, as_json(found.coco))
    kept = ("image", "width", "height", "prompts", "together")
    prompts = [{k: v for k, v in one.items() if k in kept} for one in found.images]
    found.write(request, PROMPTS, as_json({"how": found.how, "images": prompts}))
    texts = [f"“{shorten(q.text, 40)}”" for q in questions[:3]]
    title = f"Cut out: {', '.join(texts)}{f' and {len(questions) - 3} more' if len(questions) > 3 else ''}"
    colours = files.class_colours(len(questions))
    legend = [((colour,), q.short) for q, colour in zip(questions, colours, strict=True)]
    found.write_sheets(request, contact_sheets(title, f"{request.clip.name} - {found.how}", rows, legend))
    told = found.told(request)
    if len(found.images) > len(sections):
        told.append(f"The page shows the first {len(sections)} of {len(found.images)} pictures; the folder has all.")
    facts = [
        *request.facts,
        ("masks", found.how),
        *(("refined by", told) for name, told in REFINERS.items() if f"by {name}" in found.how),
    ]
    page = masks_page(title, sections, questions, colours, notes=told, failed=found.failed, facts=facts)
    found.write(request, REPORT, page)
    request.staging.write(KIND.mark, as_json(found.header(request, KIND, how=found.how)))
