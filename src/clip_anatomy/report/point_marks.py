"""Point and box prompts for SAM, drawn on their picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from clip_anatomy.maps.point_prompts import Prompts
from clip_anatomy.report.contact_sheet import fitted

__all__ = ["marked"]

YES, NO, RIM = (30, 150, 60), (205, 40, 50), (255, 255, 255)
FINE = 3  # drawn so many times larger, then scaled down: smooth rings


def marked(
    picture: Image.Image, prompts: Prompts, colour: Sequence[int] = (224, 90, 0), longest: int = 640
) -> Image.Image:
    """Draw prompts: green + for points that say yes, red − for those that say no, boxes in a colour.

    Args:
        picture: the original in RGB.
        prompts: in its pixels.
        colour: of the boxes.
        longest: side of the drawing.

    Returns:
        A picture no larger than `longest`; small ones are enlarged to at least 256 pixels.
    """
    side = max(picture.size)
    shown = fitted(picture, min(longest, max(side, 256)))
    scale, size = min(longest, max(side, 256)) / side, shown.size
    canvas = shown.resize((size[0] * FINE, size[1] * FINE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    unit = scale * FINE
    thick = FINE * max(1.0, max(size) / 256)  # figures are shown some 216 pixels wide, whatever the drawing is
    for left, top, right, bottom in prompts.boxes:
        edges = (left * unit, top * unit, right * unit - 1, bottom * unit - 1)
        outer = [edges[0], edges[1], max(edges[2], edges[0] + 3 * thick), max(edges[3], edges[1] + 3 * thick)]
        draw.rectangle(outer, outline=RIM, width=round(5 * thick))
        inner = [
            e + s * thick for e, s in zip(outer, (1, 1, -1, -1), strict=True)
        ]  # never turned inside out: see `outer`
        draw.rectangle(inner, outline=tuple(colour), width=round(3 * thick))
    radius = 4.5 * thick
    for (x, y), yes in sorted(zip(prompts.points, prompts.labels, strict=True), key=lambda one: one[1]):
        at, ink = (x * unit, y * unit), YES if yes else NO
        draw.circle(at, radius + 1.2 * thick, fill=RIM)
        draw.circle(at, radius, fill=ink)
        arm = 0.55 * radius
        draw.line((at[0] - arm, at[1], at[0] + arm, at[1]), RIM, round(1.5 * thick))
        if yes:
            draw.line((at[0], at[1] - arm, at[0], at[1] + arm), RIM, round(1.5 * thick))
    return canvas.resize(size, Image.Resampling.LANCZOS)
