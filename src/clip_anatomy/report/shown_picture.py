"""Pictures as they are shown: what the model saw of them, and where its patches lie."""

import os
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadImage
from clip_anatomy.images.pixels import Box, Geometry, prepare_many, read_image
from clip_anatomy.loading.clip import Clip
from clip_anatomy.report.html import LOSSLESS as TINY
from clip_anatomy.report.html import data_uri, encoded

SHOWN = 560  # longest side of a picture in the report, in pixels
LONGEST = 2.2  # sides further apart than this: only what the model saw is shown


@dataclass(frozen=True)
class Picture:
    """One picture, ready to be drawn.

    Attributes:
        label: its name as typed.
        size: (width, height) of the original in pixels.
        encoded: the part that figures show, scaled down: PNG for small drawings, JPEG for photographs.
        view: that part in pixels of the original.
        seen: what the model saw, in pixels of the original; beyond its edges where the model pads.
    """

    label: str
    size: tuple[int, int]
    encoded: bytes = field(repr=False)
    view: Box
    seen: Box

    @property
    def cropped(self) -> bool:
        """Whether figures show more than the model saw."""
        return self.view != self.seen

    @property
    def canvas(self) -> Box:
        """The smallest rectangle around what is shown and what the model saw."""
        a, b = self.view, self.seen
        return Box(min(a.top, b.top), min(a.left, b.left), max(a.bottom, b.bottom), max(a.right, b.right))

    @property
    def shown(self) -> Image.Image:
        """The part that figures show."""
        return Image.open(BytesIO(self.encoded))

    def data_uri(self) -> str:
        """The shown part as an address that holds its own bytes."""
        return data_uri(self.encoded)

    @property
    def tiny(self) -> bool:
        """Whether it is a small drawing, shown with square pixels."""
        return max(self.shown.size) <= TINY


def open_picture(source: str, clip: Clip, *, allow_urls: bool = False) -> tuple[Picture, Tensor]:
    """Read one picture for the model and for people.

    Args:
        source: a path, or an address if allowed.
        clip: the model that will look at it.
        allow_urls: fetch http(s) addresses.

    Returns:
        The picture as shown, and its pixels [1, 3, row, col] as the model takes them.

    Raises:
        BadImage: it cannot be read.
    """
    if os.path.isdir(source):  # noqa: PTH112  (Path() of an address would merge its slashes)
        raise BadImage(f"{label_of(source)} is a folder. Type the pictures in it: {label_of(source).rstrip('/')}/*.jpg")
    image = read_image(source, allow_urls=allow_urls, keep_mode=True)
    done = prepare_many([image], clip.preprocess)
    for _, error in done.errors:
        raise BadImage(f"{label_of(source)}: {str(error).removeprefix('image 0: ')}")
    return view_of(image, label_of(source), clip.preprocess.geometry(*image.size)), done.pixels


def view_of(image: Image.Image, label: str, where: Geometry) -> Picture:
    """Choose what figures show of a picture: all of it, or what the model saw of a long and thin one."""
    width, height = image.size
    top, left = where.to_picture(0, 0)
    bottom, right = where.to_picture(*where.size)
    seen = Box(top, left, bottom, right)
    view = Box(0.0, 0.0, float(height), float(width))
    if max(width / height, height / width) > LONGEST:
        view = where.box
        if abs((seen.bottom - seen.top) - (view.bottom - view.top)) < 1e-6:
            seen = view
    rows, cols = view.bottom - view.top, view.right - view.left
    scale = min(1.0, SHOWN / max(rows, cols))
    size = max(1, round(cols * scale)), max(1, round(rows * scale))
    # Colours are converted before scaling: palettes and alpha do not scale.
    part = image.crop(
        (int(view.left), int(view.top), max(int(view.left) + 1, round(view.right)), max(1, round(view.bottom)))
    )
    shown = read_image(part).resize(size, Image.Resampling.LANCZOS)
    return Picture(label, (width, height), encoded(shown), view, seen)


def label_of(source: str) -> str:
    """A file name as it can be printed, whatever bytes it holds."""
    return os.fsencode(source).decode("utf-8", "replace")
