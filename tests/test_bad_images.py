"""Pictures that are broken or hostile: each is refused with the fix, and the others are done."""

import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import SMALL, encoded, noise, picture, png_claiming, usable, written
from PIL import Image, ImageFile

from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.images.pixels import prepare, read_image

# --- files that are refused ---

BROKEN = {
    "empty.jpg": (b"", r"is empty \(0 bytes\). Type the path of a whole copy"),
    "text.jpg": (
        b"this is no picture",
        r"not a picture that can be read here, or its beginning is damaged. Save it as PNG or JPEG",
    ),
    "truncated.jpg": (encoded(noise(80, 60), "JPEG")[:900], r"is damaged: .*truncated.*LOAD_TRUNCATED_IMAGES = True"),
    "truncated.png": (encoded(noise(80, 60), "PNG")[:900], r"is damaged: .*LOAD_TRUNCATED_IMAGES"),
    "truncated.gif": (encoded(noise(80, 60), "GIF")[:2000], r"is damaged"),
    "truncated.webp": (encoded(noise(80, 60), "WEBP")[:900], r"is damaged|not a picture"),
    "truncated.tif": (encoded(noise(80, 60), "TIFF")[:900], r"is damaged|not a picture"),
    "header_only.png": (encoded(noise(80, 60), "PNG")[:40], r"its beginning is damaged|is damaged"),
    "zero_wide.png": (png_claiming(0, 10), r"has no pixels|is damaged|not a picture"),
    "zero.gif": (b"GIF89a" + bytes(4) + b"\0\0\0;", r"has no pixels|is damaged|not a picture"),
    "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(64), r"pip install 'clip-anatomy\[heif\]'"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"export it as PNG first"),
    "paper.pdf": (b"%PDF-1.7\n", r"export the page as PNG first"),
    "drawing.eps": (encoded(picture(), "EPS"), r"PostScript drawing. Export it as PNG first"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_the_fix(name, tmp_path):
    data, message = BROKEN[name]
    path = written(tmp_path / name, data)
    with pytest.raises(BadImage, match=message) as caught:
        prepare([path], SMALL)
    assert str(path) in str(caught.value)
    with pytest.raises(BadImage, match=message):
        prepare([lazily_opened(path)] if name in ("truncated.jpg", "truncated.png") else path, SMALL)


def lazily_opened(path):
    """The user's own lazy Image.open, over memory so that nothing stays open."""
    return Image.open(io.BytesIO(path.read_bytes()))


def test_missing_folder_and_other_paths(tmp_path):
    with pytest.raises(BadImage, match=r"cat\.jpg: no such file. Type the path of a picture, as seen from "):
        prepare(tmp_path / "cat.jpg", SMALL)
    with pytest.raises(BadImage, match=r"is a folder. Type the files in it: sorted\(Path\(.*\)\.glob\('\*\.jpg'\)\)"):
        prepare(str(tmp_path), SMALL)
    with pytest.raises(BadImage, match=r"^'' is a folder"):
        prepare("", SMALL)
    with pytest.raises(BadImage, match=r"no such file"):
        prepare("a\0b.jpg", SMALL)
    with pytest.raises(BadImage, match=r"cannot be opened: .*File name too long|no such file"):
        prepare("x" * 5000, SMALL)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadImage, match=r"no regular file. Type the path of a picture"):
        prepare(tmp_path / "pipe", SMALL)


def test_the_fix_for_a_truncated_file_works(monkeypatch, tmp_path):
    path = written(tmp_path / "cut.jpg", encoded(noise(80, 60), "JPEG")[:2500])
    with pytest.raises(BadImage, match=r"type first: PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True$"):
        read_image(path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert read_image(path).size == (80, 60)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="whoever runs this may read everything")
def test_a_file_without_permission(tmp_path):
    path = written(tmp_path / "mine.png", encoded(picture(), "PNG"))
    path.chmod(0)
    with pytest.raises(BadImage, match=r"cannot be opened: .*Permission denied.*that you may read"):
        prepare(path, SMALL)


@pytest.mark.parametrize(
    "value", [None, 3, b"\x89PNG", io.BytesIO(b"\x89PNG"), {"image": "cat.jpg"}, [None], [["cat.jpg"]]]
)
def test_things_that_are_no_picture(value):
    with pytest.raises(BadImage, match=r"Type a path"):
        prepare(value, SMALL)
    assert issubclass(BadImage, BadInput)
    assert issubclass(BadImage, ValueError)


@pytest.mark.parametrize("nothing", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_picture_at_all(nothing):
    with pytest.raises(BadImage, match=r"no picture was given. Type the path of at least one"):
        prepare(nothing, SMALL)
    with pytest.raises(BadImage, match=r"no picture was given"):
        usable(nothing)


# --- arrays and tensors that are refused ---

ROWS = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 2, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ROWS * np.nan, r"12 of 12 values are NaN or infinite. Type: numpy.nan_to_num\(array\)"),
        (np.where(ROWS > 0.95, np.inf, ROWS), r"1 of 12 values are NaN or infinite"),
        (torch.full((3, 2, 2), float("nan")), r"Type: torch.nan_to_num\(tensor\)"),
        (ROWS * 255, r"run 0 to 255. Type: array / 255 if 255 is white"),
        (ROWS * 2 - 1, r"run -1 to 1. Type: \(array \+ 1\) / 2 if it runs from -1 to 1"),
        (torch.randn(3, 8, 8), r"Type: tensor\[None\] if it is preprocessed"),
        (torch.rand(3, 8, 8) * 255, r"Type: tensor / 255"),
        (np.zeros((3, 8, 9), np.uint8), r"uint8 array \[3, 8, 9\].*Type: array.transpose\(1, 2, 0\)"),
        (np.zeros((8, 9, 2), np.uint8), r"Type: array\[:, :, :3\]"),
        (np.zeros((8, 9, 12), np.uint8), r"\[row, col, 3\]"),
        (torch.zeros(8, 9, 3), r"float32 tensor \[8, 9, 3\].*Type: tensor.permute\(2, 0, 1\)"),
        (torch.zeros(7, 8, 9), r"Type: tensor\[:3\]"),
        (np.zeros(5, np.uint8), r"two axes or three. Type one of \[row, col, 3\]"),
        (torch.zeros(5), r"two axes or three. Type one of \[3, row, col\]"),
        (np.zeros((1, 1, 2, 2, 3), np.uint8), r"two axes or three"),
        (np.zeros((0, 4, 3), np.uint8), r"no pixels. Type one with at least one row and one column"),
        (torch.zeros(3, 4, 0), r"no pixels"),
        (np.zeros((4, 4, 3), np.int64), r"which int64 is white. Type: array.astype\('uint8'\) if 255 is"),
        (
            torch.zeros((3, 4, 4), dtype=torch.int64),
            r"Type: tensor.to\(torch.uint8\) if 255 is, tensor.to\(torch.uint16\)",
        ),
        (np.zeros((4, 4), complex), r"which complex128 is white"),
        (np.array([["a.jpg", "b.jpg"]]), r"which <U5 is white"),
        (Image.new("RGB", (0, 5)), r"the RGB image of 0 × 5 pixels has no pixels"),
        (Image.new("I", (4, 4), 70000), r"which int32 is white"),
        (Image.new("F", (4, 4), 200.0), r"run 200 to 200. Type: numpy.asarray\(image\) / 255"),
    ],
)
def test_an_array_that_could_mean_two_things_is_refused(source, message):
    with pytest.raises(BadImage, match=message):
        prepare([source], SMALL)
    if not (isinstance(source, torch.Tensor | np.ndarray) and source.ndim == 4):
        with pytest.raises(BadImage, match=message):
            read_image(source)


