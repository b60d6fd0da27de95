"""The folder of an atlas: a page with the map of all heads, a page for each head, their pictures and tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_anatomy.atomic_output import REPORT, Kind, atomic_output, listed
from clip_anatomy.errors import ClipAnatomyError
from clip_anatomy.naming.atlas import SCHEMA, Atlas, AtlasHead
from clip_anatomy.naming.roles import MIXED, UNNAMED
from clip_anatomy.progress import Progress, silent
from clip_anatomy.report.atlas_table import has_parquet, write_parquet
from clip_anatomy.report.html import encoded, framed, page, percent, spaced
from clip_anatomy.report.thumbnails import thumbnails
from clip_anatomy.store.rows import ImageRow

__all__ = ["ATLAS", "MARK", "PAGE", "head_page", "html", "index_page", "save", "write_atlas"]

MARK, PAGE = "atlas.json", REPORT
ATLAS = Kind("atlas", MARK, SCHEMA)
DRAWING = 96  # pictures of the store up to this side are drawings
HUES = 14  # further roles take the same hues again, darker
LETTERS = ((6, 10), (8, 7), (12, 4))  # of a role that fit into a cell of the map, by heads in a row


def save(atlas: Atlas, folder: Path) -> Path:
    """Write all pages, pictures and tables of an atlas into a folder, whole or not at all.

    Args:
        atlas: the atlas; pictures are fetched from where its store found them.
        folder: made if it is not there.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    from clip_anatomy.naming.top_images import rows_at
    from clip_anatomy.store.store import Store

    try:
        rows = list(rows_at(Store.open(atlas.store), atlas.evidence).values())
    except ClipAnatomyError:
        rows = []  # the store is gone: pages without pictures
    with atomic_output(folder, ATLAS) as output:
        write_atlas(atlas, rows, output.folder)
    return folder


def html(atlas: Atlas) -> str:
    """Return the map of heads with their texts, in a frame for notebooks."""
    return framed(index_page(atlas, {}))


def write_atlas(atlas: Atlas, rows: Sequence[ImageRow], folder: Path, progress: Progress | None = None) -> list[str]:
    """Write all pages, pictures and tables of an atlas into an empty folder.

    Args:
        atlas: the atlas.
        rows: what the store knows of the images that stand as evidence.
        folder: where.
        progress: told what is being done.

    Returns:
        Why pictures are missing, each reason once.

    Raises:
        OSError: the place cannot be written.
    """
    tell = progress or silent
    (folder / "images").mkdir()
    (folder / "heads").mkdir()
    pictures: dict[int, str] = {}
    missing: dict[str, None] = {}
    for done, (row, image, why) in enumerate(thumbnails(rows), 1):
        if image is None:
            missing[why] = None
        else:
            name = pictures[row.index] = f"images/{row.index}.jpg"
            # Full colour resolution: small drawings lose their colours otherwise.
            coarse = 0 if max(image.size) <= DRAWING else 2
            (folder / name).write_bytes(encoded(image, 82, lossless=0, subsampling=coarse))
        tell("making thumbnails", done, len(rows))
    for at, head in enumerate(atlas.heads):
        page_of_head = head_page(atlas, at, pictures)
        (folder / place_of(head)).write_text(page_of_head, encoding="utf-8", errors="replace")
        tell("writing pages", at + 1, len(atlas.heads))
    if has_parquet():
        write_parquet(atlas, folder / "atlas.parquet")
    (folder / PAGE).write_text(index_page(atlas, pictures, tuple(missing)), encoding="utf-8", errors="replace")
    numbers = {**atlas.to_dict(), "files": listed(folder)}
    (folder / MARK).write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
    return list(missing)


