"""`Preprocess`: one picture → the tensor one model takes, open_clip's transform bit for bit, without torchvision."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, floor
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.decode import as_8bit, on_white, to_rgb
from clip_anatomy.images.geometry import Geometry

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green, blue in CLIP's training pictures, on the scale 0..1 (Radford et al. 2021, released code)."""
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the same."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_CHOICES = {
    "resize": ("shortest", "squash", "longest", "patches"),
    "interpolation": tuple(_FILTERS),
    "crop": ("round", "floor"),
    "transparent": ("white", "dropped"),
}
_LARGEST_RESIZED = 2**25  # pixels


@dataclass(frozen=True)
class Preprocess:
    """How one model wants its pixels. Calling it is the host library's own evaluation transform, and nothing else.

    Attributes:
        size: (row, col) pixels of the model's input.
        mean: of red, green and blue, on the scale 0..1.
        std: likewise.
        resize: "shortest" scales until the picture covers `size` and crops the middle; "squash" ignores the aspect
            ratio; "longest" scales until it fits and pads; "patches" keeps the aspect ratio as far as whole patches allow and takes as
            many as `patches` lets it (SigLIP 2's NaFlex): the model's input has another shape for every aspect ratio.
        interpolation: the filter. open_clip takes bicubic for "shortest" with a non-square size whatever it is told;
            so does this.
        crop: how the offset is rounded. "round" (open_clip) rounds the crop's offset, resizes in the picture's own mode and drops
            transparency. "floor" (transformers) rounds the offset down, which is a pixel less for one margin in four,
            and converts to RGB first.
        transparent: what "floor" sees where a picture is transparent: "white" (transformers 5) or what lies below, its transparency
            "dropped" (transformers 4).
        short_side: pixels that "shortest" scales the short side to before `size` is cut out of the middle (256 before 224 is common);
            None scales just so far that the picture covers `size`.
        patches: of "patches": pixels of a patch's side, and the most patches of one picture.
        fill: brightness of the padding of "longest", 0..255. Padding is added in RGB; open_clip adds it in the
            picture's own mode, where the same number may be another colour (palettes, CMYK, YCbCr).
        cut: (row, col) pixels from the top left that patches cover, where `size` is no multiple of the patch; the rest is cut off,
            as the model's own convolution does. None: nothing is cut.

    Raises:
        BadSpec: a field that is none of these.

    Example:
        >>> preprocess = Preprocess(size=(224, 224), mean=OPENAI_MEAN, std=OPENAI_STD)
        >>> preprocess(Image.new("RGB", (300, 200))).shape
        torch.Size([3, 224, 224])
        >>> preprocess.at(336).size
        (336, 336)
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "squash", "longest", "patches"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: Literal["round", "floor"] = "round"
    fill: int = 0
    short_side: int | None = None
    cut: tuple[int, int] | None = None
    transparent: Literal["white", "dropped"] = "white"
    patches: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what no model can have meant."""
        for name in _CHOICES:
            _check(name, getattr(self, name))
        if min(self.size) < 1:
            raise BadSpec(f"preprocess size {self.size}: rows and columns must be positive. Type: size=(224, 224)")
        if (self.resize == "patches") != (self.patches is not None) or min(self.patches or (1,)) < 1:
            raise BadSpec(
                f"preprocess resize {self.resize!r} with patches {self.patches}: both or neither. Type: resize='patches', patches=(16, 256)"
            )
        if not all(s > 0 for s in self.std) or not all(np.isfinite([*self.mean, *self.std])):
            raise BadSpec(
                f"preprocess mean {self.mean}, std {self.std}: finite, and std above 0. Type: std={OPENAI_STD}"
            )
        if self.short_side is not None and self.short_side < 1:
            raise BadSpec(
                f"preprocess short_side {self.short_side}: pixels above 0 were expected. Type: short_side=256"
            )
        if not 0 <= self.fill <= 255:
            raise BadSpec(f"preprocess fill {self.fill}: a brightness 0..255 was expected. Type: fill=0")

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 row col"]:
        """Scale, crop or pad, and normalise one Pillow image of any mode.

        It is not turned by its EXIF orientation: that is `read_image`'s business. Bit-equal to
        `open_clip.image_transform(..., is_train=False)`, except that 16-bit grey is scaled (open_clip clips it to
        white), and that a picture so long and thin that scaling it would take more than 2²⁵ pixels is scaled within
        the crop only (up to one of 255 levels apart, a thousandth of the memory).
        """
        image = as_8bit(image)
        if self.crop == "floor":
            image = on_white(image) if self.transparent == "white" else to_rgb(image)
        where = self.geometry(*image.size)
        # torchvision's order of operations, so that every float rounds as it does there.
        levels = np.array(to_rgb(_scaled_and_cropped(image, where, self._filter, self.fill)))
        return self.normalised(torch.from_numpy(levels).permute(2, 0, 1).contiguous())

    def normalised(self, levels: Shaped[Tensor, "3 row col"]) -> Float[Tensor, "3 row col"]:
        """Turn levels of 0 to 255 into what the model takes."""
        mean, std = (torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (self.mean, self.std))
        return (levels.to(torch.float32) / 255).sub_(mean).div_(std)

    def levels(self, pixels: Float[Tensor, "3 row col"]) -> UInt8[Tensor, "3 row col"]:
        """Turn what the model takes back into levels of 0 to 255: invert `normalised`, exactly where it came from levels."""
        mean, std = (torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (self.mean, self.std))
        return ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def _filter(self) -> Image.Resampling:
        covers_oblong = self.resize == "shortest" and self.size[0] != self.size[1] and self.short_side is None
        return _FILTERS["bicubic" if covers_oblong else self.interpolation]

    def at(self, size: int | tuple[int, int]) -> "Preprocess":
        """Return the same at another resolution: one number for a square, or (row, col)."""
        sides = (size, size) if isinstance(size, int) else size
        short = self.short_side and round(self.short_side * min(sides) / min(self.size))
        patches = self.patches and (
            self.patches[0],
            max(1, (sides[0] // self.patches[0]) * (sides[1] // self.patches[0])),
        )
        return replace(self, size=sides, short_side=short, cut=None, patches=patches)

    def squashed(self, size: tuple[int, int] | None = None) -> "Preprocess":
        """Return the same without a crop, whatever a picture's aspect ratio: to (row, col), or to its own size."""
        own = replace(self, resize="squash", patches=None)
        return own if size is None else replace(own, size=size, cut=None)

    def geometry(self, width: int, height: int) -> Geometry:
        """Tell where the model's pixels lie in an original of this size (Pillow's order, `*image.size`)."""
        if min(width, height) < 1:
            raise BadImage(f"a picture of {width} × {height} has no pixels. Type: preprocess.geometry(*image.size)")
        rows, cols = self.size
        if self.patches is not None:
            whole = whole_patches(height, width, *self.patches)
            return Geometry((height, width), whole, (0, 0), whole)
        if self.resize == "squash":
            resized = self.size
        elif self.resize == "longest" or (rows != cols and self.short_side is None):
            ratios = height / rows, width / cols
            ratio = max(ratios) if self.resize == "longest" else min(ratios)
            resized = max(1, round(height / ratio)), max(1, round(width / ratio))
        else:
            short = self.short_side or rows
            resized = (int(short * height / width), short) if width <= height else (short, int(short * width / height))
        offset = self._offset(resized[0], rows), self._offset(resized[1], cols)
        return Geometry((height, width), resized, offset, self.cut or self.size)

    def _offset(self, resized: int, size: int) -> int:
        if resized < size:
            return -((size - resized) // 2)
        return (resized - size) // 2 if self.crop == "floor" else round((resized - size) / 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON."""
        later = {
            "cut": None,
            "transparent": "white",
            "patches": None,
        }  # left out where they are as files without them mean it
        held = {key: value for key, value in asdict(self).items() if key not in later or value != later[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in held.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Invert `to_dict`; `size` may be one number.

        Raises:
            BadSpec: an unknown or missing key, or a value that does not fit.
        """
        known = [f.name for f in fields(cls)]
        unknown, missing = sorted(set(values) - set(known)), sorted({"size", "mean", "std"} - set(values))
        if unknown or missing:
            raise BadSpec(f"preprocess has unknown {unknown}, lacks {missing}. Its fields are: {', '.join(known)}")
        try:
            size = values["size"]
            rows, cols = (size, size) if isinstance(size, int) else size
            mean, std = (_three(values[key]) for key in ("mean", "std"))
            rest = {key: values[key] for key in values if key not in ("size", "mean", "std")}
            for key, value in rest.items():
                _check(key, value)
            for key in ("cut", "patches"):
                if rest.get(key) is not None:
                    rest[key] = tuple(int(side) for side in rest[key])
            return cls(size=(int(rows), int(cols)), mean=mean, std=std, **rest)
        except (TypeError, ValueError) as error:
            if isinstance(error, BadSpec):
                raise
            example = {"size": [224, 224], "mean": list(OPENAI_MEAN), "std": list(OPENAI_STD)}
            raise BadSpec(f"preprocess {dict(values)}: {error}. Type: {example}") from error


def whole_patches(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """Find the largest size of at most so many whole patches that keeps a picture's aspect ratio, each side rounded up.

    By bisection of the scale as transformers' Siglip2ImageProcessor does it, to the same last step.

    Example:
        >>> whole_patches(480, 640, 16, 256)
        (224, 288)
    """

    def sides(scale: float) -> tuple[int, int]:
        return max(side, ceil(height * scale / side) * side), max(side, ceil(width * scale / side) * side)

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, cols = sides(middle)
        low, high = (middle, high) if (rows // side) * (cols // side) <= most else (low, middle)
    return sides(low)


def _scaled_and_cropped(image: Image.Image, where: Geometry, kernel: Image.Resampling, fill: int) -> Image.Image:
    (rows, cols), (top, left), (height, width) = where.resized, where.offset, where.size
    if rows * cols > _LARGEST_RESIZED and rows >= height and cols >= width:
        return _scaled_within_crop(image, where, kernel)
    image = image.resize((cols, rows), kernel)
    if rows < height or cols < width:
        canvas = Image.new("RGB", (width, height), (fill, fill, fill))
        canvas.paste(to_rgb(image), (-left, -top))
        return canvas
    if (rows, cols) == where.size:
        return image
    return image.crop((left, top, left + width, top + height))


def _scaled_within_crop(image: Image.Image, where: Geometry, kernel: Image.Resampling) -> Image.Image:
    """Resize only what the crop keeps: a line of 20,000 pixels would else become 4.5 million columns."""
    spans: list[tuple[int, int, float, float]] = []
    for length, scale, offset, size in zip(where.picture, where.scale, where.offset, where.size, strict=True):
        first, last = offset / scale, min((offset + size) / scale, length)
        reach = ceil(2 * max(1.0, 1 / scale)) + 1  # the bicubic filter's support, in pixels of the original
        start, stop = max(0, floor(first) - reach), min(length, ceil(last) + reach)
        spans.append((start, stop, first - start, last - start))
    (top, bottom, row0, row1), (left, right, col0, col1) = spans
    part = image.crop((left, top, right, bottom))
    return part.resize((where.size[1], where.size[0]), kernel, box=(col0, row0, col1, row1))


def _check(name: str, value: object) -> None:
    if name in _CHOICES and value not in _CHOICES[name]:
        raise BadSpec(f"preprocess {name} is {value!r}. Type one of: {', '.join(_CHOICES[name])}")


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
