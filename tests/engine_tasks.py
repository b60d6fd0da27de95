"""Functions that workers of `test_ray` run: real work on the bundled model, and ways to fail."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = "world:64:test"


@dataclass(frozen=True)
class Number:
    """A state that is no model, for tests of the engine itself; counts how often it was built."""

    folder: str

    def open(self) -> Path:
        folder = Path(self.folder)
        (folder / f"opened-{os.getpid()}-{time.monotonic_ns()}").touch()
        return folder


def embeddings(clip: Any, places: tuple[int, ...]) -> "Tensor":
    """Embed some pictures of the demo world."""
    from itertools import islice

    import torch

    from clip_anatomy.data.open_dataset import open_dataset
    from clip_anatomy.data.picture import decode

    pictures = list(islice(open_dataset(PICTURES), max(places) + 1))
    pixels = torch.stack([decode(pictures[at], clip.preprocess).pixels for at in places])
    return clip.encode_image(pixels)


def process(folder: Path, task: int) -> tuple[int, str]:
    """Say who did it."""
    import ray

    time.sleep(0.05)
    return os.getpid(), ray.get_runtime_context().get_node_id()


def killed_once(folder: Path, task: int) -> int:
    """Die the first time that task 2 is done, and every time that task 99 is."""
    first = folder / "killed"
    if task == 99 or (task == 2 and not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * task


def failing(folder: Path, task: int) -> int:
    """Fail twice as a server that is away does, then answer."""
    tried = len(list(folder.glob("tried-*")))
    (folder / f"tried-{tried}").touch()
    if task == 1 and tried < 2:
        raise OSError("503 slow down")
    return task


def refused(folder: Path, task: int) -> int:
    from clip_anatomy.errors import BadImage, MissingExtra

    (folder / f"tried-{task}-{time.monotonic_ns()}").touch()
    if task == 1:
        raise BadImage("photo.jpg holds no picture")
    if task == 2:
        raise MissingExtra("av", "video")
    return task


def slow_on_one_node(folder: Path, task: int) -> str:
    """Take ten times as long on the node that came first."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    try:
        with (folder / "slow").open("x") as file:
            file.write(node)
    except FileExistsError:
        pass
    time.sleep(0.5 if (folder / "slow").read_text() == node else 0.05)
    return node


def letters(folder: Path, task: str) -> str:
    time.sleep(0.2 if task == "a" else 0.0)  # the first is the last to come
    return f"{task}."


@dataclass(frozen=True)
class Full:
    """A model and a sharded store, for `shard_on_a_full_disk`."""

    model: Any
    store: Any
    source: str
    folder: str

    def open(self) -> Any:
        return self.model.open(), self


def shard_on_a_full_disk(state: Any, number: int) -> bool:
    """Index a shard; the first time with room for 20 kB in a file, as on a disk that is full."""
    import resource

    from clip_anatomy.store.index_shard import index_shard

    clip, full = state
    first, limits = Path(full.folder) / f"full-{number}", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not first.exists():
            first.touch()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return index_shard(clip, full.source, full.store, number).committed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
