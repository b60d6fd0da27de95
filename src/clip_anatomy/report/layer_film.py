"""An animated GIF over the layers: the map of each layer alone, and of the sum up to it."""

from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from clip_anatomy.report.contact_sheet import INK, PAPER, SOFT, fitted, write_line
from clip_anatomy.report.map_overlay import ShadedSet, overlay

__all__ = ["layer_film"]

SIDE, GAP, LINE = 250, 8, 18
MOST_TEXTS = 4
MILLISECONDS, LAST = 450, 1800


def layer_film(picture: Image.Image, shaded: ShadedSet, colours: str = "signed") -> bytes:
    """Draw the layers of one picture as an animated GIF: above this layer alone, below the sum up to it, a column per text.

    Args:
        picture: in RGB.
        shaded: its maps by layer.
        colours: "signed" or "heat".

    Returns:
        A GIF that repeats.
    """
    alone, sums = shaded.layers, shaded.sums
    texts = alone[0].maps.texts[:MOST_TEXTS]
    shown = fitted(picture, SIDE)
    wide, tall = GAP + len(texts) * (shown.width + GAP), 2 * (shown.height + LINE + GAP) + 2 * LINE
    font, fine = ImageFont.load_default(14), ImageFont.load_default(12)
    frames: list[Image.Image] = []
    for layer in range(len(alone)):
        frame = Image.new("RGB", (max(wide, 260), tall + GAP), PAPER)
        draw = ImageDraw.Draw(frame)
        draw.text((GAP, 4), f"layer {layer} (0-{len(alone) - 1})", INK, font)
        draw.line((GAP + 110, 14, GAP + 110 + (frame.width - 120 - GAP), 14), (227, 225, 220), 4)
        filled = (frame.width - 120 - GAP) * (layer + 1) / len(alone)
        draw.line((GAP + 110, 14, GAP + 110 + filled, 14), (224, 90, 0), 4)
        for row, (each, heading) in enumerate([(alone, "this layer"), (sums, "all layers up to here")]):
            top = LINE + GAP + row * (shown.height + LINE + GAP)
            draw.text((GAP, top), heading, SOFT, fine)
            for k in range(len(texts)):
                at = GAP + k * (shown.width + GAP)
                frame.paste(overlay(shown, each[layer], k, colours), (at, top + LINE))
        for k, text in enumerate(texts):
            write_line(draw, (GAP + k * (shown.width + GAP), tall - LINE + GAP), text, shown.width, INK, 12)
        frames.append(frame)
    # One palette with the colours of all frames, or colours would flicker from frame to frame.
    strip = Image.new("RGB", (frames[0].width, sum(frame.height for frame in frames)))
    for i, frame in enumerate(frames):
        strip.paste(frame, (0, i * frame.height))
    palette = strip.quantize(255, method=Image.Quantize.MAXCOVERAGE)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = BytesIO()
    waits = [MILLISECONDS] * (len(indexed) - 1) + [LAST]
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], duration=waits, loop=0, optimize=True)
    return file.getvalue()
