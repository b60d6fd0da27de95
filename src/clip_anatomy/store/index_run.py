"""`IndexRun`: one run over a source, what of it is finished and what is committed; and its result, `IndexSummary`."""

import json
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_anatomy.data.picture import Decoded, Picture, Source, decode, facts_of_file, failure_text
from clip_anatomy.data.picture_batches import no_picture
from clip_anatomy.data.picture_files import passed_over_note, passed_over_of
from clip_anatomy.errors import BadInput, Ended, ObjectStoreError
from clip_anatomy.files import digest, digest_of_file
from clip_anatomy.images.batch_size import BatchSize, split_when_out_of_memory
from clip_anatomy.images.prefetch import batches_ahead
from clip_anatomy.loading.clip import Clip
from clip_anatomy.progress import Progress
from clip_anatomy.results import Result
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.store import rows as sql
from clip_anatomy.store.head_coordinates import ImageArrays, image_arrays
from clip_anatomy.store.writer import FULL, Writer

__all__ = ["IndexRun", "IndexSummary", "StopRequest"]

COMMIT_BYTES = 64 * 2**20
REPORT_SECONDS = 0.2


Work = tuple[Picture, Decoded | Exception]


@dataclass(frozen=True, repr=False)
class IndexSummary(Result):
    """What a run of `index` did.

    Attributes:
        store: path of the store.
        done: images indexed in this run.
        failed: images that could not be used in this run; see `Store.rows(status="error")`.
        known: images that were there already.
        changed: of those done in this run, images whose file is another one than when they were done before.
        gone: images taken out because the source no longer has them.
        relabelled: rows of known images that got other labels, groups, captions or columns, without a picture being read.
        images: images in the store now.
        seconds: wall time.
        batch: images the model took at once.
        errors: id and message of the first few that failed.
        passed_over: files of the source that are no pictures, and folders that were not walked: reason → how many.
    """

    store: str
    done: int
    failed: int
    known: int
    changed: int
    gone: int
    relabelled: int
    images: int
    seconds: float
    batch: int | None
    errors: tuple[tuple[str, str], ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict[str, int])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": "clip-anatomy/index/1", **asdict(self)}

    def summary(self) -> str:
        """Return the counts in one line, and what was passed over in another."""
        counts = (
            (self.known, "known"),
            (self.changed, "of them changed since"),
            (self.failed, "not used"),
            (self.gone, "taken out"),
            (self.relabelled, "labelled anew"),
        )
        parts = [f"{self.done:,} images added", *(f"{count:,} {what}" for count, what in counts if count)]
        line = f"{self.store}: {self.images:,} images ({', '.join(parts)}) in {self.seconds:.0f} s"
        passed_over = passed_over_note(self.passed_over)
        return f"{line}\n{passed_over}" if passed_over else line


class StopRequest(threading.Event):
    """A signal that came, and which."""

    number: int = signal.SIGINT


