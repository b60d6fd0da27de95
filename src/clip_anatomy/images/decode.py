"""Whatever people hand in as a picture → one upright Pillow image of 8 bits a channel, or a `BadImage`."""

import re
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from io import BufferedReader, BytesIO
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clip_anatomy.errors import BadImage
from clip_anatomy.images.fetch import fetch
from clip_anatomy.network import may_fetch

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""One picture: path, Pillow image of any mode, array [row, col] or [row, col, 1|3|4], tensor [1|3|4, row, col]."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+:(//|[a-z]+/[a-z0-9+.-]+[;,])", re.IGNORECASE)  # "https://…", "data:image/png;…"
_TURN = {  # EXIF orientation → how to bring the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_TOOLS = {
    ".heic": "Type: pip install 'clip-anatomy[heif]'",
    ".svg": "It is a drawing: export it as PNG first",
    ".pdf": "It is a document: export the page as PNG first",
}
_OTHER_TOOLS[".heif"] = _OTHER_TOOLS[".hif"] = _OTHER_TOOLS[".heic"]
_HEIF = re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL)
_SILENT_DECODERS = {"JPEG", "PNG", "WEBP", "GIF", "BMP"}  # warn when opened at most, never while decoding
LARGEST_FILE = 2**32  # bytes: all of them are hashed, also those behind the picture
_WARNINGS = threading.Lock()


def read_image(
    source: ImageLike | object, *, allow_urls: bool = False, upright: bool = True, keep_mode: bool = False
) -> Image.Image:
    """Read one picture: what is shown beside a map, and what `Preprocess` is given.

    Transparency is dropped, not composited: the colours stored under it come out, as from open_clip's own
    transform. 16-bit grey is scaled to 8 bits (open_clip clips it to white), floats are rounded to them. Of an animation the first frame is
    taken. Colour profiles are not applied. The result carries no EXIF, so reading it again changes nothing.

    Args:
        source: a path (or, if allowed, an http(s) address); a Pillow image; an array [row, col] or
            [row, col, 1|3|4] or a tensor [row, col] or [1|3|4, row, col] of uint8, of uint16 (65535 is white), of
            bool, or of floats in 0..1. Anything else is refused with a message.
        allow_urls: fetch addresses; off by default, so that a list of names never reaches out by accident.
        upright: turn the picture as its EXIF orientation says, which is how every viewer shows it. open_clip does
            not turn it: False is bit-equal to open_clip for turned photographs too.
        keep_mode: keep palette, grey, CMYK or alpha instead of converting to RGB. `Preprocess` wants this: open_clip
            resizes in the picture's own mode and converts afterwards, which is not the same for those modes.

    Returns:
        A new image, RGB unless `keep_mode`; the source is left as it was.

    Raises:
        BadImage: it cannot be read, has no pixels, or its values can be understood in two ways.

    Example:
        >>> read_image(np.zeros((2, 3), dtype=np.uint8)).size  # Pillow's order: (width, height)
        (3, 2)
    """
    label = label_of(source)
    if isinstance(source, Image.Image):
        image = _loaded(source, label, upright=upright)
    elif isinstance(source, Tensor | np.ndarray):
        image = _from_array(source, label)
    elif isinstance(source, str | PathLike):
        image = _read_file(fspath(source), label, allow_urls=allow_urls, upright=upright)
    else:
        raise BadImage(f"{label} is not a picture. Type a path, or PIL.Image.open(io.BytesIO(data)) for raw bytes")
    return image if keep_mode else to_rgb(image)


def label_of(source: object) -> str:
    """Name a picture for a message."""
    if isinstance(source, Image.Image):
        return f"the {source.mode} image of {source.size[0]} × {source.size[1]} pixels"
    if isinstance(source, Tensor | np.ndarray):
        return f"the {str(source.dtype).removeprefix('torch.')} {_kind(source)} {list(source.shape)}"
    if isinstance(source, str | PathLike):
        name = str(fspath(source))
        return (name if len(name) <= 200 else f"{name[:200]}…") or "''"
    return f"a value of type {type(source).__name__}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as Pillow does, without its warnings about transparency, which is dropped."""
    if image.mode == "RGB":
        return image
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    try:
        return image.convert("RGB")
    except ValueError as error:  # the modes that only Pillow's own inside uses
        raise BadImage(f"{label_of(image)}: {error}. Type: image.convert('RGBA').convert('RGB')") from error


