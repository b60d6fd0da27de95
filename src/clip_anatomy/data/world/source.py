"""The demo world as a collection: pictures drawn while they are walked, every attribute known."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clip_anatomy.data.picture import ImageData, Picture
from clip_anatomy.data.world import World
from clip_anatomy.errors import BadInput
from clip_anatomy.number_ranges import LARGEST

__all__ = ["WorldSource"]

AT_A_TIME = 64
FORM = "world:COUNT, world:COUNT:SPLIT with a split train, val or test, or world:COUNT:SPLIT:balanced"


@dataclass(frozen=True)
class WorldSource:
    """Pictures of the demo world; label is the shape, group the tied shape on its background.

    All other attributes are in `meta`. A picture's id depends on the world and its index only, so that `world:20000`
    continues `world:10000`.
    """

    world: World

    @staticmethod
    def of(rest: str) -> "WorldSource":
        """Open `COUNT[:SPLIT[:balanced]]`.

        Raises:
            BadInput: no such world.
        """
        count, split, kind, *more = [*rest.split(":"), "", ""] if rest.count(":") < 2 else rest.split(":")
        if not count.isdecimal() or any(more) or kind not in ("", "balanced"):
            raise BadInput(f"'world:{rest}' is no world. Type {FORM}")
        if len(count) > len(str(LARGEST)):
            raise BadInput(f"'world:{count[:20]}…' is no world: it has at most {LARGEST:,} pictures. Type {FORM}")
        try:
            world = World(split=split or "train", length=int(count), balanced=kind == "balanced")
        except ValueError as error:
            raise BadInput(f"'world:{rest}': {error}. Type {FORM}") from error
        return WorldSource(world)

    @property
    def spec(self) -> str:
        """The spec that was typed."""
        return f"world:{len(self.world)}:{self.world.split}{':balanced' if self.world.balanced else ''}"

    def __iter__(self) -> Iterator[Picture]:
        """Draw the pictures in order."""
        world = self.world
        kind = f"world-{world.seed}-{world.split}{'-balanced' if world.balanced else ''}"
        for start in range(0, len(world), AT_A_TIME):
            scenes = world.batch(np.arange(start, min(start + AT_A_TIME, len(world))))
            words, captions = scenes.labels(), scenes.captions(3)
            for at in range(len(scenes)):
                meta = {name: values[at] for name, values in words.items() if values[at] != "" and name != "group"}
                yield Picture(
                    f"{kind}-{start + at}",
                    scenes.images[at],
                    str(start + at),
                    words["shape"][at],
                    words["group"][at],
                    tuple(captions[at]),
                    meta,
                )

    def count(self) -> int:
        """Count the pictures."""
        return len(self.world)

    def check(self) -> None:
        """Find nothing wrong: a world cannot go away."""

    def fetch(self, path: str) -> ImageData:
        """Draw the picture of an index again."""
        if not path.isdecimal() or int(path) >= len(self.world):
            raise BadInput(f"{path!r} is no picture of {self.spec}. Type a number from 0 to {len(self.world) - 1}")
        return self.world.batch(np.array([int(path)])).images[0]
