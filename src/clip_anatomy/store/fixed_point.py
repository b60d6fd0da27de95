"""Embeddings on the disk: 20 bits a number, and one scale for 32 numbers.

Float16 keeps a number of a unit vector to a two-thousandth of itself, so cosines were off by up to 1e-4; float32 takes a store of a B/16 over
20 kB an image. Numbers of one size need no exponent of their own: 20 bits of a shared scale keep a cosine to 1e-6 in 2.53 bytes a number.

    number = (16 · upper + lower) / 524287 · 2^(−scale / 8)
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32

__all__ = ["decode", "encode", "fixed_point_arrays"]

GROUP = 32  # numbers that share a scale
LARGEST = 2**19 - 1
STEPS = 8  # scales between a number and its double


def fixed_point_arrays(embed: int) -> dict[str, tuple[str, int]]:
    """Return name → type and width of the arrays: upper 16 bits, lower 4 bits (two numbers a byte, half a width apart), scales."""
    return {
        "embedding": ("int16", embed),
        "embedding_low": ("uint8", -(-embed // 2)),
        "embedding_scale": ("uint8", -(-embed // GROUP)),
    }


def encode(unit: Float[np.ndarray, "image embed"]) -> dict[str, np.ndarray]:
    """Code finite numbers of −1 to 1.

    Args:
        unit: embeddings of unit length.

    Returns:
        Name → array [image, width], as in `fixed_point_arrays`.
    """
    images, embed = unit.shape
    _, (_, half), (_, groups) = fixed_point_arrays(embed).values()
    padded = np.zeros((images, groups, GROUP), np.float32)
    padded.reshape(images, -1)[:, :embed] = unit
    largest = np.maximum(np.abs(padded).max(-1), np.float32(2.0**-31))
    scale = np.clip(np.floor(-STEPS * np.log2(largest)), 0, 255).astype(np.uint8)
    whole = np.rint(padded.astype(np.float64) / _factors(scale)[..., None]).astype(np.int32)
    whole = np.clip(whole, -LARGEST, LARGEST).reshape(images, -1)[:, :embed]
    low = np.zeros((images, 2 * half), np.uint8)
    low[:, :embed] = whole & 15
    return {
        "embedding": (whole >> 4).astype(np.int16),
        "embedding_low": low[:, :half] | (low[:, half:] << 4),
        "embedding_scale": scale,
    }


def decode(arrays: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "image embed"]:
    """Return the numbers that `encode` coded, or those of a store of before, which kept float16."""
    if "embedding_low" not in arrays:
        return arrays["embedding"].astype(np.float32)
    upper, low, scale = arrays["embedding"], arrays["embedding_low"], arrays["embedding_scale"]
    embed, half = upper.shape[1], low.shape[1]
    whole = upper.astype(np.int32)
    whole <<= 4
    whole[:, :half] |= low & 15
    whole[:, half:] |= (low >> 4)[:, : embed - half]
    values = whole.astype(np.float32)
    factors = _factors(scale).astype(np.float32)
    for group in range(scale.shape[1]):
        values[:, group * GROUP : (group + 1) * GROUP] *= factors[:, group, None]
    return values


def _factors(scale: np.ndarray) -> np.ndarray:
    return np.exp2(scale / -STEPS) / LARGEST
