"""`index`: read a collection once and store the parts of every image.

source ─▶ not known yet? ─▶ decode (threads, ahead) ─▶ model (batches) ─▶ head coordinates ─▶ commit every half minute
"""

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from clip_anatomy import run_record
from clip_anatomy.data.labelled_source import LabelledSource
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture_batches import no_picture
from clip_anatomy.engine.engine import Engine, engine_of, works_here
from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.prefetch import MOST_WORKERS
from clip_anatomy.loading.clip import Clip
from clip_anatomy.number_ranges import whole
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.split.basis import basis_of
from clip_anatomy.store.index_run import IndexRun, IndexSummary, StopRequest
from clip_anatomy.store.manifest import NAME, Manifest, manifest_for
from clip_anatomy.store.sharded_index import ShardedIndexSummary, index_sharded
from clip_anatomy.store.shards import is_sharded
from clip_anatomy.store.writer import Writer

__all__ = ["IndexSummary", "index"]

COMMIT_SECONDS = 30.0
MOST_AT_ONCE = 65_536


@public
def index(
    clip: Clip,
    source: Any,
    store: str | Path,
    *,
    layers: str | int | Sequence[int] | None = None,
    keep: str | Sequence[str] | None = None,
    convention: str | None = None,
    labels: str | Path | None = None,
    prune: bool = False,
    prune_all: bool = False,
    batch: int | None = None,
    workers: int | None = None,
    shard_size: int | None = None,
    part: str | None = None,
    engine: Engine | str = "local",
    progress: Progress | None = None,
    commit_seconds: float = COMMIT_SECONDS,
) -> IndexSummary | ShardedIndexSummary:
    """Index a collection: store the parts of every image: head coordinates, embeddings, rows, moments.

    Run it again to go on after a stop, to add images, or to try again those that could not be read: what is in the store
    is not done twice. A kill or a full disk costs at most the last half minute.

    With an address of object storage, `shard_size`, `part` or another engine than "local" it makes a sharded store: pieces of some thousand
    pictures, each committed once, by any number of workers and processes at the same time. Type the same again to go on.

    Args:
        clip: an opened model.
        source: a folder, list, table, tars, dataset, `world:COUNT` or Python list; see `open_dataset`.
        store: folder of the store, made if it is not there; of a sharded one also s3://, gs:// or az:// and a place.
        layers: "all", "last:4", "8-11", "0,3" or numbers: whose heads (and MLPs) are kept. All by default; a store that
            is there is continued as it was made.
        keep: "heads", or "heads,mlps" to keep what the MLPs wrote too.
        convention: "centered" (default) or "official".
        labels: a table (CSV, JSON) of labels, groups and captions, by id, path or file name. Of images that the store knows only the
            rows are written anew; no picture is read.
        prune: also take out images that came from this source and are no longer in it; refused where that is most of them (a
            drive that is not mounted looks the same).
        prune_all: take them out all the same.
        batch: images at once; found by itself when None, halved when memory runs out.
        workers: threads that decode; as many as there are cores by default.
        shard_size: pictures in a shard; 4096 by default.
        part: "3/8": only the shards whose number leaves 3 when divided by 8, for processes that share the work by themselves (Slurm, torchrun).
        engine: "local", "ray", or an opened one (`open_engine`).
        progress: called a few times a second: "images", with how many were known or not used, and "moments".
        commit_seconds: how often finished images are made safe.

    Returns:
        What the run did.

    Raises:
        BadInput: no such source.
        BadImage: the store holds no image, because none of them could be used.
        StoreError: the store is in use, of another model, or was made with other settings.
        OutputError: it cannot be written (any more); what was committed is kept.
        KeyboardInterrupt, Ended: after Ctrl-C or SIGTERM, once everything that was finished has been committed.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = index(ca.load("demo"), "world:12:test", folder + "/store")
        ...     summary.done, summary.failed
        (12, 0)
    """
    opened = open_dataset(source, labels)
    if shard_size is not None or part is not None or not works_here(engine) or is_sharded(store):
        if prune or prune_all or workers is not None or isinstance(opened, LabelledSource):
            raise BadSpec(
                f"{store} is a sharded store, which is never written anew, and its workers decode by themselves. Leave prune=, labels= and workers= "
                "out; labels belong into metadata.csv beside the pictures, or into the table that is the source"
            )
        kept: dict[str, Any] = {
            "layers": layers,
            "keep": keep,
            "convention": convention,
            "size": shard_size,
            "batch": batch,
        }
        with engine_of(engine) as running:
            done = index_sharded(clip, opened, store, running, part=part, progress=progress or silent, **kept)
        run_record.put(ObjectPlace.of(store))
        return done
    folder = Path(store)
    old = Manifest.load(folder) if (folder / NAME).exists() else None
    manifest = manifest_for(clip, old, folder, layers=layers, keep=keep, convention=convention)
    if not (folder / NAME).exists() and opened.count() == 0:  # nothing is left behind where nothing is found
        raise no_picture(opened)
    if batch is not None:
        whole("batch", batch, 1, MOST_AT_ONCE)
    if workers is not None:
        whole("workers", workers, 0, MOST_WORKERS)
    basis = basis_of(clip.vision, manifest.convention, manifest.layers)
    with Writer.open(folder, manifest, basis) as writer, _stop_on_signal() as stopped:
        run = IndexRun(writer, clip, basis, opened, stopped, progress or silent, commit_seconds, workers)
        summary = run.run(batch, prune=prune or prune_all, most=prune_all)
    run_record.write(folder)
    if summary.failed and not summary.images:
        first = "".join(f" The first: {name}: {error}." for name, error in summary.errors[:1])
        raise BadImage(
            f"none of the {summary.failed:,} pictures could be used.{first} {folder} keeps their names; type the same again when they are mended"
        )
    return summary


@contextmanager
def _stop_on_signal() -> Generator[StopRequest]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag, so that it never lands inside a commit; the second one is as ever."""
    stopped = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.number = number
        stopped.set()
        for one, old in before.items():
            signal.signal(one, old)

    for one in (signal.SIGINT, signal.SIGTERM):
        before[one] = signal.signal(one, stop)
    try:
        yield stopped
    finally:
        for one, old in before.items():
            signal.signal(one, old)
