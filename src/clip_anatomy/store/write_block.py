"""Write one block of a store as zarr v3 arrays: the one place where zarr is named (reading needs none, see `blocks`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_anatomy.errors import MissingExtra
from clip_anatomy.store.manifest import Manifest

__all__ = ["need_zarr", "write_block"]


def need_zarr() -> Any:
    """Import zarr, or say how to install it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra("zarr", "library") from error
    return zarr


def write_block(
    folder: Path, manifest: Manifest, count: int, read: Callable[[str, int], Float[np.ndarray, "..."]]
) -> None:
    """Write one block as a zarr v3 group, a layer at a time.

    Args:
        folder: where; must not exist.
        about: of the store.
        count: images in the block.
        read: name of an array and place of a layer → its values: "heads" [head, image, d], "mlps" [image, embed],
            "embedding" [image, embed], "norm" [image].

    Raises:
        MissingExtra: zarr is not installed.
        OSError: the disk is full or gone.
    """
    zarr = need_zarr()
    group = zarr.create_group(folder, zarr_format=3, attributes={"format": manifest.format, "images": count})
    # Empty chunks are written too: with zarr's default a missing file would not prove that something is missing.
    common: dict[str, Any] = {
        "compressors": None,
        "filters": None,
        "fill_value": 0,
        "config": {"write_empty_chunks": True},
    }
    layers, heads, d, embed = len(manifest.layers), manifest.heads, manifest.d, manifest.embed
    unit = {"unit": "contribution / ‖embedding‖"}
    array = group.create_array(
        "heads", shape=(layers, heads, count, d), chunks=(1, 1, count, d), shards=(1, heads, count, d), dtype="float16",
        dimension_names=("layer", "head", "image", "d"), attributes={**unit, "layers": list(manifest.layers)}, **common,
    )  # fmt: skip
    for at in range(layers):
        array[at] = read("heads", at)
    if "mlps" in manifest.keep:
        array = group.create_array(
            "mlps", shape=(layers, count, embed), chunks=(1, count, embed), dtype="float16",
            dimension_names=("layer", "image", "embed"), attributes={**unit, "layers": list(manifest.layers)}, **common,
        )  # fmt: skip
        for at in range(layers):
            array[at] = read("mlps", at)
    array = group.create_array(
        "embedding", shape=(count, embed), chunks=(count, embed), dtype="float16",
        dimension_names=("image", "embed"), attributes={"unit": "of unit length"}, **common,
    )  # fmt: skip
    array[:] = read("embedding", 0)
    array = group.create_array(
        "norm", shape=(count,), chunks=(count,), dtype="float32", dimension_names=("image",), **common
    )
    array[:] = read("norm", 0)
