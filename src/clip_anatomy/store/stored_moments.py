"""Stored moments: taken from the arrays of a store, block by block, and saved beside them so that nobody waits for them twice.

They are a summary of exactly the float16 coordinates on disk, so that it can be checked against them, and images can
be taken out of it again.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from clip_anatomy.errors import BadInput, StoreError, reading
from clip_anatomy.files import digest_of_file
from clip_anatomy.split.moments import Moments
from clip_anatomy.store import rows as sql
from clip_anatomy.store.blocks import StoreBlock
from clip_anatomy.store.manifest import Manifest

__all__ = [
    "StoredMoments", "chunks_for", "moments_entry", "moments_of_blocks", "moments_of_store", "names_of", "read_stored_moments", "renumbered", "save_moments",
    "wanted", "write_stored_moments",
]  # fmt: skip

FOLDER = "moments"
FILE_NAME = re.compile(r"(?:all|group|label)-\d+\.(\d{6,})\.safetensors")
CHUNKS = 32
CELLS_BYTES = 12 * 2**20
MOST_GROUPS = 16


@dataclass(frozen=True)
class StoredMoments:
    """One file of moments.

    Attributes:
        column: "" for no groups, or the column of the rows that gives them.
        chunks: number of chunks.
        names: what the group numbers mean.
        covers: keys of the blocks whose images are in it.
        file: its name under `moments/`.
        digest: hash of the file.
    """

    column: str
    chunks: int
    names: tuple[str, ...]
    covers: tuple[int, ...]
    file: str
    digest: str

    @property
    def name(self) -> str:
        """What it is of."""
        return f"{self.column or 'all'}-{self.chunks}"

    def load(self, store: Path) -> Moments | None:
        """Read the moments; None if the file is not what was written: arrays are the truth, moments can be taken again."""
        path = store / FOLDER / self.file
        try:
            return Moments.load(path) if digest_of_file(path) == self.digest else None
        except (OSError, BadInput):
            return None


def chunks_for(manifest: Manifest) -> int:
    """Tell how many chunks are stored: 32, or what fits into 12 MB; more are taken from the arrays when asked for."""
    fit = CELLS_BYTES // manifest.cell_bytes
    return CHUNKS if fit >= CHUNKS else 1 << max(0, fit.bit_length() - 1)


def wanted(rows: sqlite3.Connection, manifest: Manifest) -> list[tuple[str, int]]:
    """Tell which moments are worth keeping: over all images, and per group where there are a few groups."""
    worth = [("", chunks_for(manifest))]
    groups = rows.execute(
        """SELECT count(*) FROM (SELECT DISTINCT "group" FROM images WHERE status = 'done' LIMIT 99)"""
    ).fetchone()[0]
    if 1 < groups <= MOST_GROUPS and groups * manifest.cell_bytes <= 4 * CELLS_BYTES:
        worth.append(("group", 1))
    return worth


def read_stored_moments(rows: sqlite3.Connection) -> list[StoredMoments]:
    """List the moments that are stored; an entry that is damaged is none, for moments can be taken again."""
    stored: list[StoredMoments] = []
    for (text,) in rows.execute("SELECT about FROM kept ORDER BY name"):
        with suppress(BadInput):
            stored.append(moments_entry(text))
    return stored


def moments_entry(text: str) -> StoredMoments:
    """Read one entry.

    Raises:
        BadInput: it is damaged.
    """
    with reading("an entry of moments", "They are taken again from the arrays"):
        entry = json.loads(text)
        names, covers = tuple(map(str, entry["names"])), tuple(int(key) for key in entry["covers"])
        if not FILE_NAME.fullmatch(entry["file"]):
            raise ValueError(f"file {entry['file']!r}")
        return StoredMoments(
            str(entry["column"]), int(entry["chunks"]), names, covers, entry["file"], str(entry["digest"])
        )


def write_stored_moments(rows: sqlite3.Connection, stored: StoredMoments) -> None:
    """Write one entry, inside the caller's transaction."""
    rows.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (stored.name, stored.file, json.dumps(asdict(stored))))


def save_moments(
    moments: Moments, store: Path, *, column: str, chunks: int, names: Sequence[str], covers: Iterable[int]
) -> StoredMoments:
    """Write moments to a new file (without the frames, which the store has anyway); it counts once its entry is committed."""
    folder = store / FOLDER
    folder.mkdir(exist_ok=True)
    numbers = [int(match[1]) for path in folder.iterdir() if (match := FILE_NAME.fullmatch(path.name))]
    name = f"{column or 'all'}-{chunks}.{max(numbers, default=0) + 1:06d}.safetensors"
    path = replace(moments, basis=None).save(folder / name)
    return StoredMoments(column, chunks, tuple(names), tuple(covers), name, digest_of_file(path))


