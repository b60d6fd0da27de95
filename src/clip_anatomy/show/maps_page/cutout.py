"""From pictures to masks on disk: PNG, COCO JSON, npz, prompts, paintings, a page; one picture at a time."""

import base64
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_anatomy import __version__
from clip_anatomy.errors import BadImage, OutputError
from clip_anatomy.maps.masks import Masks
from clip_anatomy.maps.refine import REFINERS
from clip_anatomy.maps.segment import segment
from clip_anatomy.model.clip import Clip
from clip_anatomy.model.pixels import read_image
from clip_anatomy.show import masks as files
from clip_anatomy.show.maps_page.gather import Source
from clip_anatomy.show.maps_page.marks import marked
from clip_anatomy.show.maps_page.page import Story, document
from clip_anatomy.show.maps_page.run import ON_PAGE, ON_SHEETS, SHEET, file_name, image_bytes, refuse_if_none
from clip_anatomy.show.maps_page.sheet import Cell, Row, contact_sheets
from clip_anatomy.show.pictures import label_of
from clip_anatomy.show.run import facts
from clip_anatomy.show.stages import stages
from clip_anatomy.show.staging import REPORT, Kind, Staging, as_json
from clip_anatomy.show.texts import Question, shorten
from clip_anatomy.show.wording import said_here

__all__ = ["COCO", "KIND", "NPZ", "PROMPTS", "Cut", "as_dict", "walk"]

KIND = Kind("masks", "segment.json", "clip-anatomy/segment/1")
COCO, NPZ, PROMPTS = "masks.coco.json", "masks.npz", "prompts.json"
LONGEST = 2048  # side of the paintings


@dataclass
class Cut:
    """What came of the pictures so far.

    Attributes:
        images: one entry of the JSON each, with the prompts.
        coco: COCO's dictionary.
        failed: name and error of those that could not be read.
        files: names written into the folder.
        how: how the masks were made.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    coco: dict[str, Any] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    how: str = ""


def walk(
    clip: Clip,
    sources: Sequence[Source],
    questions: Sequence[Question],
    given: dict[str, Any],
    staging: Staging | None,
    *,
    notes: Sequence[str] = (),
    allow_urls: bool = False,
) -> Cut:
    """Cut out of every picture what the texts say, and write it before the next one is read.

    Args:
        clip: an opened model.
        sources: the pictures.
        questions: the texts.
        given: arguments of `segment`.
        staging: where to write; None to write nothing.
        notes: what a reader must know.
        allow_urls: fetch http(s) addresses.

    Returns:
        What was found.

    Raises:
        BadImage: none of the pictures could be read.
    """
    found = Cut()
    texts = [question.text for question in questions]
    sections: list[str] = []
    rows: list[Row] = []
    with stages() as tell:
        for done, source in enumerate(sources):
            tell("cutting out", done, len(sources))
            try:
                if "://" not in source.path and Path(source.path).is_dir():
                    raise BadImage(f"{label_of(source.path)} is a folder. Type the folder alone")
                image = read_image(source.path, allow_urls=allow_urls, keep_mode=True)
                masks = segment(clip, image, texts, **given)
            except BadImage as error:
                found.failed.append((label_of(source.path), said_here(str(error))))
                continue
            label = source.label or label_of(source.path)
            _remember(found, masks, label)
            if staging is not None:
                picture = read_image(image)
                cells = _write(found, masks, label, picture, staging)
                if len(sections) < ON_PAGE:
                    sections.append(_section(masks, label, cells))
                if sum(len(row.cells) for row in rows) < ON_SHEETS:
                    rows.append(Row(Path(label).name, cells))
        refuse_if_none(found.failed, len(found.images))
        if staging is not None:
            tell("writing the page", 0, 1)
            _finish(found, clip, questions, rows, sections, staging, notes)
    return found


def as_dict(clip: Clip, questions: Sequence[Question], found: Cut, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Everything found, ready for JSON."""
    return {
        "schema": KIND.schema,
        "version": __version__,
        "model": {"name": clip.name, "digest": clip.digest, "preprocess": clip.preprocess.to_dict()},
        "how": found.how,
        "notes": list(notes),
        "texts": [{"text": q.text, "notes": list(q.notes)} for q in questions],
        "failed": [{"image": name, "error": error} for name, error in found.failed],
        "files": found.files,
        "images": found.images,
        "coco": found.coco,
    }


def _remember(found: Cut, masks: Masks, label: str) -> None:
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
    if len(masks.texts) > 1:
        entry["together"] = masks.prompts(0, *range(len(masks.texts))).to_dict()
    found.images.append(entry)


