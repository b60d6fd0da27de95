"""Computations written out, for tests to compare with."""

import numpy as np


def bilinear(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_LINEAR longhand: the nearest four pixels of each place, whatever the scale."""

    def along(length: int, target: int) -> np.ndarray:
        shares = np.zeros((target, length))
        for at in range(target):
            place = max((at + 0.5) * length / target - 0.5, 0)
            low = min(int(place), length - 1)
            shares[at, low] += 1 - (place - low)
            shares[at, min(low + 1, length - 1)] += place - low
        return shares

    rows, cols = along(levels.shape[0], size[0]), along(levels.shape[1], size[1])
    return np.rint(np.einsum("ri,cj,ijk->rck", rows, cols, levels.astype(float)))