def index_page(atlas: Atlas, pictures: Mapping[int, str], missing: Sequence[str] = ()) -> str:
    """Return the first page: the map of all heads, roles to filter by, search, and a card for each head.

    Args:
        atlas: the atlas.
        pictures: row of the store → address of its thumbnail; rows without one have no picture.
        missing: why pictures are missing, each reason once.
    """
    # As on the map: the last layer, whose heads say most, first.
    heads = sorted(atlas.heads, key=lambda head: (-head.layer, head.head))
    roles = sorted(atlas.roles.items(), key=lambda one: (one[0] in (UNNAMED, MIXED), -one[1]))
    made = {
        "model": atlas.model,
        "weights": atlas.digest,
        "images": f"{atlas.images:,}, {atlas.store}",
        "texts": atlas.pool,
    }
    made |= {**atlas.provenance, **({"cost": atlas.llm_usage} if atlas.llm_usage else {})}  # fmt: skip
    return page(
        "atlas.html",
        kind="atlas",
        script="atlas.js",
        title=f"{atlas.model}: what its heads are about",
        atlas=atlas,
        heads=heads,
        cells={(head.layer, head.head): (head, _cell(head, atlas.heads_per_layer)) for head in heads},
        example=next((head.texts[0].text for head in atlas.heads if head.texts), "striped"),
        roles=roles,
        missing=missing,
        made=made.items(),
        searched=[_searched(head) for head in heads],
        **_common(atlas, pictures),
    )


def head_page(atlas: Atlas, at: int, pictures: Mapping[int, str]) -> str:
    """Return the page of one head: pictures and figures first, the role that is concluded from them after.

    Args:
        atlas: the atlas.
        at: place of the head among `atlas.heads`.
        pictures: row of the store → address of its thumbnail, from the first page.
    """
    head = atlas.heads[at]
    return page(
        "atlas_head.html",
        kind="atlas head",
        script="atlas_head.js",
        title=f"Layer {head.layer}, head {head.head}: {head.role.name}",
        atlas=atlas,
        head=head,
        before=atlas.heads[at - 1] if at else None,
        after=atlas.heads[at + 1] if at + 1 < len(atlas.heads) else None,
        shown=[text for text in head.texts if text.top_images],
        **_common(atlas, pictures),
    )


def place_of(head: AtlasHead) -> str:
    """Return the file of a head's page, from the first page."""
    return f"heads/{head.layer:02d}-{head.head:02d}.html"


def _common(atlas: Atlas, pictures: Mapping[int, str]) -> dict[str, Any]:
    """Tell what both pages need: addresses, and a colour for every named role, the commonest first, so that these differ most."""
    named_roles = [role for role in atlas.roles if role not in (UNNAMED, MIXED)]
    count = max(1, min(len(named_roles), HUES))
    hues = [((25 + 360 * (at % HUES) / count) % 360, at // HUES * 0.14) for at in range(len(named_roles))]
    classes = {UNNAMED: UNNAMED, MIXED: MIXED} | {role: f"r{at}" for at, role in enumerate(named_roles)}
    return {"pictures": pictures, "place_of": place_of, "hues": hues, "classes": classes}


def _cell(head: AtlasHead, heads: int) -> dict[str, Any]:
    """Return a cell of the map. Its colour is half as strong at no confidence, so that the hue can still be told."""
    role = head.role
    sure = f" {percent(role.confidence)}" if role.named else ""
    first = head.leading.text if head.leading else "no text"
    letters = next((n for most, n in LETTERS if heads <= most), 3)
    return {
        "tip": f"{head.name} · {spaced(role.name)}{sure} · {first}",
        "strength": 0.3 + 0.7 * min(1.0, role.confidence / 0.6),
        "short": spaced(role.name[:letters]) if role.named else ("·" if role.name == UNNAMED else "~"),
    }


def _searched(head: AtlasHead) -> dict[str, Any]:
    """Tell what the page's script filters and sorts by."""
    return {
        "name": head.name,
        "role": head.role.name,
        "sure": round(head.role.confidence, 3),
        "explained": round(head.explained, 3),
        "variance": head.variance,
        "texts": [[text.text, round(text.gain, 4)] for text in head.texts],
    }
