"""Claims: which shards are being done, so that processes with the same command share them; and what attempts that do not count left behind.

Nothing hangs on a claim: a shard counts by its commit, and one whose claim belongs to nobody alive is done at the end of a run.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator

from clip_anatomy.objects import ObjectPlace
from clip_anatomy.store.shards import ATTEMPT_NAME, commit_name, committed_shards, read_commit

__all__ = ["claimed", "sweep_attempts"]


def claimed(place: ObjectPlace, numbers: Iterable[int]) -> Iterator[int]:
    """Hand out shards that nobody else does; at the end those that somebody had begun and not committed yet.

    Args:
        place: the sharded store.
        numbers: of shards that are missing.
    """
    left: list[int] = []
    for number in numbers:
        mine = place.put_if_absent(_claim(number), _holder())
        if place.get(commit_name(number)) is not None:  # by somebody else, since the numbers were listed
            continue
        if mine:
            yield number
        else:
            left.append(number)
    yield from (number for number in left if place.get(commit_name(number)) is None)


def sweep_attempts(place: ObjectPlace) -> int:
    """Delete claims of shards that are committed, and attempts at these that do not count; of other shards, one may be under way.

    Returns:
        How many attempts there were.
    """
    committed = committed_shards(place)
    attempts: dict[int, list[str]] = {}
    for folder in place.folders("shards/"):
        if (match := ATTEMPT_NAME.fullmatch(folder)) and int(match[1]) in committed:
            attempts.setdefault(int(match[1]), []).append(f"shards/{folder}")
    swept = 0
    for number, folders in attempts.items():
        if len(folders) > 1:
            counts = read_commit(place, number).folder
            for folder in (folder for folder in folders if folder != counts):
                place.delete([name for name, _ in place.names(f"{folder}/")])
                swept += 1
    done = {_claim(number) for number in committed}
    place.delete([name for name, _ in place.names("claims/") if name in done])
    return swept


def _claim(number: int) -> str:
    return f"claims/{number:06d}.json"


def _holder() -> bytes:
    """Return who does a shard, for people to read; no two are equal."""
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()
