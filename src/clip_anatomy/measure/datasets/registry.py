"""The registry of data sets with masks or labels: name → reader, what it is, where to get it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clip_anatomy.errors import BadSpec
from clip_anatomy.measure.datasets import (
    ade,
    cityscapes,
    coco,
    cod10k,
    context,
    imagenet_seg,
    nuswide,
    potsdam,
    sample,
    voc,
)
from clip_anatomy.measure.datasets.masked import Labelled, Masked

__all__ = ["READERS", "Reader", "open_masked"]


@dataclass(frozen=True)
class Reader:
    """How a data set is read.

    Attributes:
        open: path → the pictures.
        where: how to get it and what to type.
    """

    open: Callable[[Path], Masked | Labelled] = field(repr=False)
    where: str


READERS: dict[str, Reader] = {
    "imagenet-segmentation": Reader(imagenet_seg.open_imagenet_seg, imagenet_seg.WHERE),
    "voc21": Reader(voc.open_voc, voc.WHERE),
    "voc20": Reader(partial(voc.open_voc, background=False), voc.WHERE),
    "context60": Reader(context.open_context, context.WHERE),
    "context59": Reader(partial(context.open_context, background=False), context.WHERE),
    "ade20k": Reader(ade.open_ade, ade.WHERE),
    "coco-object": Reader(coco.open_coco_object, coco.WHERE),
    "coco-stuff": Reader(coco.open_coco_stuff, coco.WHERE),
    "cityscapes": Reader(cityscapes.open_cityscapes, cityscapes.WHERE),
    "potsdam": Reader(potsdam.open_potsdam, potsdam.WHERE),
    "coco-labels": Reader(coco.open_coco_labels, coco.WHERE),
    "nus-wide": Reader(nuswide.open_nuswide, nuswide.WHERE),
    "cod10k": Reader(cod10k.open_cod10k, cod10k.WHERE),
    "sample": Reader(sample.open_sample, sample.WHERE),
}


def open_masked(name: str, path: str | Path) -> Masked | Labelled:
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
    return READERS[name].open(Path(path).expanduser())