@dataclass
class IndexRun:
    """One run: its counters, and what is finished but not committed yet."""

    writer: Writer
    clip: Clip
    basis: HeadBasis
    source: Source
    stopped: StopRequest
    progress: Progress
    commit_seconds: float
    workers: int | None
    entries: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict[str, list[np.ndarray]])
    flying: set[str] = field(default_factory=set[str])
    changed_labels: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    relabelled: int = 0
    replaced: set[str] = field(default_factory=set[str])
    times: dict[str, int] = field(default_factory=dict[str, int])
    changed: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    known: int = 0
    done: int = 0
    failed: int = 0
    committed_at: float = 0.0
    reported_at: float = 0.0

    def run(self, batch: int | None, *, prune: bool, most: bool = False) -> IndexSummary:
        """Index what the store does not hold yet; see `index`."""
        began = time.monotonic()
        writer, source = self.writer, self.source
        facts = sql.facts_of(writer.rows)
        known = int(facts["batch"]) if batch is None and "batch" in facts else batch
        self.batch_size = BatchSize.on(self.clip.device, known)
        self.key = sql.source_key(writer.rows, source.spec)
        self.last = writer.rows.execute("SELECT coalesce(max(key), 0) FROM images").fetchone()[0]
        self.total = source.count()
        source.check()
        gone = 0
        with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as walked:
            walked.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
            try:
                self._all_passes(walked if prune else None)
            except (BadInput, ObjectStoreError):  # the source has gone: what is finished is kept, then it is said
                self._commit()
                raise
            self._commit()
            if not self.stopped.is_set():
                if not self.done + self.failed + self.known:
                    raise no_picture(source)
                self._tell("moments", force=True)
                leaving = self._leaving(walked) if prune else []
                refused = None if most else self._refusal(leaving)
                gone = writer.remove(leaving, "gone", "no longer in its source") if leaving and refused is None else 0
                writer.tidy(end=True)
                if refused is not None:
                    raise refused
        if self.stopped.is_set():
            raise (Ended if self.stopped.number == signal.SIGTERM else KeyboardInterrupt)(
                f"stopped after {self.done:,} images, all of them kept in {writer.folder}. To go on, type the same command again"
            )
        images = sum(len(block) for block in writer.blocks())
        return IndexSummary(
            str(writer.folder), self.done, self.failed, self.known, self.changed, gone, self.relabelled, images, time.monotonic() - began, self.batch_size.settled,
            tuple(self.errors), dict(passed_over_of(source)),
        )  # fmt: skip

    def _all_passes(self, walked: sqlite3.Connection | None) -> None:
        self._pass(self._new_pictures(walked))
        again = "SELECT count(*) FROM images WHERE status = 'error' AND source = ? AND key <= ?"
        if not self.stopped.is_set() and self.writer.rows.execute(again, (self.key, self.last)).fetchone()[0]:
            self._pass(self._failed_before())

    # ---- which pictures

    def _new_pictures(self, walked: sqlite3.Connection | None) -> Iterator[Picture]:
        """Return pictures that the store does not know; each id once."""
        with closing(sql.connect_to_read(self.writer.folder)) as rows:
            rows.row_factory = sqlite3.Row
            for picture in self.source:
                if self.stopped.is_set():
                    return
                if walked is not None:
                    walked.execute("INSERT OR IGNORE INTO seen VALUES (?)", (picture.id,))
                # In this order: an id leaves `flying` only after its row is committed.
                flying = picture.id in self.flying
                row = rows.execute("SELECT * FROM images WHERE id = ?", (picture.id,)).fetchone()
                changed = row is not None and not flying and self._is_changed(picture, row)
                if flying or (row is not None and row["status"] != "gone" and not changed):
                    self.known += 1
                    if (
                        picture.labelled
                        and not flying
                        and row is not None
                        and (labels := sql.changed_labels(row, picture))
                    ):
                        self.changed_labels[picture.id] = labels
                    continue
                if changed:
                    self.replaced.add(picture.id)
                self.flying.add(picture.id)
                yield picture

    def _is_changed(self, picture: Picture, row: sqlite3.Row) -> bool:
        """Tell whether a picture that was done is another one now: by size and time of its file, and where these differ by its bytes."""
        data = picture.data
        if row["status"] != "done" or row["source"] != self.key or row["digest"] is None:
            return False
        if isinstance(data, bytes):
            return len(data) != row["size"] or digest(data) != row["digest"]
        if not isinstance(data, Path):
            return False
        try:
            size, time = facts_of_file(data)
            if (size, time) == (row["size"], row["time"]):
                return False
            if size != row["size"] or digest_of_file(data) != row["digest"]:
                return True
        except OSError:  # what is known of it stays until it can be read
            return False
        self.times[picture.id] = time
        return False

    def _failed_before(self) -> Iterator[Picture]:
        """Return pictures that could not be used in an earlier run: they may have been repaired since."""
        with closing(sql.connect_to_read(self.writer.folder)) as rows:
            for picture in self.source:
                if self.stopped.is_set():
                    return
                row = rows.execute("SELECT status, key FROM images WHERE id = ?", (picture.id,)).fetchone()
                if row is not None and row[0] == "error" and row[1] <= self.last and picture.id not in self.flying:
                    self.flying.add(picture.id)
                    self.known -= 1
                    yield picture

    def _leaving(self, walked: sqlite3.Connection) -> list[int]:
        """Return the keys of images that the source had and has no longer."""
        rows = self.writer.rows.execute("SELECT key, id FROM images WHERE source = ? AND status = 'done'", (self.key,))
        return [key for key, id in rows if walked.execute("SELECT 1 FROM seen WHERE id = ?", (id,)).fetchone() is None]

    def _refusal(self, leaving: list[int]) -> BadInput | None:
        """Return what is said where most images of a source would be taken out: a drive that is not mounted looks the same."""
        there = "SELECT count(*) FROM images WHERE source = ? AND status = 'done'"
        count = self.writer.rows.execute(there, (self.key,)).fetchone()[0]
        if 2 * len(leaving) <= count:
            return None
        return BadInput(
            f"{len(leaving):,} of the {count:,} images of {self.source.spec} are not there any more, and none was taken out: bring "
            "them back; or, if they are to leave the store, type: prune_all=True"
        )

    # ---- decoding, batches, commits

    def _pass(self, pictures: Iterable[Picture]) -> None:
        self.committed_at = time.monotonic()
        # A batch is so many pictures of the source, good or bad: after a stop the same ones come together again.
        with closing(
            batches_ahead(
                pictures, lambda picture: decode(picture, self.clip.preprocess), self.batch_size,
                workers=self.workers, gentle=self.clip.device.type == "cpu",
            )
        ) as batches:  # fmt: skip
            for work in batches:
                if not self.stopped.is_set():
                    self._batch(work)
                if self.stopped.is_set():
                    return

    def _batch(self, work: list[Work]) -> None:
        good = [decoded for _, decoded in work if isinstance(decoded, Decoded)]
        if len(good) < len(work):
            self.source.check()  # a vanished folder is not a thousand bad images
        shapes = list(dict.fromkeys(decoded.pixels.shape for decoded in good))
        place = {shape: i for i, shape in enumerate(shapes)}  # pictures of one shape go through the model together
        work = sorted(work, key=lambda one: place[one[1].pixels.shape] if isinstance(one[1], Decoded) else 0)
        arrays: list[ImageArrays] = []
        if good:
            began = time.monotonic()
            for shape in shapes:
                alike = [decoded.pixels for decoded in good if decoded.pixels.shape == shape]
                arrays += split_when_out_of_memory(self._step, torch.stack(alike), self.batch_size.ran_out)
            if len(shapes) == 1 and len(good) == len(work) == self.batch_size.current:
                self.batch_size.record(len(work), time.monotonic() - began)
        finite = np.concatenate([part.finite for part in arrays]) if arrays else np.zeros(0, bool)
        at = 0
        for picture, decoded in work:
            if isinstance(decoded, ObjectStoreError):  # a bucket that does not answer is no bad picture
                raise decoded
            if isinstance(decoded, Decoded):
                error = "" if finite[at] else "the model's output is not finite. Load it with dtype='float32'"
                at += 1
            else:
                error = failure_text(decoded)
            self.entries.append(self._entry(picture, decoded, error))
            if error and len(self.errors) < 20:
                self.errors.append((picture.id, error))
            self.failed += bool(error)
            self.done += not error
        for part in arrays:
            for name, array in part.usable().items():
                self.arrays.setdefault(name, []).append(array)
        self._tell("images")
        size = sum(array.nbytes for pieces in self.arrays.values() for array in pieces)
        late = time.monotonic() - self.committed_at >= self.commit_seconds
        if late or size >= COMMIT_BYTES or len(self.entries) >= FULL:
            self._commit()

    def _step(self, pixels: Tensor) -> ImageArrays:
        return image_arrays(self.clip, self.basis, self.writer.manifest, pixels)

    def _entry(self, picture: Picture, decoded: Decoded | Exception, error: str) -> dict[str, Any]:
        known = decoded if isinstance(decoded, Decoded) else None
        return {
            "id": picture.id,
            "source": self.key,
            "path": picture.path,
            "size": None if known is None else known.size,
            "row": None if known is None else known.row,
            "col": None if known is None else known.col,
            "digest": None if known is None else known.digest,
            "time": None if known is None else known.time,
            "label": picture.label,
            "group": picture.group,
            "captions": json.dumps(list(picture.captions), ensure_ascii=False),
            "meta": json.dumps(dict(picture.meta), ensure_ascii=False),
            "status": "error" if error else "done",
            "error": error,
        }

    def _commit(self) -> None:
        labels = {
            id: self.changed_labels.pop(id) for id in list(self.changed_labels)
        }  # the thread that walks the source may add to it
        self.relabelled += self.writer.relabel(labels)
        if self.times:
            self.writer.set_times({id: self.times.pop(id) for id in list(self.times)})
        if self.entries:
            self._remove_replaced()
            if self.batch_size.settled is not None:
                sql.set_fact(self.writer.rows, "batch", self.batch_size.settled)
            self.writer.commit(self.entries, self.arrays)
            self.flying.difference_update([entry["id"] for entry in self.entries])
            self.entries, self.arrays = [], {}
            self.writer.tidy(end=False)
        self.committed_at = time.monotonic()

    def _remove_replaced(self) -> None:
        """Take out the old numbers of pictures that have changed, right before their new ones come in."""
        known = "SELECT key FROM images WHERE id = ? AND status = 'done'"
        ids = [entry["id"] for entry in self.entries if entry["id"] in self.replaced]
        keys = [key for id in ids for (key,) in self.writer.rows.execute(known, (id,))]
        if keys:
            self.changed += self.writer.remove(keys, "gone", "its file has changed")
        self.replaced.difference_update(ids)

    def _tell(self, step: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.reported_at < REPORT_SECONDS:
            return
        self.reported_at = now
        counts = [f"{count:,} {what}" for count, what in ((self.known, "known"), (self.failed, "not used")) if count]
        self.progress(
            f"{step} ({', '.join(counts)})" if counts else step, self.done + self.failed + self.known, self.total
        )
