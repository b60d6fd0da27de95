"""A marked pixel is found in the patch that geometry names, and patches tile what the model sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CLIP
from PIL import Image

from clip_anatomy.errors import BadImage
from clip_anatomy.images.pixels import OPENAI_MEAN, OPENAI_STD, Geometry, Preprocess


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("crop", ["round", "floor"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (201, 333), (64, 64), (641, 480), (101, 53), (40, 30)])
def test_a_marked_pixel_lands_where_geometry_says(width, height, size, crop, resize):
    preprocess = Preprocess(size, (0.0,) * 3, (1.0,) * 3, resize=resize, crop=crop)
    seen = preprocess.geometry(width, height)
    grid = size[0] // 8, size[1] // 8
    rng = np.random.default_rng(width * height)
    for _ in range(12):
        row, col = int(rng.integers(3, height - 3)), int(rng.integers(3, width - 3))
        picture = np.zeros((height, width, 3), np.uint8)
        picture[row - 3 : row + 4, col - 3 : col + 4] = 255  # a mark whose middle survives any scaling
        light = preprocess(Image.fromarray(picture))[0].double().clamp(0, 1)
        at = seen.to_model(row + 0.5, col + 0.5)
        radius = [4 * s + 3 for s in seen.scale]
        if any(not r <= a < n - r for a, n, r in zip(at, size, radius, strict=True)):
            if seen.patch_at(row, col, grid) is None and any(
                not -r <= a < n + r for a, n, r in zip(at, size, radius, strict=True)
            ):
                assert light.sum() == 0  # cropped away with all its surroundings
            continue
        rows, cols = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
        centre = ((light.sum(1) * rows).sum() / light.sum()).item(), ((light.sum(0) * cols).sum() / light.sum()).item()
        assert centre == pytest.approx(at, abs=0.1)
        patch = seen.patch_at(row, col, grid)
        assert patch == (int(at[0] // 8), int(at[1] // 8))
        top, left, bottom, right = seen.patch_box(*patch, grid)
        assert top <= row + 0.5 < bottom
        assert left <= col + 0.5 < right


cases = {  # the Preprocess is made in the test: beartype draws random numbers, which strategies may not
    "picture": st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    "grid": st.tuples(st.integers(1, 12), st.integers(1, 12)),
    "resize": st.sampled_from(["shortest", "squash", "longest"]),
    "crop": st.sampled_from(["round", "floor"]),
}


def geometry_of(picture, grid, resize, crop):
    size = grid[0] * 8, grid[1] * 8
    return Preprocess(size, (0.5,) * 3, (0.5,) * 3, resize=resize, crop=crop).geometry(*picture)


@settings(max_examples=150, deadline=None)
@given(share=st.tuples(st.floats(0, 1), st.floats(0, 1)), **cases)
def test_patches_and_pixels_find_each_other(share, picture, grid, resize, crop):
    seen = geometry_of(picture, grid, resize, crop)
    row, col = (min(int(s * n), n - 1) for s, n in zip(share, seen.picture, strict=True))
    assert seen.to_picture(*seen.to_model(row, col)) == pytest.approx((row, col), abs=1e-6)
    patch = seen.patch_at(row, col, grid)
    top, left, bottom, right = seen.box
    inside = top <= row + 0.5 < bottom and left <= col + 0.5 < right
    edge = min(abs(row + 0.5 - top), abs(row + 0.5 - bottom), abs(col + 0.5 - left), abs(col + 0.5 - right)) < 1e-6
    assert (patch is not None) == inside or edge
    if patch is not None:
        box = seen.patch_box(*patch, grid)
        assert box.top - 1e-6 <= row + 0.5 <= box.bottom + 1e-6
        assert box.left - 1e-6 <= col + 0.5 <= box.right + 1e-6
        rows, cols = seen.patches_in(box, grid)
        assert (list(rows), list(cols)) == ([patch[0]], [patch[1]])


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_patch_boxes_tile_what_the_model_sees(picture, grid, resize, crop):
    seen = geometry_of(picture, grid, resize, crop)
    rows, cols = grid
    boxes = [seen.patch_box(r, c, (rows, cols)) for r in range(rows) for c in range(cols)]
    area = sum((b.bottom - b.top) * (b.right - b.left) for b in boxes)
    whole = seen.box
    assert area == pytest.approx((whole.bottom - whole.top) * (whole.right - whole.left))
    assert whole.top >= 0 <= whole.left
    assert whole.bottom <= seen.picture[0]
    assert whole.right <= seen.picture[1]
    everything = seen.patches_in(whole, (rows, cols))
    touched = {(r, c) for r in everything[0] for c in everything[1]}
    with_area = {
        (i // cols, i % cols) for i, b in enumerate(boxes) if b.bottom - b.top > 1e-6 and b.right - b.left > 1e-6
    }
    assert with_area <= touched


def test_geometry_of_every_resize():
    assert CLIP.geometry(300, 200) == Geometry((200, 300), (224, 336), (0, 56), (224, 224))
    squash = Preprocess((64, 64), OPENAI_MEAN, OPENAI_STD, resize="squash").geometry(300, 200)
    assert squash.box == (0, 0, 200, 300)
    longest = Preprocess((64, 64), OPENAI_MEAN, OPENAI_STD, resize="longest").geometry(200, 100)
    assert longest == Geometry((100, 200), (32, 64), (-16, 0), (64, 64))
    assert longest.box == (0, 0, 100, 200)
    padding = longest.patch_box(0, 3, (8, 8))
    assert padding.bottom - padding.top == 0  # the first row of patches sees padding only
    rows, cols = CLIP.geometry(300, 200).patches_in(longest.box._replace(right=40.0), (7, 7))
    assert not (len(rows) and len(cols))  # cropped away
    with pytest.raises(BadImage, match=r"Type: preprocess.geometry\(\*image.size\)"):
        CLIP.geometry(0, 5)
