"""What the figures share: the model and pictures that they are of, and panels of pictures, curves and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.data.world.accuracy import classifier, pixels
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES, TEXTURES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.report.contact_sheet import Cell, SheetRow, contact_sheets
from clip_anatomy.report.figures import canvas


@dataclass(frozen=True)
class Setting:
    """What figures are drawn of.

    Attributes:
        clip: the model.
        store: what its heads wrote for a collection with labels.
        pictures: some pictures.
        texts: what is in them, a text for each.
        second: another model of the same architecture.
        collection: where the store's pictures came from.
    """

    clip: ca.Clip
    store: ca.Store
    pictures: Sequence[str]
    texts: Sequence[str]
    second: ca.Clip
    collection: str

    @cached_property
    def atlas(self) -> ca.Atlas:
        """What each head is about."""
        return ca.atlas(self.store, self.clip, resamples=0, images=5, picks=6)

    def pool(self, share: float) -> Float[Tensor, "text embed"]:
        """Embed an even share of the texts of the model's pool, to unit length."""
        texts = pool_of(None, self.clip)[0].texts[:: round(1 / share)]
        return self.clip.encode_text(texts, templates=["{}"])

    def picture(self, row: int) -> Image.Image:
        """Read one picture of the store."""
        known = self.store.rows()[row]
        return picture_of(known.source, known.path, known.id)


def sheet(title: str, rows: Mapping[str, Sequence[tuple[Image.Image, str]]], under: str = "") -> Image.Image:
    """Lay out pictures with captions, in rows with headings."""
    known = [SheetRow(heading, [Cell(image, caption) for image, caption in cells]) for heading, cells in rows.items()]
    return Image.open(BytesIO(contact_sheets(title, under, known)[0]))


def curves(title: str, x: Sequence[Any], lines: Mapping[str, Sequence[float]], names: tuple[str, str]) -> Any:
    """Draw lines over one axis."""
    with canvas(6.4, 3.4) as drawing:
        axes = drawing.axes(0.8, 0.5, 5.3, 2.2)
        for name, line in lines.items():
            axes.plot(range(len(x)), line, marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(x)), [str(one) for one in x])
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False)
        drawing.text(0.2, 0.3, title, 11)
        return drawing.figure


def world_of_two(
    clip: ca.Clip, count: int
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "text embed"], Bool[Tensor, "image text"]]:
    """Embed unseen pictures of two kinds of objects, texts of all shapes, colours and textures; which of them each picture shows."""
    world = World(split="test", length=12 * count)
    facts = world.facts(np.arange(len(world)))
    chosen = np.flatnonzero(facts.shape[:, 1] >= 0)[:count]
    embeddings = torch.cat([clip.encode_image(pixels(world.batch(some).images)) for some in np.split(chosen, 6)])
    texts, labels = [], []
    for name, values in (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES)):
        texts.append(classifier(clip.encode_text, name))
        codes = torch.from_numpy(getattr(facts, name)[chosen])
        labels.append((codes[:, :, None] == torch.arange(len(values))).any(1))
    return embeddings, torch.cat(texts), torch.cat(labels, 1)