def _write(found: Cut, masks: Masks, label: str, picture: Image.Image, staging: Staging) -> list[Cell]:
    """Write one picture's files; gives its cells of the contact sheet."""
    place, labels = len(found.images) - 1, masks.labels[0]

    def write(name: str, content: bytes) -> None:
        staging.write(name, content)
        found.files.append(name)

    write(f"{file_name(place, label, 'mask')}.png", files.png(labels, masks.texts))
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
    write(f"{file_name(place, label, 'painted')}.{ending}", content)
    colours = files.class_colours(len(masks.texts))
    cells = [Cell(_small(picture), "the picture"), Cell(_small(painting), "masks" if len(masks.texts) > 1 else "mask")]
    for k, text in enumerate(masks.texts):
        share = masks.shares(0)[text]
        if share:
            cells.append(Cell(marked(picture, masks.prompts(0, k), colours[k]), f"{shorten(text)} {share:.1%}"))
    if len(cells) > 3:
        drawing = marked(picture, masks.prompts(0, *range(len(masks.texts))), (90, 90, 90))
        cells.append(Cell(drawing, "points for all together"))
    _into_npz(staging, f"labels_{place}", labels, fresh=place == 0)
    return cells


def _into_npz(staging: Staging, name: str, array: np.ndarray, *, fresh: bool = False) -> None:
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


def _finish(  # noqa: PLR0917
    found: Cut,
    clip: Clip,
    questions: Sequence[Question],
    rows: Sequence[Row],
    sections: Sequence[str],
    staging: Staging,
    notes: Sequence[str],
) -> None:
    _into_npz(staging, "images", np.array([one["image"] for one in found.images]))
    _into_npz(staging, "texts", np.array([q.text for q in questions]))
    _into_npz(staging, "how", np.array(found.how))
    staging.write(COCO, as_json(found.coco))
    prompts = {"how": found.how, "images": [{k: v for k, v in one.items() if k in ("image", "width", "height", "prompts", "together")} for one in found.images]}  # fmt: skip
    staging.write(PROMPTS, as_json(prompts))
    found.files += [NPZ, COCO, PROMPTS]
    texts = [f"“{shorten(q.text, 40)}”" for q in questions[:3]]
    title = f"Cut out: {', '.join(texts)}{f' and {len(questions) - 3} more' if len(questions) > 3 else ''}"
    for i, sheet in enumerate(contact_sheets(title, f"{clip.name} - {found.how}", rows)):
        name = f"{SHEET}{'' if i == 0 else f'-{i + 1}'}.png"
        staging.write(name, sheet)
        found.files.append(name)
    told = list(notes) + [f"“{q.short}”: {said}" for q in questions for said in q.notes]
    if len(found.images) > len(sections):
        told.append(f"The page shows the first {len(sections)} of {len(found.images)} pictures; the folder has all.")
    colours = files.class_colours(len(questions))
    legend = "".join(
        f'<span><i class="swatch" style="background:rgb{colour}"></i><bdi dir="auto">{escape(q.short)}</bdi></span>'
        for q, colour in zip(questions, colours, strict=True)
    )
    lead = f"""<p>Each pixel belongs to the text that is answered most there, if it lies above a cut found in each picture by itself; pale pixels
belong to none. A cut parts every picture in two: a mask says where a text is answered most, not whether the thing is there.
Green points say yes to SAM, red ones no; boxes are drawn around connected regions.</p><div class="tools">{legend}</div>"""
    story = Story(
        title,
        told,
        found.failed,
        [
            *facts(clip),
            ("masks", found.how),
            *(("refined by", told) for name, told in REFINERS.items() if f"by {name}" in found.how),
        ],
        "signed",
    )
    staging.write(REPORT, document(story, lead, sections))
    found.files.append(REPORT)
    staging.write(KIND.mark, as_json({k: v for k, v in as_dict(clip, questions, found, notes).items() if k != "coco"}))


def _section(masks: Masks, label: str, cells: Sequence[Cell]) -> str:
    figures = "".join(
        f'<figure><div class="frame" style="aspect-ratio:{cell.image.width}/{cell.image.height}"><img style="inset:0;width:100%" '
        f'src="{_address(cell.image)}" alt=""></div><figcaption><bdi dir="auto">{escape(cell.caption)}</bdi></figcaption></figure>'
        for cell in cells
    )
    rows, cols = masks.labels[0].shape
    unseen = float((masks.labels[0] < 0).mean())
    cut = f" {unseen:.0%} of it lies outside the model’s crop (white)." if unseen else ""
    return f"""<section><h2>{escape(Path(label).name or label)}</h2><p class="soft">{cols} × {rows} pixels.{cut}</p>
<div class="row">{figures}</div></section>"""


def _small(image: Image.Image) -> Image.Image:
    scale = 448 / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1.5 else Image.Resampling.LANCZOS)


def _address(image: Image.Image) -> str:
    small = _small(image) if max(image.size) > 448 else image
    file = BytesIO()
    small.convert("RGB").save(file, "JPEG", quality=86, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
