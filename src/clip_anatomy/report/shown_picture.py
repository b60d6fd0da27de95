"""Pictures as they are shown: what the model saw of them, and where its patches lie."""

from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from clip_anatomy.images.pixels import Box, Geometry, read_image
from clip_anatomy.report.html import LOSSLESS as TINY
from clip_anatomy.report.html import data_uri, encoded

THUMBNAIL = 96  # pixels of a side in a list of pictures
SHOWN = 560  # longest side of a picture in the report, in pixels
LONGEST = 2.2  # sides further apart than this: only what the model saw is shown


@dataclass(frozen=True)
class ShownPicture:
    """One picture, ready to be drawn.

    Attributes:
        label: its name as typed.
        size: (width, height) of the original in pixels.
        encoded: the part that figures show, scaled down: PNG for small drawings, JPEG for photographs.
        view: that part in pixels of the original.
        visible: what the model saw, in pixels of the original; beyond its edges where the model pads.
    """

    label: str
    size: tuple[int, int]
    encoded: bytes = field(repr=False)
    view: Box
    visible: Box

    @property
    def cropped(self) -> bool:
        """Whether figures show more than the model saw."""
        return self.view != self.visible

    @property
    def canvas(self) -> Box:
        """The smallest rectangle around what is shown and what the model saw."""
        a, b = self.view, self.visible
        return Box(min(a.top, b.top), min(a.left, b.left), max(a.bottom, b.bottom), max(a.right, b.right))

    @property
    def shown(self) -> Image.Image:
        """The part that figures show."""
        return Image.open(BytesIO(self.encoded))

    def data_uri(self) -> str:
        """Write the shown part as an address that holds its own bytes."""
        return data_uri(self.encoded)

    def thumbnail(self) -> str:
        """Return the same, small enough for a line of a table."""
        small = self.shown
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        return data_uri(encoded(small, 80))

    @property
    def tiny(self) -> bool:
        """Whether it is a small drawing, shown with square pixels."""
        return max(self.shown.size) <= TINY


def view_of(image: Image.Image, label: str, where: Geometry) -> ShownPicture:
    """Choose what figures show of a picture: all of it, or what the model saw of a long and thin one."""
    width, height = image.size
    visible, view = where.visible, Box(0.0, 0.0, float(height), float(width))
    if max(width / height, height / width) > LONGEST:
        view = where.box
        if abs((visible.bottom - visible.top) - (view.bottom - view.top)) < 1e-6:
            visible = view
    rows, cols = view.bottom - view.top, view.right - view.left
    scale = min(1.0, SHOWN / max(rows, cols))
    size = max(1, round(cols * scale)), max(1, round(rows * scale))
    # Colours are converted before scaling: palettes and alpha do not scale.
    part = image.crop(
        (int(view.left), int(view.top), max(int(view.left) + 1, round(view.right)), max(1, round(view.bottom)))
    )
    shown = read_image(part).resize(size, Image.Resampling.LANCZOS)
    return ShownPicture(label, (width, height), encoded(shown), view, visible)


def model_view(picture: Image.Image, where: Geometry, side: int) -> Image.Image:
    """Cut out what the model saw of a picture, so that its patches lie on it; black beyond the picture's edge.

    Args:
        picture: the original.
        where: the model's input lies in it.
        side: longest side of what is returned, in pixels.
    """
    top, left = where.to_picture(0, 0)
    bottom, right = where.to_picture(*where.size)
    part = picture.convert("RGB").crop(
        (round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1))
    )
    rows, cols = where.size
    scale = side / max(rows, cols)
    return part.resize((max(1, round(cols * scale)), max(1, round(rows * scale))), Image.Resampling.LANCZOS)
