"""An animated GIF over the layers: the map of each layer alone, and of the sum up to it."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from clip_anatomy.maps.layer_maps import cumulative
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.report.contact_sheet import INK, PAPER, SOFT, fit, fitted
from clip_anatomy.report.map_overlay import Shades, overlay, shades_of

__all__ = ["layer_film", "layer_shades"]

SIDE, GAP, LINE = 250, 8, 18
MOST_TEXTS = 4
MILLISECONDS, LAST = 450, 1800


def layer_shades(layers: Sequence[Maps]) -> tuple[list[Shades], list[Shades]]:
    """Return the maps of each layer and the sums up to it; one scale for all layers, another for all sums.

    Args:
        layers: of one picture, from `layer_maps`.
    """
    alone, sums = [shades_of(maps) for maps in layers], [shades_of(maps) for maps in cumulative(layers)]
    limits = [max(limit for one in each for limit in one.limits) or 1.0 for each in (alone, sums)]
    return (
        [Shades(one.maps, (limits[0],) * len(one.limits), one.zero) for one in alone],
        [Shades(one.maps, (limits[1],) * len(one.limits), one.zero) for one in sums],
    )


def layer_film(picture: Image.Image, layers: Sequence[Maps], look: str = "signed") -> bytes:
    """Draw the layers of one picture as an animated GIF: above this layer alone, below the sum up to it, a column per text.

    Args:
        picture: in RGB.
        layers: its maps by layer.
        look: "signed" or "heat".

    Returns:
        A GIF that repeats.
    """
    texts = layers[0].texts[:MOST_TEXTS]
    alone, sums = layer_shades(layers)
    shown = fitted(picture, SIDE)
    wide, tall = GAP + len(texts) * (shown.width + GAP), 2 * (shown.height + LINE + GAP) + 2 * LINE
    font, fine = ImageFont.load_default(14), ImageFont.load_default(12)
    frames: list[Image.Image] = []
    for layer in range(len(layers)):
        frame = Image.new("RGB", (max(wide, 260), tall + GAP), PAPER)
        draw = ImageDraw.Draw(frame)
        draw.text((GAP, 4), f"layer {layer} (0-{len(layers) - 1})", INK, font)
        draw.line((GAP + 110, 14, GAP + 110 + (frame.width - 120 - GAP), 14), (227, 225, 220), 4)
        filled = (frame.width - 120 - GAP) * (layer + 1) / len(layers)
        draw.line((GAP + 110, 14, GAP + 110 + filled, 14), (224, 90, 0), 4)
        for row, (each, heading) in enumerate([(alone, "this layer"), (sums, "all layers up to here")]):
            top = LINE + GAP + row * (shown.height + LINE + GAP)
            draw.text((GAP, top), heading, SOFT, fine)
            for k in range(len(texts)):
                at = GAP + k * (shown.width + GAP)
                frame.paste(overlay(shown, each[layer], k, look), (at, top + LINE))
        for k, text in enumerate(texts):
            words = fit(draw, text, shown.width, fine)
            draw.text((GAP + k * (shown.width + GAP), tall - LINE + GAP), words, INK, fine)
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
