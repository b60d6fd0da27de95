"""A picture that is read tile by tile: equal to the blend by hand, constant in memory, on disk, as a pyramid."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import clip_anatomy as ca
from clip_anatomy.errors import BadImage, BadInput, BadSpec
from clip_anatomy.images.geometry import window_starts

pytestmark = pytest.mark.usefixtures("one_thread")


class Counted:
    """An array that remembers the largest rectangle that was asked for."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.largest = pixels, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        found = self.pixels[place]
        self.largest = max(self.largest, found.shape[0] * found.shape[1])
        return found


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=2), tokenizer=None, parity=False)


@pytest.mark.parametrize(("rows", "cols", "stride"), [(85, 120, 16), (32, 200, 24), (20, 64, 32)])
def test_tiles_are_blended_as_by_hand(rows: int, cols: int, stride: int, clip: ca.Clip, tmp_path: Path) -> None:
    source = Counted(np.random.default_rng(rows).integers(0, 256, (rows, cols, 3), dtype=np.uint8))
    text = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    found = ca.tiled_maps(clip, source, text, tmp_path / "maps.npy", "naclip", window=32, stride=stride)
    assert source.largest <= 32 * 32
    height, width = min(4, rows // 8), 4
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (clip.preprocess.mean, clip.preprocess.std))
    total, weight = np.zeros((2, rows // 8, cols // 8)), np.zeros((rows // 8, cols // 8))
    for top in window_starts(rows // 8, height, stride // 8):
        for left in window_starts(cols // 8, width, stride // 8):
            part = source.pixels[top * 8 : (top + height) * 8, left * 8 : (left + width) * 8]
            pixels = (torch.tensor(part).permute(2, 0, 1) / 255 - mean) / std
            maps = ca.heatmap(clip, pixels[None], text, "naclip").values[0].numpy()
            for i in range(height):
                for j in range(width):
                    w = min(i + 1, height - i) * min(j + 1, width - j)
                    total[:, top + i, left + j] += w * maps[:, i, j]
                    weight[top + i, left + j] += w
    np.testing.assert_allclose(found.values, total / weight, atol=1e-5)
    assert found.texts == ("text 0", "text 1")
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npy", mmap_mode="r"), found.values)
    half = found.level(1)
    by_hand = np.asarray(found.values)[:, : rows // 16 * 2, : cols // 16 * 2]
    np.testing.assert_allclose(half, by_hand.reshape(2, rows // 16, 2, cols // 16, 2).mean((2, 4)), atol=1e-5)


def test_memory_does_not_grow_with_the_height(clip: ca.Clip, tmp_path: Path) -> None:
    """A picture of 3 GB that is not there: nothing is read but tiles, and the file is written band by band."""

    class Endless:
        shape = (4096, 64, 3)

        def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
            size = [one.stop - one.start for one in place]
            assert max(size) <= 32
            return np.full((*size, 3), place[0].start % 251, np.uint8)

    found = ca.tiled_maps(clip, Endless(), torch.randn(1, 12), tmp_path / "maps.npy", "maskclip", window=32, stride=32)
    assert found.values.shape == (1, 512, 8)
    assert np.isfinite(found.values).all()
    assert found.level(3).shape == (1, 64, 1)


def test_what_cannot_be_tiled_says_what_to_type(clip: ca.Clip, tmp_path: Path) -> None:
    text, pixels = torch.randn(1, 12), np.zeros((64, 64, 3), np.uint8)
    for wrong in (pixels[..., 0], pixels[:4]):
        with pytest.raises(BadImage, match=r"Type: source\[..., :3\]"):
            ca.tiled_maps(clip, wrong, text, tmp_path / "maps.npy")
    with pytest.raises(BadSpec, match="Type: file='maps.npy'"):
        ca.tiled_maps(clip, pixels, text, tmp_path / "maps.png")
    with pytest.raises(BadSpec, match="Type: window=32"):
        ca.tiled_maps(clip, pixels, text, tmp_path / "maps.npy", window=30)


def test_a_source_that_fails_or_is_smaller_than_it_says_is_named(clip: ca.Clip, tmp_path: Path) -> None:
    class Broken(Counted):
        def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
            raise OSError("the share is gone")

    class Small(Counted):
        @property
        def shape(self) -> tuple[int, ...]:
            return (200, 200, 3)

    texts = torch.randn(1, clip.vision.embed)
    for source, says in (
        (Broken, r"pixels 0:32 × 0:32 of the source cannot be read \(OSError: the share is gone\)"),
        (Small, r"pixels .* of the source are \[32, 8, 3\]. Type a source as large as its shape says"),
    ):
        with pytest.raises(BadImage, match=says):
            ca.tiled_maps(clip, source(np.zeros((40, 40, 3), np.uint8)), texts, tmp_path / "m.npy", "raw", stride=32)
    maps = ca.tiled_maps(clip, np.zeros((40, 40, 3), np.uint8), texts, tmp_path / "m.npy", "raw")
    with pytest.raises(BadInput, match="number=-1: a whole number from 0 to 60"):
        maps.level(-1)