def test_a_file_whose_white_is_not_known_is_named(tmp_path):
    path = written(tmp_path / "heights.tif", encoded(Image.new("F", (4, 4), 200.0), "TIFF"))
    with pytest.raises(BadImage, match=r"heights.tif: floats must lie in 0..1 .*Type: numpy.asarray\(image\) / 255"):
        prepare(path, SMALL)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            torch.zeros(2, 8, 8, 3),
            r"preprocessed images are \[image, 3, row, col\]. Type: tensor.permute\(0, 3, 1, 2\)",
        ),
        (torch.zeros(2, 4, 8, 8), r"Type: tensor\[:, :3\]"),
        (torch.zeros(0, 3, 8, 8), r"no pixels"),
        (torch.zeros(1, 3, 0, 8), r"no pixels"),
        (
            torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), float("inf"))]),
            r"image 1: 192 of its values are NaN",
        ),
    ],
)
def test_a_preprocessed_tensor_that_is_none(pixels, message):
    with pytest.raises(BadImage, match=message):
        prepare(pixels, SMALL)


# --- one among many ---


def test_one_bad_image_among_many_is_reported_and_the_others_done(tmp_path):
    good = written(tmp_path / "good.png", encoded(picture(), "PNG"))
    sources = [good, tmp_path / "missing.png", picture(), written(tmp_path / "bad.jpg", b"?"), np.full((4, 4), 9.0)]
    places, pixels, failed = usable(source for source in sources)
    assert places == (0, 2)
    assert [name for name, _ in failed] == [str(sources[1]), str(sources[3]), "image 4"]
    assert torch.equal(pixels, prepare([sources[0], sources[2]], SMALL))
    assert failed[0][1].startswith(f"{tmp_path / 'missing.png'}: no such file")
    with pytest.raises(BadImage, match=r"^image 1: .*missing\.png: no such file"):
        prepare(sources, SMALL)
    with pytest.raises(BadImage, match="none of the 2 pictures could be read"):
        usable(sources[3:])
    pixels = torch.zeros(3, 3, 8, 8)
    pixels[1, 0, 0, 0] = float("nan")
    with pytest.raises(BadImage, match="image 1: 1 of its values are NaN"):
        usable(pixels)


