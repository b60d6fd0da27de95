"""Drawn frames as one file that plays: GIF by Pillow, MP4 by PyAV (extra `video`). Frames lie on disk, and one is held at a time."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from math import ceil
from pathlib import Path

from PIL import Image

from clip_anatomy.errors import MissingExtra
from clip_anatomy.report.contact_sheet import fitted

__all__ = ["write_gif", "write_mp4"]

SIDE = 480  # most pixels of a GIF's side
FASTEST = 25  # frames a second that every program plays as fast as a GIF says
MOST = 500  # frames of a GIF: of more an even choice is taken, at the film's own speed
SAMPLED = 16  # frames that the one palette is made of, or colours would flicker
REPEATING = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"


def write_gif(frames: Sequence[Path], file: Path, rate: float) -> int:
    """Write frames as an animated GIF that repeats, at most 480 pixels a side and 500 frames.

    Pillow holds every frame of a GIF that it writes; here each is encoded alone, and its blocks are put one behind the other (GIF89a, §20–23).

    Args:
        frames: picture files of one size, in order.
        file: to write.
        rate: frames a second.

    Returns:
        How many frames it has.
    """
    step = max(ceil(rate / FASTEST), ceil(len(frames) / MOST))
    some = frames[::step]
    strip = [_small(one) for one in some[:: max(1, len(some) // SAMPLED)]]
    together = Image.new("RGB", (strip[0].width, sum(one.height for one in strip)))
    for at, one in enumerate(strip):
        together.paste(one, (0, at * one.height))
    palette = together.quantize(255, method=Image.Quantize.MAXCOVERAGE)
    hundredths = min(0xFFFF, max(2, round(100 * step / rate)))  # two bytes
    with file.open("wb") as out:
        for number, path in enumerate(some):
            head, blocks = _blocks(_small(path).quantize(palette=palette, dither=Image.Dither.NONE))
            if not number:
                out.write(head + REPEATING)
            out.write(b"!\xf9\x04\x04" + hundredths.to_bytes(2, "little") + b"\0\0" + blocks)
        out.write(b";")
    return len(some)


def write_mp4(frames: Sequence[Path], file: Path, rate: float) -> None:
    """Write frames as a film that browsers play (H.264, or MPEG-4 where that encoder is missing).

    Raises:
        MissingExtra: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtra("PyAV (videos)", "video") from error
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with Image.open(frames[0]) as image:
        wide, high = (side - side % 2 for side in image.size)  # chroma of two by two pixels
    with av.open(str(file), "w", format="mp4", options={"movflags": "faststart"}) as out:
        stream = out.add_stream(codec, rate=max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001)))
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        stream.bit_rate = max(400_000, int(0.2 * wide * high * rate))
        for path in frames:
            with Image.open(path) as image:
                frame = av.VideoFrame.from_image(image.convert("RGB").crop((0, 0, wide, high)))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _small(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return fitted(image.convert("RGB"), SIDE, enlarge=False)


def _blocks(image: Image.Image) -> tuple[bytes, bytes]:
    """Encode one frame: the head of its file with the palette, and the blocks of its pixels."""
    file = BytesIO()
    image.save(file, "GIF", optimize=False)
    data = file.getvalue()
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    head = data[:at]
    while data[at] == 0x21:  # an extension: its label, then blocks with their lengths before them
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    return head, data[at:-1]  # without the file's end mark
