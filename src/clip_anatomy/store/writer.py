"""`Writer`: the only thing that changes a store. Arrays first, flushed to the disk; then one transaction that makes them count.

files of a block ─▶ fsync ─▶ COMMIT (its row, its images' rows)      a kill in between leaves files that no row names;
they are deleted when the next writer opens the store, and their images are done again.
"""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clip_anatomy.errors import OutputError, StoreError
from clip_anatomy.files import digest_of_file, flush, is_there
from clip_anatomy.partial_output import is_partial, sweep
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.store import rows as sql
from clip_anatomy.store.blocks import FOLDER, StoreBlock, folder_of, need_zarr, read_blocks, write_block
from clip_anatomy.store.durability import LOCK, is_marked, one_clear_error, sole_writer
from clip_anatomy.store.fixed_point import encode
from clip_anatomy.store.manifest import BASIS, HALF, NAME, Manifest, save_basis
from clip_anatomy.store.remote_blocks import catalogues
from clip_anatomy.store.shards import is_sharded
from clip_anatomy.store.stored_moments import FILE_NAME as MOMENTS_NAME
from clip_anatomy.store.stored_moments import FOLDER as MOMENTS
from clip_anatomy.store.stored_moments import (
    StoredMoments,
    moments_of_blocks,
    names_of,
    read_stored_moments,
    renumbered,
    save_moments,
    wanted,
    write_stored_moments,
)

__all__ = ["FULL", "Writer"]

FULL = 16_384  # images of a block that is not merged any more
BLOCK_NAME = re.compile(r"\d{6,}")
OURS = frozenset({LOCK, sql.NAME, f"{sql.NAME}-journal", FOLDER, MOMENTS, BASIS, NAME})