def moments_of_blocks(
    blocks: Iterable[StoreBlock],
    manifest: Manifest,
    rows: sqlite3.Connection,
    *,
    column: str,
    chunks: int,
    names: Sequence[str] = (),
) -> Moments:
    """Compute moments of the images of some blocks, read from the arrays a layer at a time.

    Args:
        blocks: which; `alive` may name some of their images only.
        manifest: of the store.
        rows: of the store: an image's key decides its chunk.
        column: column of the groups, or "".
        chunks: number of chunks.
        names: every value that the column may have here, sorted.
    """
    same: dict[str, Any] = {"chunks": chunks, "convention": manifest.convention, "model": manifest.digest}
    none = torch.zeros(0, len(manifest.layers), manifest.heads, manifest.d)
    total = Moments.of(none, layers=manifest.layers, **same)
    for block in blocks:
        if not len(block):
            continue
        keys, codes = _keys_and_codes(block, rows, column, names)
        parts: list[Moments] = []
        for at, layer in enumerate(manifest.layers):
            heads = torch.from_numpy(np.ascontiguousarray(block.heads(at).transpose(1, 0, 2)))
            parts.append(Moments.of(heads[:, None], groups=codes, ids=keys, layers=(layer,), **same))
        joined = replace(
            parts[0],
            means=torch.cat([part.means for part in parts], 2),
            scatters=torch.cat([part.scatters for part in parts], 2),
            layers=manifest.layers,
        )
        total = joined if not total.count else total.merge(joined)
    return total


def moments_of_store(
    folder: Path,
    manifest: Manifest,
    blocks: Sequence[StoreBlock],
    epoch: int,
    *,
    groups: str | None,
    chunks: int | None,
) -> Moments:
    """Compute moments of a store, without the frames: those that are stored where they answer the question, else from the arrays.

    Args:
        folder: of the store.
        manifest: of the store.
        blocks: as of the moment of opening.
        epoch: of that moment.
        groups: a column ("group", "label"), or None.
        chunks: number of chunks; None for as many as are stored.
    """
    column = groups or ""
    if column and column not in ("group", "label"):
        raise BadInput(f"groups={groups!r} is not a column for moments. Type one of: 'group', 'label'")
    with sql.reading_rows(folder) as rows:
        sql.refuse_changed(rows, epoch, folder)
        keys = {block.key for block in blocks}
        names = names_of(rows, column, keys)
        for stored in read_stored_moments(rows):
            fits = stored.column == column and (chunks is None or chunks == stored.chunks)
            if not fits or not {*stored.covers} <= keys or {*stored.names} - {*names}:
                continue
            moments = stored.load(folder)
            if moments is None:
                continue
            moments = renumbered(moments, stored.names, names)
            if rest := [block for block in blocks if block.key not in stored.covers]:
                more = moments_of_blocks(rest, manifest, rows, column=column, chunks=stored.chunks, names=names)
                moments = moments.merge(more)
            return moments
        number = chunks or (1 if column else chunks_for(manifest))
        return moments_of_blocks(blocks, manifest, rows, column=column, chunks=number, names=names)


def names_of(rows: sqlite3.Connection, column: str, keys: Iterable[int] | None = None) -> tuple[str, ...]:
    """Return the different values of a column among the images that are there, sorted."""
    if not column:
        return ()
    names = rows.execute(f"""SELECT DISTINCT "{column}", block FROM images WHERE status = 'done'""").fetchall()
    known = None if keys is None else {*keys}
    return tuple(sorted({str(value) for value, block in names if known is None or block in known}))


def renumbered(moments: Moments, old: Sequence[str], new: Sequence[str]) -> Moments:
    """Renumber moments whose groups were numbered by the old names by the new ones."""
    if tuple(old) == tuple(new) or not old:
        return moments
    return replace(moments, groups=tuple(tuple(new).index(old[group]) for group in moments.groups))


def _keys_and_codes(
    block: StoreBlock, rows: sqlite3.Connection, column: str, names: Sequence[str]
) -> tuple[Int64[torch.Tensor, " image"], Int64[torch.Tensor, " image"] | None]:
    what = f'"{column}"' if column else "''"
    cursor = rows.execute(
        f"SELECT place, key, {what} FROM images WHERE block = ? ORDER BY place", (block.key,)
    ).fetchall()
    places = np.arange(block.count) if block.alive is None else block.alive
    by_place = {place: (key, value) for place, key, value in cursor}
    if missing := [place for place in places.tolist() if place not in by_place]:
        raise StoreError(f"{block.folder} has no row for its image {missing[0]}. Type: clip-anatomy verify STORE")
    chosen = [by_place[place] for place in places.tolist()]
    keys = torch.tensor([key for key, _ in chosen], dtype=torch.int64)
    if not column:
        return keys, None
    code = {name: at for at, name in enumerate(names)}
    return keys, torch.tensor([code[str(value)] for _, value in chosen], dtype=torch.int64)
