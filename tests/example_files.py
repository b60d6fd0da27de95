"""Whole examples of files that readers are tried with: films, slides, arrays that refer to others."""

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from pictures import noise


def written(write: Callable[[Path], Any], name: str = "a") -> bytes:
    """Return what a function writes into a file."""
    path = Path(mkdtemp()) / name
    write(path)
    return path.read_bytes()


def film(name: str) -> bytes:
    """Return a film of three frames."""
    frames = [noise(16, 16) for _ in range(3)]
    if not name.endswith(".mp4"):
        return written(lambda path: frames[0].save(path, save_all=True, append_images=frames[1:], duration=40), name)
    import av

    def write(path: Path) -> None:
        with av.open(str(path), "w") as made:
            stream = made.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for frame in frames:
                made.mux(stream.encode(av.VideoFrame.from_image(frame)))
            made.mux(stream.encode())

    return written(write, name)


def slide() -> bytes:
    import tifffile

    return written(lambda path: tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(32, 32)), "s.tif")


def pictures_and_masks() -> bytes:
    """Return pictures and masks of ImageNet-Segmentation: cells that refer to arrays."""
    import h5py

    def write(path: Path) -> None:
        with h5py.File(path, "w") as made:
            made["p"], made["m"] = np.zeros((3, 8, 8), np.uint8), np.ones((8, 8), np.uint8)
            made.create_dataset("cell", (1, 1), h5py.ref_dtype)[0, 0] = made["m"].ref
            for name, end in (("img", "p"), ("gt", "cell")):
                made.create_dataset(f"value/{name}", (1, 1), h5py.ref_dtype)[0, 0] = made[end].ref

    return written(write, "gtsegs_ijcv.mat")