def test_errors_of_the_users_own_generator_are_not_swallowed():
    def pictures():
        yield picture()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        usable(pictures())


# --- bombs, warnings, open files, threads ---


def test_decompression_bombs_are_refused_and_pillow_is_left_as_it_was(tmp_path):
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    for side in (60_000, 11_000):  # Pillow raises at the first, and only warns at the second
        path = written(tmp_path / f"bomb{side}.png", png_claiming(side, side))
        fix = rf"has {side * side:,} pixels.*allows {limit:,}.*type first: PIL.Image.MAX_IMAGE_PIXELS = {side * side:_}"
        with pytest.raises(BadImage, match=fix):
            prepare(path, SMALL)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert len(usable([path, picture()])[2]) == 1
        assert not seen
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_the_fix_for_a_bomb_works(monkeypatch, tmp_path):
    path = written(tmp_path / "large.png", encoded(picture(300, 200), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(BadImage, match=r"has 60,000 pixels.*MAX_IMAGE_PIXELS = 60_000"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    assert read_image(path).size == (300, 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).size == (300, 200)


def test_no_warning_and_no_open_file_is_left_behind(tmp_path):
    palette = picture().convert("P")
    files = [
        written(tmp_path / "transparent.png", encoded(palette, "PNG", transparency=bytes(range(200)))),
        written(tmp_path / "good.jpg", encoded(picture(), "JPEG")),
        written(tmp_path / "moving.gif", encoded(picture(), "GIF", save_all=True, append_images=[picture()])),
        written(tmp_path / "tags.tif", encoded(picture(), "TIFF")[:-3] + b"\xff\xff\xff"),
        written(tmp_path / "cut.jpg", encoded(noise(80, 60), "JPEG")[:700]),
        written(tmp_path / "no.png", b"no"),
    ]
    held = Path("/proc/self/fd")
    before = len(list(held.iterdir())) if held.exists() else 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        usable(files * 3)
    assert [str(w.message) for w in seen] == []
    assert not held.exists() or len(list(held.iterdir())) == before


def test_threads_may_read_at_the_same_time(tmp_path):
    path = written(tmp_path / "good.jpg", encoded(noise(80, 60), "JPEG"))
    filters = list(warnings.filters)
    expected, results = prepare(path, SMALL), []
    threads = [threading.Thread(target=lambda: results.append(prepare([path] * 20, SMALL))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(pixels, expected.expand(20, -1, -1, -1)) for pixels in results)
    assert filters == list(warnings.filters)
