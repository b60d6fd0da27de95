"""Preprocessing is open_clip's and transformers' own, from every kind of picture."""

import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CLIP, noise
from PIL import Image

from clip_anatomy.errors import BadSpec
from clip_anatomy.images import preprocess as preprocess_module
from clip_anatomy.images.pixels import OPENAI_MEAN, OPENAI_STD, Preprocess, prepare, read_image

SIZES = [(300, 200), (201, 333), (224, 224), (640, 481), (100, 50), (227, 224), (1, 1), (3, 700)]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"]


def open_clip_transform(preprocess):
    from open_clip.transform import image_transform

    return image_transform(
        preprocess.size,
        is_train=False,
        mean=preprocess.mean,
        std=preprocess.std,
        resize_mode=preprocess.resize,
        interpolation=preprocess.interpolation,
        fill_color=preprocess.fill,
    )


@cache
def transformers_processor(backend):
    import transformers

    return getattr(transformers, {"pil": "CLIPImageProcessorPil", "torchvision": "CLIPImageProcessor"}[backend])()


# --- equal to the host libraries ---


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(224, 224), (64, 64), (48, 80), (80, 48)])
def test_bit_equal_to_open_clip(size, resize, interpolation):
    preprocess = Preprocess(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), resize=resize, interpolation=interpolation, fill=7)
    theirs = open_clip_transform(preprocess)
    for width, height in SIZES:
        if resize == "longest" and (width, height) == (3, 700):
            continue  # scaled to a width of 0.3 pixels: open_clip fails where round() says 0; see the next test
        image = noise(width, height)
        assert torch.equal(preprocess(image), theirs(image)), (width, height)


@settings(max_examples=60, deadline=None)
@given(
    picture=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    size=st.tuples(st.integers(8, 64), st.integers(8, 64)) | st.integers(8, 64).map(lambda n: (n, n)),
    resize=st.sampled_from(["shortest", "squash", "longest"]),
)
def test_bit_equal_to_open_clip_at_any_size(picture, size, resize):
    preprocess = Preprocess(size, OPENAI_MEAN, OPENAI_STD, resize=resize)
    image = noise(*picture)
    ratio = max(picture[1] / size[0], picture[0] / size[1])
    if resize == "longest" and round(min(picture) / ratio) == 0:
        assert preprocess(image).shape == (3, *size)  # a line thinner than a pixel: open_clip fails, here it is drawn
    else:
        assert torch.equal(preprocess(image), open_clip_transform(preprocess)(image))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_bit_equal_to_open_clip_in_every_mode_and_from_files(mode, resize, tmp_path):
    preprocess = Preprocess((64, 64), OPENAI_MEAN, OPENAI_STD, resize=resize)
    theirs = open_clip_transform(preprocess)
    # "longest" pads with the fill's grey; open_clip with what that number means in the picture's mode.
    seen = slice(10, -11) if resize == "longest" and mode in ("P", "CMYK", "YCbCr") else slice(None)
    image = noise(90, 61, mode)
    assert preprocess.geometry(90, 61).resized[0] == 43 or resize != "longest"
    assert torch.equal(preprocess(image)[:, seen], theirs(image)[:, seen])
    suffix = {"CMYK": "tif", "YCbCr": None, "HSV": None}.get(mode, "png")
    if suffix:
        path = tmp_path / f"picture.{suffix}"
        image.save(path)
        with Image.open(path) as opened:
            assert torch.equal(prepare([path], preprocess)[0][:, seen], theirs(opened)[:, seen])


def test_bit_equal_to_open_clip_on_photographs(shared):
    theirs = open_clip_transform(CLIP)
    for path in sorted((shared / "data/coco/images").glob("*.jpg"))[:12]:
        with Image.open(path) as image:
            assert torch.equal(prepare(path, CLIP)[0], theirs(image)), path.name


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_floor_crop_equals_transformers(mode):
    preprocess = Preprocess((224, 224), OPENAI_MEAN, OPENAI_STD, crop="floor")
    mean, std = (torch.tensor(x)[:, None, None] for x in (OPENAI_MEAN, OPENAI_STD))
    for width, height in [*SIZES[:6], (227, 224), (224, 231)]:  # margins of 3 and 7: where rounding and flooring part
        image = noise(width, height, mode)
        theirs = transformers_processor("pil")(image, return_tensors="pt")["pixel_values"][0]
        ours = preprocess(image)
        assert torch.equal(*(torch.round((x * std + mean) * 255) for x in (ours, theirs))), (width, height)
        assert (ours - theirs).abs().max() <= 1e-6
        # The torchvision backend has its own bicubic filter: two of 255 levels apart at most, on plain noise.
        fast = transformers_processor("torchvision")(image, return_tensors="pt")["pixel_values"][0]
        assert ((ours - fast) * std * 255).abs().max() <= 2.01, (width, height)


def test_floor_puts_a_transparent_palette_file_on_white_as_transformers_does(tmp_path):
    image = noise(227, 240, "P")
    path = tmp_path / "keyed.png"
    image.save(path, transparency=bytes(range(256)))
    preprocess = Preprocess((224, 224), OPENAI_MEAN, OPENAI_STD, crop="floor")
    with Image.open(path) as opened:
        theirs = transformers_processor("pil")(opened, return_tensors="pt")["pixel_values"][0]
    assert (prepare(path, preprocess)[0] - theirs).abs().max() <= 1e-6


