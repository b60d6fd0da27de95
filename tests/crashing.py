"""The process that `test_crash` kills: one index run over the demo world, in small commits."""

import os
import signal
import sqlite3
import sys
from pathlib import Path

IMAGES = 200
SOURCE = f"world:{IMAGES}:test"
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "sqlite3.connect"}


def run(store: str, full: int, kill_at: int, ready=None) -> None:
    """Index; with `kill_at`, die at that many-th operation on the store's files, whatever it is."""
    import torch
    from tiny import open_clip_model

    import clip_anatomy as ca
    from clip_anatomy.store import writer
    from clip_anatomy.store.index import index

    torch.set_num_threads(1)
    writer.FULL = full
    clip = ca.load(open_clip_model(layers=2, heads=2, d=8), parity=False)
    seen = 0

    def count(event: str, args: tuple) -> None:
        nonlocal seen
        if event in WRITES and args and store in str(args[0]):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(count)
    if ready is not None:
        ready.set()
    done = index(clip, SOURCE, store, batch=8, commit_seconds=0.0)
    Path(f"{store}.done").write_text(str(done.images))


def die_in_a_transaction(store: str) -> None:
    """Change all rows with a cache so small that changes reach the file before the commit, and die."""
    rows = sqlite3.connect(f"{store}/rows.sqlite", isolation_level=None)
    rows.execute("PRAGMA cache_size = 1")
    rows.execute("BEGIN IMMEDIATE")
    rows.execute("UPDATE images SET label = label || ' changed', captions = captions || captions")
    os.kill(os.getpid(), signal.SIGKILL)
