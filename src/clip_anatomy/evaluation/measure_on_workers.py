"""The pictures of a protocol, measured by the workers of an engine and merged in their order: the figures of one process, to the bit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from clip_anatomy.engine.engine import Engine, engine_of, in_order
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.tasks import ProtocolTask
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.model_setup import ModelSetup

__all__ = ["measure_on_workers"]

PART = 8  # pictures


@dataclass(frozen=True)
class _TaskSetup:
    """A model, and a task without it."""

    model: ModelSetup
    kind: type
    fields: dict[str, Any]

    @property
    def device(self) -> str:
        """Where the model wants to be."""
        return self.model.device

    def open(self) -> ProtocolTask:
        """Open the model, and give it to the task."""
        clip, task = self.model.open(), object.__new__(self.kind)
        on_device = {name: x.to(clip.device) if isinstance(x, Tensor) else x for name, x in self.fields.items()}
        vars(task).update(on_device, clip=clip)
        return task


def _measured(task: ProtocolTask, entries: Sequence[Any]) -> list[Any]:
    """Return what each picture adds, or why it cannot be measured."""
    found: list[Any] = []
    for entry in entries:
        one = task.blank()
        try:
            one.measure(entry)
        except BadSpec:
            raise
        except BadInput as error:
            found.append((entry.id, str(error)))
        else:
            found.append(one.measured)
    return found


def measure_on_workers(
    engine: Engine | str, clip: Clip, task: ProtocolTask, entries: Sequence[Any], tell: Callable[[int], None]
) -> tuple[int, list[tuple[str, str]]]:
    """Measure pictures, and merge what they add into a task, until the last or Ctrl-C.

    Args:
        engine: which.
        clip: the model of the task.
        task: that the figures are asked of.
        entries: pictures.
        tell: told how many are done.

    Returns:
        How many were tried, and id and error of those that could not be measured.
    """
    own = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in vars(task.blank()).items() if name != "clip"}
    setup = _TaskSetup(ModelSetup.of(clip), type(task), own)
    rest, done = iter(entries), 0
    skipped: list[tuple[str, str]] = []
    parts: Iterator[list[Any]] = iter(lambda: [*islice(rest, PART)], [])
    try:
        with engine_of(engine) as opened:
            for found in in_order(opened.map(_measured, parts, setup=setup)):
                for one in found:
                    if isinstance(one, tuple):
                        skipped.append(one)
                    else:
                        task.measured = task.measured.merge(one)
                    done += 1
                tell(done)
    except KeyboardInterrupt:
        if done == len(skipped):  # nothing to tell
            raise
    return done, skipped