def test_round_and_floor_differ_by_one_pixel_where_the_margin_says_so():
    image = noise(227, 224)
    rounded = CLIP(image)
    floored = Preprocess((224, 224), OPENAI_MEAN, OPENAI_STD, crop="floor")(image)
    assert torch.equal(rounded[:, :, :-1], floored[:, :, 1:])
    assert not torch.equal(rounded, floored)


def test_a_long_thin_picture_is_scaled_within_its_crop(monkeypatch):
    for width, height, mode in [(900, 7, "RGB"), (7, 900, "RGB"), (411, 300, "RGB"), (900, 3, "P"), (900, 3, "RGBA")]:
        image = noise(width, height, mode)
        whole = CLIP(image)
        with monkeypatch.context() as patch:
            patch.setattr(preprocess_module, "_LARGEST_RESIZED", 0)
            within = CLIP(image)
        levels = (whole - within) * torch.tensor(OPENAI_STD)[:, None, None] * 255
        assert levels.abs().max() <= (1.01 if mode == "RGB" else 2.01), (width, height, mode)


def test_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from PIL import Image; from clip_anatomy.images.pixels import Preprocess, prepare\n"
        "print(prepare(Image.new('RGB', (40, 30)), Preprocess((8, 8), (.5,) * 3, (.5,) * 3)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 3, 8, 8])"
    assert done.stderr == ""


# --- the configuration ---


def test_dict_round_trip_through_json():
    for preprocess in (
        CLIP,
        CLIP.at((48, 80)),
        Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3, "longest", "bilinear", "floor", 9),
    ):
        assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    assert Preprocess.from_dict({"size": 224, "mean": OPENAI_MEAN, "std": OPENAI_STD}) == CLIP
    assert CLIP.at(336).size == (336, 336)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "cover"}, r"resize is 'cover'. Type one of: shortest, squash, longest"),
        ({"interpolation": "lanczos"}, r"Type one of: bicubic, bilinear"),
        ({"crop": "left"}, r"Type one of: round, floor"),
        ({"size": [0, 4]}, r"must be positive. Type: size=\(224, 224\)"),
        ({"size": "big"}, r"Type: \{'size': \[224, 224\]"),
        ({"mean": [0.5]}, r"Type: \{'size'"),
        ({"std": [0.0, 1.0, 1.0]}, r"std above 0. Type: std="),
        ({"mean": [float("nan"), 0.0, 0.0]}, r"finite"),
        ({"fill": 300}, r"Type: fill=0"),
        ({"colour": "RGB"}, r"unknown \['colour'\].*Its fields are: size, mean"),
    ],
)
def test_a_wrong_configuration_is_named(change, message):
    with pytest.raises(BadSpec, match=message):
        Preprocess.from_dict({**CLIP.to_dict(), **change})


def test_a_missing_field_is_named():
    with pytest.raises(BadSpec, match=r"lacks \['std'\]"):
        Preprocess.from_dict({"size": 224, "mean": OPENAI_MEAN})


# --- every kind of picture ---


def test_every_kind_of_the_same_picture_gives_the_same_tensor(tmp_path):
    image = noise(90, 61)
    array = np.asarray(image)
    path = tmp_path / "picture.png"
    image.save(path)
    expected = CLIP(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = {
        "path": path,
        "str": str(path),
        "PIL": image,
        "uint8 array": array,
        "uint16 array": array.astype(np.uint16) * 257,
        "float array": (array / 255).astype(np.float32),
        "float64 array": array / 255,
        "array with alpha": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "array in another memory order": np.asfortranarray(array),
        "uint8 tensor": tensor,
        "float tensor": tensor / 255,
        "half tensor": (tensor / 255).half(),
        "tensor with gradient": (tensor / 255).requires_grad_(),
        "uint16 tensor": (tensor.int() * 257).to(torch.uint16),
    }
    for name, kind in kinds.items():
        assert torch.equal(prepare(kind, CLIP)[0], expected), name
        assert np.array_equal(read_image(kind), array), name
    batch = prepare(list(kinds.values()), CLIP)
    assert torch.equal(batch, expected.expand(len(kinds), -1, -1, -1))
    assert torch.equal(prepare((kind for kind in kinds.values()), CLIP), batch)
    assert torch.equal(prepare(np.stack([array, array]), CLIP), batch[:2])
    assert torch.equal(prepare(torch.stack([tensor, tensor]), CLIP), batch[:2])


def test_grey_arrays_and_masks():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for kind in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None], grey / 255):
        assert np.array_equal(np.asarray(read_image(kind))[:, :, 1], grey)
    assert np.asarray(read_image(grey > 100)).max() == 255


def test_a_preprocessed_tensor_passes_untouched():
    for shape in [(2, 3, 224, 224), (1, 3, 32, 48)]:
        pixels = torch.randn(shape)
        assert prepare(pixels, CLIP) is pixels


def test_the_source_is_left_as_it_was():
    image = noise(20, 10, "P")
    image.info["transparency"] = b"\x00\x80"
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    before = (dict(image.info), image.mode, image.size, image.tobytes())
    prepare([image], CLIP)
    assert before == (dict(image.info), image.mode, image.size, image.tobytes())
    array = np.random.default_rng(0).random((5, 6, 3))
    copy = array.copy()
    prepare([array], CLIP)
    assert np.array_equal(array, copy)
