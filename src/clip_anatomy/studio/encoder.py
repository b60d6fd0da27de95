"""Encode the pictures of many clients together: whoever gets the model takes along those that wait."""

import threading
from dataclasses import dataclass, field, fields, replace

from torch import Tensor, cat

from clip_anatomy.loading.clip import Clip
from clip_anatomy.split.parts import Parts, decompose

__all__ = ["Encoder"]

MOST = 8  # pictures in one forward


@dataclass(eq=False)
class _Waiting:
    """A picture that waits, and what became of it."""

    pixels: Tensor
    parts: Parts | None = None
    error: BaseException | None = None


@dataclass
class Encoder:
    """Split pictures one by one or together, as they come.

    Attributes:
        clip: the model.
        model: held while the model runs.
        forwards: how often it ran.
        pictures: how many were split in these runs.
    """

    clip: Clip
    model: threading.Lock
    forwards: int = 0
    pictures: int = 0
    _waiting: list[_Waiting] = field(default_factory=list[_Waiting], repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def split(self, pixels: Tensor) -> Parts:
        """Split the embedding of one picture [1, 3, row, col], in one forward with others of the same size that wait meanwhile."""
        mine = _Waiting(pixels)
        with self._guard:
            self._waiting.append(mine)
        with self.model:
            if mine.parts is None and mine.error is None:
                self._run(mine)
        if mine.error is not None:
            raise mine.error
        assert mine.parts is not None
        return mine.parts

    def _run(self, first: _Waiting) -> None:
        with self._guard:
            alike = [one for one in self._waiting if one is not first and one.pixels.shape == first.pixels.shape]
            together = [first, *alike[: MOST - 1]]
            self._waiting = [one for one in self._waiting if one not in together]
        self.forwards, self.pictures = self.forwards + 1, self.pictures + len(together)
        try:
            parts = decompose(self.clip, cat([one.pixels for one in together]))
            for at, one in enumerate(together):
                one.parts = _alone(parts, at)
        except Exception as error:
            for one in together:
                one.error = error


def _alone(parts: Parts, at: int) -> Parts:
    """Cut the parts of one image out of those of a batch, so that the others can be freed."""

    def cut(value: object) -> object:
        return value[at : at + 1].clone() if isinstance(value, Tensor) else value

    trace = replace(parts.trace, **{one.name: cut(getattr(parts.trace, one.name)) for one in fields(parts.trace)})
    tensors = {one.name: cut(getattr(parts, one.name)) for one in fields(parts) if one.name not in ("trace", "source")}
    return replace(parts, **tensors, trace=trace, source=replace(parts.source, inputs=cut(parts.source.inputs)))
