"""Small pictures, and files of them, for the tests of everything that reads images."""

import io
import zlib
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

import clip_anatomy as ca
from clip_anatomy.data.picture_batches import picture_batches
from clip_anatomy.images.pixels import OPENAI_MEAN, OPENAI_STD, Preprocess

CLIP = Preprocess(size=(224, 224), mean=OPENAI_MEAN, std=OPENAI_STD)
SMALL = Preprocess(size=(32, 32), mean=OPENAI_MEAN, std=OPENAI_STD)


def picture(width=60, height=40, colour=(200, 40, 40)):
    image = Image.new("RGB", (width, height), colour)
    ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 3), fill=(20, 20, 220))  # which corner is which
    return image


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def written(path, data):
    path.write_bytes(data)
    return path


def png_claiming(width, height):
    """A PNG that says it is as large as it likes, over no data to speak of."""

    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def noise(width, height, mode="RGB"):
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(levels)
    return image.convert(mode) if mode in ("LA", "RGBA") else image.convert("RGB").convert(mode)


def usable(sources, preprocess=SMALL, **more):
    """What the picture loop makes of sources: places and pixels of the good ones, names and errors of the others."""
    failed = []
    clip = replace(ca.load("demo"), preprocess=preprocess)
    found = list(picture_batches(clip, sources, failed=failed, **more))
    places = tuple(place for batch in found for place in batch.places)
    return places, torch.cat([batch.pixels for batch in found]), failed
