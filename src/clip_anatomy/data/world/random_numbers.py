"""Random numbers that belong to a picture: a hash of (seed, split, index, throw), whatever batch the picture is drawn in."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

SPLITS = ("train", "val", "test")


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the SplitMix64 finaliser of Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class PictureRandom:
    """Throw uniform numbers for many pictures at once; the n-th throw of a picture is always the same.

    Args:
        indices: the pictures' indices in their split, [image].
        seed: the world's seed.
        split: "train", "val" or "test": three streams that share no picture.

    Example:
        >>> together = PictureRandom(np.array([3, 7]), seed=0, split="test")()
        >>> alone = PictureRandom(np.array([7]), seed=0, split="test")()
        >>> bool(together[1] == alone[0])
        True
    """

    indices: Int[np.ndarray, " image"]
    seed: int
    split: str
    throws: int = field(default=0, init=False)

    def __call__(self, *shape: int) -> Float[np.ndarray, " image ..."]:
        """Return uniform numbers in [0, 1), one array of `shape` per picture."""
        size = int(np.prod(shape)) if shape else 1
        stream = np.array([self.seed * 3 + SPLITS.index(self.split)], dtype=np.uint64)
        start = _mix(self.indices.astype(np.uint64) + _mix(stream))
        throw = np.arange(self.throws, self.throws + size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self.throws += size
        bits = _mix(_mix(start[:, None] + throw[None]) + np.uint64(0x632BE59BD9B4E019))
        uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return uniform.reshape(len(self.indices), *shape)

    def choice(self, options: int) -> Int[np.ndarray, " image"]:
        """Return one of `options` codes per picture, all as likely."""
        return np.minimum((self() * options).astype(np.int64), options - 1)
