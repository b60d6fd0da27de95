"""Odd but honest pictures: each is read as its owner expects."""

import sys

import numpy as np
import pytest
import torch
from pictures import SMALL, encoded, picture, written
from PIL import Image

from clip_anatomy.images.pixels import Preprocess, prepare, read_image


def test_cmyk_one_bit_and_palette(tmp_path):
    image = picture()
    expected = np.asarray(image).astype(int)
    for mode, kind in [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG")]:
        path = written(
            tmp_path / f"{mode}.{kind}", encoded(image.quantize() if mode == "P" else image.convert(mode), kind)
        )
        read = read_image(path)
        assert read.mode == "RGB"
        assert np.abs(np.asarray(read).astype(int) - expected).mean() < 6, (mode, kind)
    mask = Image.new("1", (60, 40))
    mask.putpixel((7, 5), 1)
    read = np.asarray(read_image(written(tmp_path / "mask.png", encoded(mask, "PNG"))))
    assert read[5, 7].tolist() == [255, 255, 255]
    assert read.sum() == 3 * 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    expected = np.rint(ramp / 257).astype(np.uint8)
    deep = Image.fromarray(ramp)
    for kind in ("PNG", "TIFF"):
        path = written(tmp_path / f"deep.{kind}", encoded(deep, kind))
        assert np.array_equal(np.asarray(read_image(path))[:, :, 0], expected), kind
    big_endian = Image.frombytes("I;16B", (64, 64), ramp.astype(">u2").tobytes())
    for image in (deep, big_endian):
        assert np.array_equal(np.asarray(read_image(image))[:, :, 2], expected), image.mode
        # The same through the transform alone: it must not saturate either.
        assert torch.equal(SMALL(image), SMALL(Image.fromarray(expected)))
    assert np.array_equal(np.asarray(read_image(Image.fromarray((ramp / 65535).astype(np.float32))))[:, :, 1], expected)


def test_transparency_is_dropped_as_open_clip_drops_it(tmp_path):
    levels = np.zeros((20, 30, 4), np.uint8)
    levels[:, :, 0], levels[:, 10:, 3] = 250, 255  # all red, a third of it see-through
    for name, image, options in [
        ("rgba.png", Image.fromarray(levels), {}),
        ("keyed.png", Image.fromarray(levels[:, :, :3]), {"transparency": (250, 0, 0)}),
        ("palette.png", Image.fromarray(levels[:, :, :3]).quantize(4), {"transparency": b"\x00\x40\xff"}),
        ("palette.gif", Image.fromarray(levels[:, :, :3]).quantize(4), {"transparency": 0}),
    ]:
        read = np.asarray(read_image(written(tmp_path / name, encoded(image, name[-3:].upper(), **options))))
        assert (read == [250, 0, 0]).all(), name
    grey = Image.fromarray(np.full((4, 4), 77, np.uint8))
    path = written(tmp_path / "grey.png", encoded(grey, "PNG", transparency=77))
    assert (np.asarray(read_image(path)) == 77).all()
    assert prepare(path, SMALL).isfinite().all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_photograph_is_read_upright(orientation, kind, tmp_path):
    upright = picture()
    turns = Image.Transpose
    back = {  # how a camera held that way stores the picture
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(
        tmp_path / f"turned.{kind}", encoded(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    )
    read = read_image(path)
    assert read.size == upright.size
    assert np.abs(np.asarray(read).astype(int) - np.asarray(upright).astype(int)).mean() < 8
    again = read_image(read)
    assert np.array_equal(np.asarray(again), np.asarray(read))  # not turned a second time
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(read_image(opened)), np.asarray(read))
    assert torch.equal(prepare(path, SMALL), prepare(read, SMALL))
    as_stored = read_image(path, upright=False)
    if kind != "TIFF":  # Pillow itself turns a TIFF
        assert as_stored.size == stored.size
    from open_clip.transform import image_transform

    with Image.open(path) as opened:
        opened.load()  # before Pillow 11 a turned TIFF had its old size until then, and open_clip squashed it
        theirs = image_transform((32, 32), is_train=False)(opened)
    assert torch.equal(prepare(path, SMALL, upright=False)[0], theirs)
    if orientation == 1:
        assert torch.equal(prepare(path, SMALL)[0], theirs)


def test_a_broken_exif_block_does_not_spoil_the_picture(tmp_path):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0", b"Exif\0\0"):
        path = written(tmp_path / "camera.jpg", encoded(picture(), "JPEG", exif=exif))
        assert read_image(path).size == (60, 40)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind, tmp_path):
    frames = [picture(colour=colour) for colour in [(250, 0, 0), (0, 250, 0), (0, 0, 250)]]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    path = written(tmp_path / f"moving.{kind}", data)
    assert read_image(path).getpixel((50, 30)) == (250, 0, 0)
    with Image.open(path) as opened:
        opened.seek(2)
        assert read_image(opened).getpixel((50, 30)) == (0, 0, 250)  # the caller chose the frame
    assert prepare(path, SMALL).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("width", "height"), [(20_000, 1), (1, 20_000), (20_000, 3), (20_000, 500), (1, 1), (2, 1)])
def test_very_wide_very_thin_and_very_small(width, height, resize, tmp_path):
    resource = pytest.importorskip("resource", reason="not on this system")
    image = Image.new("RGB", (width, height), (90, 160, 30))
    path = written(tmp_path / "thin.png", encoded(image, "PNG"))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preprocess = Preprocess((224, 224), (0.0,) * 3, (1.0,) * 3, resize=resize)
    levels = prepare(path, preprocess)[0] * 255
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert grown < 600e6  # scaling all of the 20,000 × 1 line first takes 4 GB
    middle = levels.amax((1, 2)).round().tolist()  # somewhere: "longest" draws it as a line in black
    assert middle == [90, 160, 30]
    if resize == "shortest":
        assert (levels.round() == levels[:, 112:113, 112:113].round()).all()
    assert read_image(path).size == (width, height)
