"""Blocks of a sharded store: a file is brought when it is first mapped, and with it the same file of the blocks that come next."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_anatomy.loading.disk_cache import cache_folder
from clip_anatomy.objects import ObjectPlace

__all__ = ["FOLDER", "KEYS_OF_SHARD", "RemoteBlock", "catalogues", "folder_of", "folder_of_shard", "remote_blocks"]

FOLDER = "blocks"
KEYS_OF_SHARD = 1024  # a catalogue numbers the blocks of shard 12 from 12 · 1024
AHEAD, AT_ONCE = 8, 8  # blocks whose files are brought before they are asked for; files brought at once

_COMING: "dict[str, Future[None]]" = {}
_BRINGERS = ThreadPoolExecutor(AT_ONCE, "bring")
_LOCK = threading.Lock()


def folder_of(store: Path, key: int) -> Path:
    """Tell where a block lies."""
    return store / FOLDER / f"{key:06d}"


def folder_of_shard(number: int, attempt: str) -> str:
    """Tell where an attempt at a shard lies in its sharded store."""
    return f"shards/{number:06d}-{attempt}"


def catalogues() -> Path:
    """Find the folder of the catalogues of sharded stores. Only what lies there may say that its arrays are elsewhere."""
    return cache_folder() / "stores"


@dataclass(frozen=True)
class RemoteBlock:
    """Where the files of a block are, if they are not all here.

    Attributes:
        place: the sharded store.
        name: of the block there.
        files: of the block: name → bytes and digest, as JSON.
        folder: where they are brought to.
        following: the block after it.
    """

    place: str
    name: str
    files: str = field(repr=False)
    folder: Path
    following: "RemoteBlock | None" = field(default=None, repr=False)

    def bring(self, file: str) -> None:
        """Bring one file, and the same of the blocks that come next, whose turn will be soon.

        Raises:
            ObjectStoreError: it is not there, cannot be read, or is not what was committed.
        """
        mine, block = self._coming(file), self.following
        for _ in range(AHEAD):
            if block is not None and not (block.folder / file).exists():
                block._coming(file)
            block = None if block is None else block.following
        mine.result()

    def _coming(self, file: str) -> "Future[None]":
        key = str(self.folder / file)
        with _LOCK:
            if (coming := _COMING.get(key)) is not None:
                return coming
            coming = _COMING[key] = _BRINGERS.submit(self._bring, file)
        coming.add_done_callback(lambda _: _COMING.pop(key, None))
        return coming

    def _bring(self, file: str) -> None:
        if not (self.folder / file).exists():
            size, digest = json.loads(self.files)[file]
            ObjectPlace(self.place).fetch(f"{self.name}/{file}", self.folder / file, size, digest)


def remote_blocks(rows: Any, folder: Path) -> dict[int, RemoteBlock]:
    """Return where the blocks of a catalogue are, by key; none for an ordinary store."""
    if folder.parent != catalogues():
        return {}
    [(place,)] = rows.execute("SELECT value FROM facts WHERE name = 'place'").fetchall()
    attempts = dict(rows.execute("SELECT number, attempt FROM shards").fetchall())
    found: dict[int, RemoteBlock] = {}
    following = None
    for key, files in rows.execute("SELECT key, files FROM blocks ORDER BY turn DESC").fetchall():
        number, local = divmod(key, KEYS_OF_SHARD)
        name = f"{folder_of_shard(number, attempts[number])}/{FOLDER}/{local:06d}"
        following = found[key] = RemoteBlock(place, name, files, folder_of(folder, key), following)
    return found