def on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB, transparent parts on white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def as_8bit(image: Image.Image, label: str | None = None) -> Image.Image:
    """Scale 16-bit and float images to 8 bits; every other mode is handed back as it is.

    Args:
        image: of any mode.
        label: what it is called in a message, if not by its mode and size.

    Raises:
        BadImage: 32-bit integers or floats beyond 0..1, whose white is not known.
    """
    # Before Pillow 11 a 16-bit grey PNG or PGM opened as 32-bit integers: there, and only there, 65535 is white.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_array(np.asarray(image).astype(np.uint16), label or label_of(image))
    if image.mode in ("I", "F"):
        return _from_array(np.asarray(image), label or label_of(image), "numpy.asarray(image)")
    # Pillow would interpolate the colour numbers of "PA" as if they were brightness.
    return image.convert("RGBA") if image.mode == "PA" else image


def _read_file(name: str, label: str, *, allow_urls: bool, upright: bool) -> Image.Image:
    if _URL.match(name):
        if not may_fetch(requested=allow_urls):
            raise BadImage(f"{label} is an address, and none is fetched unless asked. Type: allow_urls=True")
        return _decoded(BytesIO(fetch(name)), label, upright=upright)
    path = Path(name)
    try:
        if path.is_dir():
            raise BadImage(f"{label} is a folder. Type the files in it: sorted(Path({name!r}).glob('*.jpg'))")
        if not path.exists():
            raise BadImage(f"{label}: no such file. Type the path of a picture, as seen from {Path.cwd()}")
        if not path.is_file():
            raise BadImage(f"{label} is no regular file. Type the path of a picture")
        size = path.stat().st_size
        if size == 0:
            raise BadImage(f"{label} is empty (0 bytes). Type the path of a whole copy")
        if size > LARGEST_FILE:
            raise BadImage(
                f"{label} has {size:,} bytes, a picture may have {LARGEST_FILE:,}. Save it as PNG or JPEG alone"
            )
        file = path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        why = getattr(error, "strerror", None) or error
        raise BadImage(f"{label} cannot be opened: {why}. Type the path of a picture that you may read") from error
    with file:
        return _decoded(file, label, upright=upright)


@cache
def need_plugins() -> None:
    """Register what opens HEIC pictures (and AVIF, where Pillow does not), if it is installed."""
    for name, register in (("pillow_heif", "register_heif_opener"), ("pillow_avif", "")):
        try:
            plugin = import_module(name)
        except ImportError:
            continue
        if register:
            getattr(plugin, register)()


def _decoded(file: BytesIO | BufferedReader, label: str, *, upright: bool) -> Image.Image:
    need_plugins()
    head = file.read(12)
    file.seek(0)
    if _HEIF.match(head) and ".heic" not in Image.registered_extensions():
        raise BadImage(f"{label} is a HEIC picture, which Pillow opens with a plugin only. {_OTHER_TOOLS['.heic']}")
    with _decoding(label), _quiet():
        image = Image.open(file)
    with image:
        if image.format == "EPS":  # decoding one runs Ghostscript, a program of its own, on the file
            raise BadImage(f"{label} is a PostScript drawing. Export it as PNG first")
        return _loaded(image, label, upright=upright)


def _loaded(image: Image.Image, label: str, *, upright: bool) -> Image.Image:
    """Decode, turn and strip: a copy that owes nothing to a file."""
    if 0 in image.size:
        raise BadImage(f"{label} has no pixels: it is {image.size[0]} × {image.size[1]}. Type the path of another")
    with _decoding(label):
        if image.format in _SILENT_DECODERS:
            image.load()  # outside the lock: threads decode at the same time
        with _quiet():
            image.load()
            turn = _TURN.get(_orientation(image)) if upright else None  # after load: Pillow turns TIFFs itself
    image = as_8bit(image, label)
    image = image.copy() if turn is None else image.transpose(turn)
    # Above all the EXIF orientation goes: it must not turn the picture a second time. Only a colour key stays.
    image.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return image


