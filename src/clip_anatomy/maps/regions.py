"""Regions of one picture: masks that somebody brings, or proposals from our own maps; and how much of each patch they cover."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from PIL import Image
from torch import Tensor

from clip_anatomy.data.coco import decoded
from clip_anatomy.data.masked import files_in, read_ids
from clip_anatomy.errors import BadInput, reading
from clip_anatomy.files import path_of, read_json
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.pamr import refined
from clip_anatomy.maps.point_prompts import components

__all__ = ["Regions", "coverage", "overlaps", "proposals", "read_masks"]

Regions = Sequence[Any] | np.ndarray | Tensor | str | Path
"""Masks as people have them: [mask, row, col] of the picture's pixels, a folder of PNGs (what is not 0 is inside), or a JSON file in COCO's format
or as SAM's generator writes it."""

TYPE = "Type masks=FOLDER of PNGs of the picture's size, masks=masks.coco.json, or an array [mask, row, col]"
MOST = 2**31  # pixels of all masks of a picture together
LEVELS = (0.35, 0.5, 0.65, 0.8)  # of a map's range: where proposals are cut out of it
SAME = 0.9  # IoU from which two proposals are one
SMALLEST = 0.5  # patches of a proposal


def read_masks(
    masks: Regions, name: str, size: tuple[int, int]
) -> tuple[Bool[np.ndarray, "mask row col"], tuple[str, ...]]:
    """Read masks of one picture, and what each is called; those without a pixel are left out.

    Args:
        masks: see `Regions`.
        name: of the picture: a COCO file of several pictures is searched for it.
        size: (row, col) pixels of the picture.

    Raises:
        BadInput: no mask, masks of another size, or a file that is none.
    """
    if isinstance(masks, str | Path):
        named = _of_folder(path_of(masks)) if path_of(masks).is_dir() else _of_file(path_of(masks), name, size)
    else:
        named = {f"mask {at}": one for at, one in enumerate(masks)}
    _refuse_many(len(named), size)
    read: dict[str, np.ndarray] = {}
    for label, one in named.items():
        mask = np.asarray(one)
        if mask.shape != size or mask.dtype.kind not in "biu":
            raise BadInput(
                f"{label} is {mask.dtype} of {list(mask.shape)}; the picture has {list(size)} pixels. {TYPE}"
            )
        if (inside := mask != 0).any():
            read[label] = inside
    if not read:
        raise BadInput(f"no mask with a pixel was given for {name}. {TYPE}, or leave masks= out for our own proposals")
    return np.stack(list(read.values())), tuple(read)


def _refuse_many(masks: int, size: tuple[int, int]) -> None:
    if masks * prod(size) > MOST:
        raise BadInput(
            f"{masks:,} masks of {size[0]} × {size[1]} pixels are too many at once. {TYPE}, with fewer of them"
        )


def _of_folder(folder: Path) -> dict[str, np.ndarray]:
    files = files_in(folder, (".png",))
    if not files:
        raise BadInput(f"{folder} holds no PNG. {TYPE}")
    return {file.stem: read_ids(file) for file in files}


def _of_file(file: Path, name: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Read COCO's format, or the bare list of annotations that SAM's generator of masks writes."""
    with reading(file, f"It is no list of masks. {TYPE}"):
        content = read_json(file, f"It is no list of masks. {TYPE}", of=object)
        annotations = content["annotations"] if isinstance(content, Mapping) else content
        if isinstance(content, Mapping) and "images" in content:
            images = {one["id"]: Path(str(one["file_name"])).name for one in content["images"]}
            chosen = {number for number, file_name in images.items() if file_name == Path(name).name}
            chosen = set(images) if len(images) == 1 else chosen
            annotations = [one for one in annotations if one["image_id"] in chosen]
            names = {one["id"]: str(one["name"]) for one in content.get("categories", ())}
        else:
            names = {}
        _refuse_many(len(annotations), size)
        return {
            f"{one.get('id', at)} {names.get(one.get('category_id'), '')}".strip(): decoded(one["segmentation"], size)
            for at, one in enumerate(annotations)
        }


def proposals(maps: Maps, picture: Image.Image | None) -> Bool[np.ndarray, "mask row col"]:
    """Cut regions out of maps of one picture: connected parts of each map above each of a few levels of its range, those alike once.

    Args:
        maps: of one picture; refined by PAMR where the original is given.
        picture: the original.

    Returns:
        Masks of the picture's pixels, the largest first; at least one.
    """
    values = maps.on_picture(0)
    side = min(a / b for a, b in zip(values.shape[1:], maps.values.shape[2:], strict=True))
    values = values if picture is None else refined(values.cpu(), np.asarray(picture.convert("RGB")), patch=side)
    areas_found: list[np.ndarray] = []
    for one in values.cpu().numpy():
        low, high = np.nanmin(one), np.nanmax(one)
        for level in LEVELS if high > low else ():
            numbered = components(np.nan_to_num(one, nan=low) >= low + level * (high - low))
            areas = np.bincount(numbered.ravel())
            areas_found += [numbered == at for at in range(1, len(areas)) if areas[at] >= SMALLEST * side**2]
    kept: list[np.ndarray] = []
    for one in sorted(areas_found, key=lambda mask: -int(mask.sum())):
        if all(_iou(one, other) < SAME for other in kept):
            kept.append(one)
    return np.stack(kept) if kept else np.ones((1, *values.shape[1:]), dtype=bool)


def _iou(one: Bool[np.ndarray, "row col"], other: Bool[np.ndarray, "row col"]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def overlaps(where: Geometry, cells: int, axis: int) -> Float64[Tensor, "cell pixel"]:
    """Tell which share of each cell of the model's input each row (axis 0) or column (axis 1) of the original's pixels fills."""
    size, edge = where.picture[axis], where.size[axis] / cells
    edges = torch.tensor([where.to_picture(k * edge, k * edge)[axis] for k in range(cells + 1)], dtype=torch.float64)
    first = torch.arange(size, dtype=torch.float64)
    common = torch.minimum(first + 1, edges[1:, None]) - torch.maximum(first, edges[:-1, None])
    return common.clamp_min(0) / (edges[1:] - edges[:-1])[:, None]


def coverage(
    masks: Bool[np.ndarray, "mask row col"], where: Geometry, grid: tuple[int, int]
) -> Float64[Tensor, "mask token"]:
    """Compute which share of each patch lies in each mask: exact areas, through the model's scaling and crop.

    Example:
        >>> where = Geometry(picture=(2, 4), resized=(2, 4), offset=(0, 0), size=(2, 4))
        >>> coverage(np.array([[[True, False, True, True], [True, False, True, True]]]), where, (1, 2)).tolist()
        [[0.5, 1.0]]
    """
    down, across = overlaps(where, grid[0], 0), overlaps(where, grid[1], 1)
    return torch.stack([(down @ torch.from_numpy(one).double() @ across.T).flatten() for one in masks])
