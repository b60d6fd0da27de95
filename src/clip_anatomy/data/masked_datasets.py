"""The registry of data sets with masks or labels: name → reader, what it is, where to get it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clip_anatomy.data import (
    ade20k,
    cityscapes,
    coco,
    cod10k,
    imagenet_segmentation,
    mask_folder,
    nus_wide,
    pascal_context,
    pascal_voc,
    potsdam,
)
from clip_anatomy.data.masked import MaskedDataset, TaggedDataset
from clip_anatomy.data.referring import PHRASECUT_WHERE, REFCOCO_WHERE, ReferringDataset, open_phrasecut, open_refcoco
from clip_anatomy.errors import BadSpec
from clip_anatomy.files import path_of

__all__ = ["READERS", "Reader", "open_masked"]


@dataclass(frozen=True)
class Reader:
    """How a data set is read.

    Attributes:
        open: path → the pictures.
        where: how to get it and what to type.
    """

    open: Callable[[Path], MaskedDataset | TaggedDataset | ReferringDataset] = field(repr=False)
    where: str


READERS: dict[str, Reader] = {
    "imagenet-segmentation": Reader(imagenet_segmentation.open_imagenet_seg, imagenet_segmentation.WHERE),
    "voc21": Reader(pascal_voc.open_voc, pascal_voc.WHERE),
    "voc20": Reader(partial(pascal_voc.open_voc, background=False), pascal_voc.WHERE),
    "context60": Reader(pascal_context.open_context, pascal_context.WHERE),
    "context59": Reader(partial(pascal_context.open_context, background=False), pascal_context.WHERE),
    "context459": Reader(partial(pascal_context.open_context, background=False, every=True), pascal_context.WHERE),
    "ade20k": Reader(ade20k.open_ade, ade20k.WHERE),
    "coco-object": Reader(coco.open_coco_object, coco.WHERE),
    "coco-stuff": Reader(coco.open_coco_stuff, coco.WHERE),
    "cityscapes": Reader(cityscapes.open_cityscapes, cityscapes.WHERE),
    "potsdam": Reader(potsdam.open_potsdam, potsdam.WHERE),
    "coco-labels": Reader(coco.open_coco_labels, coco.WHERE),
    "nus-wide": Reader(nus_wide.open_nuswide, nus_wide.WHERE),
    "cod10k": Reader(cod10k.open_cod10k, cod10k.WHERE),
    **{
        name: Reader(partial(open_refcoco, split=split, by=by), REFCOCO_WHERE)
        for name, split, by in (
            ("refcoco-val", "val", "unc"),
            ("refcoco-testA", "testA", "unc"),
            ("refcoco-testB", "testB", "unc"),
            ("refcocog-val", "val", "umd"),
            ("refcocog-test", "test", "umd"),
            ("refcocog-google", "val", "google"),
        )
    },
    "phrasecut": Reader(open_phrasecut, PHRASECUT_WHERE),
    "sample": Reader(mask_folder.open_sample, mask_folder.WHERE),
}


def open_masked(name: str, path: str | Path) -> MaskedDataset | TaggedDataset | ReferringDataset:
    """Open a data set by name.

    Args:
        name: a name of READERS.
        path: where it lies.

    Raises:
        BadSpec: unknown name.
        BadInput: it is not what its name says; the message tells where to get it.
        MissingExtra: a library for its format is not installed.

    Example:
        >>> open_masked("mnist", ".")
        Traceback (most recent call last):
        clip_anatomy.errors.BadSpec: the data set ...
    """
    if name not in READERS:
        raise BadSpec(f"the data set {name!r} is not known. Type one of: {', '.join(READERS)}")
    return READERS[name].open(path_of(path))
