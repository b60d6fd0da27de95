"""Stores of random head vectors, written by the store's own writer: what benches of large stores measure on."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

EMBED, D = 512, 64
ROW = {"path": None, "size": 1, "row": 1, "col": 1, "label": "", "group": "", "captions": "[]", "meta": "{}"}

ImageArrays = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""How many images → their heads [layer, head, image, d] and unit embeddings [image, embed], both float16."""


def generate(folder: Path, images: int, layers: int, heads: int, arrays: ImageArrays) -> None:
    """Write a store, a full block at a time."""
    from clip_anatomy.split.basis import HeadBasis
    from clip_anatomy.store.manifest import Manifest
    from clip_anatomy.store.writer import FULL, Writer

    frames = torch.linalg.qr(torch.randn(layers, heads, EMBED, D, dtype=torch.float64)).Q.transpose(-1, -2).contiguous()
    basis = HeadBasis(frames, torch.eye(D, dtype=torch.float64).expand(layers, heads, D, D).contiguous(), "centered")
    kept, made = tuple(range(layers)), "2026-01-01T00:00:00Z"
    manifest = Manifest("generated", "0" * 32, "centered", {}, kept, heads, D, EMBED, layers, ("heads",), {}, made)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Writer.open(folder, manifest, basis) as writer:
        for first in range(0, images, FULL):
            count = min(FULL, images - first)
            block, unit = arrays(count)
            entries = [
                {**ROW, "id": f"{at}", "digest": f"{at:032x}", "source": 1, "status": "done", "error": ""}
                for at in range(first, first + count)
            ]
            writer.commit(entries, {"heads": [block], "embedding": [unit], "norm": [np.ones(count, np.float32)]})
            print(f"\r{first + count:,} of {images:,}", end="", file=sys.stderr)
        writer.tidy(end=True)
    print(file=sys.stderr)


def coordinates(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Head coordinates of a plausible size, off zero so that means matter."""
    return (random.standard_normal(shape, dtype=np.float32) * 0.02 + 0.01).astype(np.float16)
