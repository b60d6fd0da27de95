"""The world as a data set: indexable, iterable, never stored, the same picture for the same index on every machine."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from clip_anatomy.data.world.attribute_names import ATTRIBUTES, GROUPS
from clip_anatomy.data.world.attributes import AGREE, TIED, SceneAttributes, draw_attributes
from clip_anatomy.data.world.captions import Claim, describe
from clip_anatomy.data.world.random_numbers import SPLITS, PictureRandom
from clip_anatomy.data.world.render import render
from clip_anatomy.errors import BadSpec


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures with everything that is true of them.

    Attributes:
        images: sRGB pictures.
        masks: where each of up to four objects is seen.
        facts: every attribute, as codes.
        seed: the world's seed; captions are drawn from it.
    """

    images: UInt8[np.ndarray, "image row col 3"]
    masks: Bool[np.ndarray, "image 4 row col"]
    facts: SceneAttributes
    seed: int

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.facts)

    def claims(self, per_image: int = 1) -> list[list[tuple[str, Claim]]]:
        """Return captions with the claims they make, `per_image` for each picture."""
        return captions_of(self.facts, self.seed, per_image)

    def captions(self, per_image: int = 1) -> list[list[str]]:
        """Return captions, `per_image` for each picture."""
        return [[text for text, _ in row] for row in self.claims(per_image)]

    def labels(self) -> dict[str, list[str]]:
        """Return every attribute in words, "" where it does not apply."""
        return words_of(self.facts)


@dataclass(frozen=True)
class World:
    """A data set of synthetic pictures with complete ground truth.

    Args:
        seed: another seed is another world.
        size: rows and columns of the pictures; any size ≥ 16.
        split: "train", "val" or "test": the same distribution, no picture in common.
        balanced: break both ties: tied shapes stand on either background, and a printed digit equals the count, in
            half of the pictures each. The natural draw has 95 % for both.
        length: number of pictures.

    Raises:
        BadSpec: the split is unknown or the size too small.

    Example:
        >>> world = World(split="test", length=10)
        >>> scene = world[3]
        >>> scene.images.shape
        (1, 64, 64, 3)
    """

    seed: int = 0
    size: int = 64
    split: str = "train"
    balanced: bool = False
    length: int = 20_000

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.split not in SPLITS:
            raise BadSpec(f"World has no split {self.split!r}; use one of {', '.join(SPLITS)}")
        if self.size < 16:
            raise BadSpec(f"World draws pictures of at least 16 pixels, not {self.size}; use World(size=64)")

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.length

    def __getitem__(self, index: int) -> Scenes:
        """Return one picture as a batch of one."""
        if not -self.length <= index < self.length:
            raise IndexError(f"picture {index} of a world of {self.length}")
        return self.batch(np.array([index % self.length]))

    def __iter__(self) -> Iterator[Scenes]:
        """Go through the pictures one at a time (drawing a batch at a time)."""
        for start in range(0, self.length, 256):
            scenes = self.batch(np.arange(start, min(start + 256, self.length)))
            for row in range(len(scenes)):
                one = slice(row, row + 1)
                yield Scenes(scenes.images[one], scenes.masks[one], scenes.facts[one], self.seed)

    def _draw(self, indices: Int[np.ndarray, " image"]) -> tuple[SceneAttributes, PictureRandom]:
        dice = PictureRandom(np.asarray(indices), self.seed, self.split)
        tied, agree = (0.5, 0.5) if self.balanced else (TIED, AGREE)
        return draw_attributes(dice, tied=tied, agree=agree), dice

    def facts(self, indices: Int[np.ndarray, " image"]) -> SceneAttributes:
        """Return the attributes of some pictures without drawing them."""
        return self._draw(indices)[0]

    def batch(self, indices: Int[np.ndarray, " image"]) -> Scenes:
        """Draw some pictures.

        Args:
            indices: non-negative indices, in any order.

        Returns:
            The pictures and their truth.
        """
        facts, dice = self._draw(indices)
        images, masks = render(facts, dice, self.size)
        return Scenes(images, masks, facts, self.seed)


def captions_of(facts: SceneAttributes, seed: int, per_image: int) -> list[list[tuple[str, Claim]]]:
    """Write captions for pictures known by their facts alone; the same for the same picture, whatever the batch."""
    rows = []
    for row in range(len(facts)):
        # Captions depend on what the picture shows too, so that the three splits do not repeat each other's choices.
        salt = int(facts.centre[row, 0, 0] * 1e6)
        rng = random.Random((seed << 48) ^ (int(facts.index[row]) << 20) ^ salt)
        rows.append([describe(facts, row, rng) for _ in range(per_image)])
    return rows


def words_of(facts: SceneAttributes) -> dict[str, list[str]]:
    """Return every attribute in words, "" where it does not apply.

    Returns:
        Columns `shape`, `colour`, `texture` (of the first object), `shape2`, `colour2`, `texture2`, `background`,
        `size`, `position`, `count`, `digit` and `group`, one entry per picture.
    """

    def name(values: tuple[str, ...], codes: np.ndarray) -> list[str]:
        return [values[code] if code >= 0 else "" for code in codes]

    columns = {}
    for key in ("shape", "colour", "texture"):
        columns[key] = name(ATTRIBUTES[key], getattr(facts, key)[:, 0])
        columns[key + "2"] = name(ATTRIBUTES[key], getattr(facts, key)[:, 1])
    for key in ("background", "size", "position"):
        columns[key] = name(ATTRIBUTES[key], getattr(facts, key))
    columns["count"] = name(ATTRIBUTES["count"], facts.count - 1)
    columns["digit"] = [str(digit) if digit else "" for digit in facts.digit]
    columns["group"] = name(GROUPS, facts.group)
    return columns