@contextmanager
def _decoding(label: str) -> Generator[None]:
    """Say in our words what Pillow's decoders raise, which on damaged data is anything at all."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = re.search(r"\d+", str(error))
        pixels = int(size.group()) if size else 0
        raise BadImage(
            f"{label} has {pixels:,} pixels, and Pillow's guard against decompression bombs allows "
            f"{Image.MAX_IMAGE_PIXELS or 0:,}. Scale it down, or, if you trust it, type first: "
            f"PIL.Image.MAX_IMAGE_PIXELS = {pixels:_}"
        ) from error
    except UnidentifiedImageError as error:
        fix = _OTHER_TOOLS.get(Path(label).suffix.lower(), "Save it as PNG or JPEG; what can be read: python -m PIL")
        raise BadImage(f"{label} is not a picture that can be read here, or its beginning is damaged. {fix}") from error
    except Exception as error:
        raise BadImage(
            f"{label} is damaged: {str(error) or type(error).__name__}. Type the path of a whole copy; for what is "
            "left of a truncated one type first: PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True"
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a camera's broken EXIF block does not spoil the picture
        return 1


@contextmanager
def _quiet() -> Generator[None]:
    """Silence Pillow's warnings, but raise the one about decompression bombs.

    Filters belong to the process, not to the thread, so one thread at a time; they are put back afterwards.
    """
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _kind(array: np.ndarray | Tensor) -> str:
    return "tensor" if isinstance(array, Tensor) else "array"


def _from_array(source: np.ndarray | Tensor, label: str, name: str | None = None) -> Image.Image:
    values = _channels_last(source, label)
    if values.size == 0:
        raise BadImage(f"{label} has no pixels. Type one with at least one row and one column")
    name = name or _kind(source)  # what the fix calls it
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype == np.uint16:  # 65535 → 255, to the nearest
        values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif np.issubdtype(values.dtype, np.floating):
        values = _from_floats(values, label, name)
    elif values.dtype != np.uint8:
        kinds = ("torch.uint8", "torch.uint16") if name == "tensor" else ("'uint8'", "'uint16'")
        cast = "to" if name == "tensor" else "astype"
        raise BadImage(
            f"{label}: it is not said which {values.dtype} is white. Type: {name}.{cast}({kinds[0]}) if 255 is, "
            f"{name}.{cast}({kinds[1]}) if 65535 is"
        )
    return Image.fromarray(np.ascontiguousarray(values))


def _from_floats(values: np.ndarray, label: str, name: str) -> np.ndarray:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        clean = "torch.nan_to_num(tensor)" if name == "tensor" else "numpy.nan_to_num(array)"
        raise BadImage(f"{label}: {bad:,} of {values.size:,} values are NaN or infinite. Type: {clean}")
    low, high = float(values.min()), float(values.max())
    # A little beyond 0..1 is what resampling and float16 leave; more is another scale.
    if low < -0.01 or high > 1.01:
        fix = f"{name} / 255 if 255 is white" if low >= 0 else f"({name} + 1) / 2 if it runs from -1 to 1"
        if low < 0 and name == "tensor":
            fix = "tensor[None] if it is preprocessed: [image, 3, row, col] is taken as it is"
        raise BadImage(f"{label}: floats must lie in 0..1 (1 is white), these run {low:g} to {high:g}. Type: {fix}")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _channels_last(source: np.ndarray | Tensor, label: str) -> np.ndarray:
    """Return values as [row, col] or [row, col, 3|4], whatever the library's own axis order."""
    if isinstance(source, Tensor):
        if source.ndim == 3 and source.shape[0] not in (1, 3, 4):
            fix = "Type: tensor.permute(2, 0, 1)" if source.shape[2] in (1, 3, 4) else "Type: tensor[:3]"
            raise BadImage(f"{label}: a tensor is a picture as [3, row, col] (or 1 or 4 channels). {fix}")
        values = source.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        values = (values.permute(1, 2, 0) if values.ndim == 3 else values).numpy()
    else:
        values = source
        if values.ndim == 3 and values.shape[2] not in (1, 3, 4):
            fix = "Type: array.transpose(1, 2, 0)" if values.shape[0] in (1, 3, 4) else "Type: array[:, :, :3]"
            raise BadImage(f"{label}: an array is a picture as [row, col, 3] (or 1 or 4 channels, or none). {fix}")
    if values.ndim not in (2, 3):
        axes = "[3, row, col]" if isinstance(source, Tensor) else "[row, col, 3]"
        raise BadImage(f"{label}: a picture has two axes or three. Type one of {axes}, or a list of them")
    return values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