class Writer:
    """Write a store, as the only process that does."""

    def __init__(self, folder: Path, manifest: Manifest, rows: sqlite3.Connection) -> None:
        """Use `Writer.open`."""
        self.folder = folder
        self.manifest = manifest
        self.rows = rows

    @staticmethod
    @contextmanager
    def open(folder: Path, manifest: Manifest | None = None, basis: HeadBasis | None = None) -> "Generator[Writer]":
        """Open a store to write, and make it if it is not there.

        Args:
            folder: where.
            manifest: what a new store is to be, or what an old one must be; None to take an old one as it is.
            basis: the frames that a new store gets.

        Raises:
            StoreError: in use, of another model, made in another way; or the folder holds something else.
            OutputError: it cannot be written.
        """
        need_zarr()
        if is_sharded(folder) or folder.parent == catalogues():
            raise StoreError(
                f"{folder} is a sharded store, which is never written anew. Index what is to stay into a new store: clip-anatomy index SOURCE STORE"
            )
        if not (folder / NAME).exists() and (manifest is None or basis is None):
            Manifest.load(folder)  # says what is missing
        refuse_foreign(folder)
        with one_clear_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder), one_clear_error(folder):
            (folder / FOLDER).mkdir(exist_ok=True)
            if not (folder / NAME).exists():
                assert manifest is not None
                assert basis is not None
                _make(folder, basis, manifest)
            existing = Manifest.load(folder)
            if manifest is not None:
                existing.refuse_unlike(manifest, folder)
            rows = sql.connect(folder)
            try:
                writer = Writer(folder, existing, rows)
                writer._sweep()
                yield writer
            finally:
                rows.close()

    def blocks(self) -> tuple[StoreBlock, ...]:
        """Return all blocks, as they are now."""
        return read_blocks(self.rows, self.folder, self.manifest)

    def commit(self, entries: Sequence[Mapping[str, Any]], arrays: Mapping[str, list[np.ndarray]]) -> None:
        """Keep some images, all of them or none.

        Args:
            entries: their rows; those with status "done" have their arrays, in the same order.
            arrays: name → pieces: "heads" [layer, head, image, d], "mlps" [layer, image, embed], "embedding" [image, embed], of unit
                length, "norm" [image].
        """
        count = sum(len(piece) for piece in arrays.get("norm", []))
        of_images: dict[str, np.ndarray] = {}
        if count:
            unit = np.concatenate(arrays["embedding"])
            coded = encode(unit) if self.manifest.format != HALF else {"embedding": unit}
            of_images = {**coded, "norm": np.concatenate(arrays["norm"])}

        def read(name: str, at: int) -> np.ndarray:
            if name in of_images:
                return of_images[name]
            return np.concatenate([piece[at] for piece in arrays[name]], axis=-2)

        with self._transaction():
            turn = self.rows.execute("SELECT coalesce(max(turn), 0) + 1 FROM blocks").fetchone()[0]
            key = self._write(turn, count, read) if count else None
            place = 0
            for entry in entries:
                done = entry["status"] == "done"
                sql.write_row(self.rows, {**entry, "block": key if done else None, "place": place if done else None})
                place += done

    def relabel(self, labels: Mapping[str, Mapping[str, str]]) -> int:
        """Write other labels, groups, captions and columns into rows of known images, all of them or none.

        Args:
            labels: id → columns.

        Returns:
            How many there were.
        """
        if labels:
            with self._transaction():
                for id, columns in labels.items():
                    sql.relabel(self.rows, id, columns)
                for stored in read_stored_moments(self.rows):
                    if stored.column:  # its images may be of other groups now: taken again from the arrays
                        self.rows.execute("DELETE FROM kept WHERE name = ?", (stored.name,))
                self._next_epoch()
        return len(labels)

    def set_times(self, times: Mapping[str, int]) -> None:
        """Keep new times of files whose bytes are the same: the next run need not read them."""
        with self._transaction():
            self.rows.executemany("UPDATE images SET time = ? WHERE id = ?", [(time, id) for id, time in times.items()])

    def tidy(self, *, end: bool) -> None:
        """Bring the stored moments up to date, and merge small blocks at the tail into one.

        Args:
            end: merge whatever there is; otherwise only once it fills a block.
        """
        blocks = self.blocks()
        tail: list[StoreBlock] = []
        for block in reversed(blocks):
            if block.count >= FULL:
                break
            tail.insert(0, block)
        full = sum(len(block) for block in tail) >= FULL
        if not end and not full:
            return
        self._store_moments(blocks)
        if len(tail) > 1:
            self.merge(tail)

    def merge(self, parts: Sequence[StoreBlock]) -> None:
        """Write neighbouring blocks as one, without the images that were removed."""
        count = sum(len(part) for part in parts)

        def read(name: str, at: int) -> np.ndarray:
            if name in self.manifest.image_arrays:
                return np.concatenate([part.stored(name) for part in parts])
            return np.concatenate([part.heads(at) if name == "heads" else part.mlps(at) for part in parts], axis=-2)

        with self._transaction():
            turn = self.rows.execute("SELECT turn FROM blocks WHERE key = ?", (parts[0].key,)).fetchone()[0]
            key = self._write(turn, count, read) if count else None
            start = 0
            for part in parts:
                moved = "UPDATE images SET block = ?, place = ? WHERE block = ? AND place = ?"
                if part.alive is None:
                    move = "UPDATE images SET block = ?, place = place + ? WHERE block = ?"
                    self.rows.execute(move, (key, start, part.key))
                else:
                    places = part.alive.tolist()
                    self.rows.executemany(moved, [(key, start + to, part.key, at) for to, at in enumerate(places)])
                start += len(part)
            keys = [part.key for part in parts]
            self.rows.executemany("DELETE FROM blocks WHERE key = ?", [(key,) for key in keys])
            self.rows.executemany("DELETE FROM holes WHERE block = ?", [(key,) for key in keys])
            for stored in read_stored_moments(self.rows):
                covered = {*keys} <= {*stored.covers}
                rest = tuple(known for known in stored.covers if known not in keys)
                if covered:
                    covers = (*rest, key) if key is not None else rest
                    write_stored_moments(self.rows, replace(stored, covers=covers))
                elif len(rest) < len(stored.covers):  # it covers a part of the new block only: take it again
                    self.rows.execute("DELETE FROM kept WHERE name = ?", (stored.name,))
            self._next_epoch()
        self._sweep()

    def remove(self, keys: Sequence[int], status: str, why: str) -> int:
        """Take images out: their rows stay as tombstones, moments and everything that is read no longer hold them.

        Args:
            keys: keys of their rows.
            status: "removed" (stays out) or "gone" (comes back when the source has it again).
            why: written into the row.

        Returns:
            How many were there.
        """
        chosen = "key IN (SELECT value FROM json_each(?))"
        text = f"SELECT key, block, place FROM images WHERE status = 'done' AND {chosen} ORDER BY block, place"
        removed = self.rows.execute(text, (json.dumps([*keys]),)).fetchall()
        if not removed:
            return 0
        out: dict[int, list[int]] = {}
        for _, block, place in removed:
            out.setdefault(block, []).append(place)
        blocks = {block.key: block for block in self.blocks()}
        leaving = [
            StoreBlock(blocks[key].folder, self.manifest, blocks[key].count, key, np.array(places))
            for key, places in out.items()
        ]
        corrected: list[StoredMoments] = []
        with one_clear_error(self.folder):
            for old in read_stored_moments(self.rows):
                covered = [block for block in leaving if block.key in old.covers]
                moments = old.load(self.folder)
                if moments is None or not covered:
                    continue
                same: dict[str, Any] = {"column": old.column, "chunks": old.chunks, "names": old.names}
                minus = moments_of_blocks(covered, self.manifest, self.rows, **same)
                corrected.append(save_moments(moments.without(minus), self.folder, covers=old.covers, **same))
        with self._transaction():
            self.rows.executemany(
                "INSERT INTO holes VALUES (?, ?)", [(b, p) for b, places in out.items() for p in places]
            )
            for key, *_ in removed:
                self._mark_removed(key, status, why)
            for new in corrected:
                write_stored_moments(self.rows, new)
            self._next_epoch()
        self._sweep()
        return len(removed)

    # ---- within

    def _mark_removed(self, key: int, status: str, why: str) -> None:
        self.rows.row_factory = sqlite3.Row
        row = dict(self.rows.execute("SELECT * FROM images WHERE key = ?", (key,)).fetchone())
        self.rows.row_factory = None
        sql.write_row(self.rows, {**row, "status": status, "error": why, "block": None, "place": None})

    def _store_moments(self, blocks: Sequence[StoreBlock]) -> None:
        known = {(stored.column, stored.chunks): stored for stored in read_stored_moments(self.rows)}
        for column, chunks in wanted(self.rows, self.manifest):
            old = known.get((column, chunks))
            names = names_of(self.rows, column)
            if old is not None and {block.key for block in blocks} == {*old.covers} and old.names == names:
                continue
            moments = None if old is None or {*old.names} - {*names} else old.load(self.folder)
            covers = () if moments is None or old is None else old.covers
            rest = [block for block in blocks if block.key not in covers]
            with one_clear_error(self.folder):
                same: dict[str, Any] = {"column": column, "chunks": chunks, "names": names}
                more = moments_of_blocks(rest, self.manifest, self.rows, **same)
                if moments is not None and old is not None:
                    more = renumbered(moments, old.names, names).merge(more)
                new = save_moments(more, self.folder, covers=[block.key for block in blocks], **same)
            with self._transaction():
                write_stored_moments(self.rows, new)
        self._sweep()

    def _write(self, turn: int, count: int, read: Callable[[str, int], np.ndarray]) -> int:
        """Write a block's files, flush them, and enter them; inside the caller's transaction."""
        insert = "INSERT INTO blocks (turn, count, files) VALUES (?, ?, '{}')"
        key = self.rows.execute(insert, (turn, count)).lastrowid
        assert key is not None
        folder = folder_of(self.folder, key)
        _delete(folder)
        try:
            write_block(folder, self.manifest, count, read)
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            sizes = {name: [path.stat().st_size, digest_of_file(path)] for name, path in files.items()}
            flush([*files.values(), *(p for p in folder.rglob("*") if p.is_dir()), folder, folder.parent])
        except BaseException:
            _delete(folder)
            raise
        self.rows.execute("UPDATE blocks SET files = ? WHERE key = ?", (json.dumps(sizes), key))
        return key

    @contextmanager
    def _transaction(self) -> Generator[None]:
        with one_clear_error(self.folder):
            self.rows.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.rows.execute("COMMIT")
            except BaseException:
                if self.rows.in_transaction:
                    self.rows.execute("ROLLBACK")
                raise

    def _next_epoch(self) -> None:
        sql.set_fact(self.rows, "epoch", sql.epoch_of(self.rows) + 1)

    def _sweep(self) -> None:
        """Delete files of ours that no committed row names: what a killed writer, or a merge, left behind."""
        named = {folder_of(self.folder, key).name for (key,) in self.rows.execute("SELECT key FROM blocks")}
        named |= {file for (file,) in self.rows.execute("SELECT file FROM kept")}
        for folder, ours in ((self.folder / FOLDER, BLOCK_NAME), (self.folder / MOMENTS, MOMENTS_NAME)):
            if folder.is_dir():
                for path in folder.iterdir():
                    if ours.fullmatch(path.name) and path.name not in named:
                        _delete(path)
                sweep(folder)
        sweep(self.folder)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that is no store of ours, by its mark and not by its names; and links in one, which are not followed.

    Raises:
        OutputError: it holds something else, or cannot be read.
        StoreError: a part of the store is a link.
    """
    try:
        if is_there(folder) and not folder.is_dir():
            raise OutputError(f"{folder} is a file. Type the path of a new folder")
        entries = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder} cannot be read ({error}). Type the path of a folder that you may write") from error
    if links := [path for path in entries if path.name in OURS and path.is_symlink()]:
        raise StoreError(
            f"{links[0]} is a link; nothing is written or deleted where it leads. Put what it leads to in its place, and type the same "
            "command again"
        )
    if (folder / NAME).exists():
        return
    marked = is_marked(folder)
    begun = [path for path in entries if path.name == LOCK and path.stat().st_size == 0]  # killed before it was marked
    others = [path for path in entries if path not in begun and not (marked and _is_ours(path))]
    if others:
        raise OutputError(
            f"{folder} is no store and not empty (it holds {others[0].name!r}). Type the path of a new folder"
        )


def _is_ours(path: Path) -> bool:
    return path.name in OURS or is_partial(path)


def _delete(path: Path) -> None:
    """Delete a file or a folder; of a link only itself."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _make(folder: Path, basis: HeadBasis, manifest: Manifest) -> None:
    rows = sql.connect(folder)
    try:
        with one_clear_error(folder):
            save_basis(basis, folder)
            sql.set_fact(rows, BASIS, digest_of_file(folder / BASIS))
            sql.set_fact(rows, NAME, manifest.text_digest)
            manifest.save(folder)  # last: a folder with it is a whole store
            flush([folder])
    finally:
        rows.close()
