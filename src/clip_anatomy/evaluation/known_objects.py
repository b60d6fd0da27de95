"""Pictures whose objects are known, and what is asked of each: the demo world, or photographs with masks.

In the world each picture shows one object, and the map of "a red circle" is asked for, with every other colour and shape as
contrast. In photographs every class of a mask is asked for, with the other classes of the folder as contrast. Everything is at
patch resolution: a patch belongs to the object when at least half of it does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.data.masked import IGNORED, MaskedDataset, check_sizes, spread
from clip_anatomy.data.world.accuracy import TEST_FRAMES, article, classifier, pixels
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.errors import ClipAnatomyError
from clip_anatomy.evaluation.foreground import aligned_mask
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.imagenet_texts import imagenet_templates
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.progress import Progress, silent

__all__ = ["BATCH", "ObjectBatch", "masked_objects", "patch_mask", "world_objects"]

Target = Literal["object", "shape"]
BATCH = 25


@dataclass(frozen=True)
class ObjectBatch:
    """Some pictures at once, and what is asked of each.

    Attributes:
        pixels: preprocessed.
        texts: all texts, unit rows; contrast for each other.
        targets: (picture of the batch, text, mask at patch resolution: 1, 0, IGNORED).
    """

    pixels: Float[Tensor, "image 3 row col"]
    texts: Float[Tensor, "text embed"]
    targets: tuple[tuple[int, int, Tensor], ...]


def patch_mask(mask: Bool[Tensor, "row col"], grid: tuple[int, int]) -> Bool[Tensor, "_row _col"]:
    """Tell which patches lie at least half on the object.

    Example:
        >>> patch_mask(torch.tensor([[True, True, False, False], [False, True, False, False]]), (1, 2)).tolist()
        [[True, False]]
    """
    return F.adaptive_avg_pool2d(mask[None].float(), grid)[0] >= 0.5


def world_objects(
    clip: Clip, pictures: int = 500, *, seed: int = 0, split: str = "test", target: Target = "object"
) -> Iterator[ObjectBatch]:
    """Unseen pictures of one object, and texts, each the mean of five prompts that were not trained on.

    Args:
        clip: a model whose input is 64 × 64, as the demo's; another size is drawn at that size.
        pictures: how many.
        seed: of the world.
        split: of the world.
        target: "object": 96 texts, a colour and a shape each ("a red circle"); "shape": the twelve shapes alone.

    Yields:
        Batches.
    """
    size = clip.preprocess.size[0]
    world = World(seed=seed, size=size, split=split, length=12 * pictures + 200)
    facts = world.facts(np.arange(len(world)))
    single = np.flatnonzero(facts.count == 1)[:pictures]
    if target == "shape":
        texts = classifier(clip.encode_text, "shape")
    else:
        names = [article(f"{colour} {shape}") for colour in COLOURS for shape in SHAPES]
        texts = embed_texts(clip, names, TEST_FRAMES)
    grid = patch_grid((size, size), clip.patch)
    for first in range(0, len(single), BATCH):
        scenes = world.batch(single[first : first + BATCH])
        masks = torch.from_numpy(scenes.masks[:, 0])
        wanted = scenes.facts.shape[:, 0] + (len(SHAPES) * scenes.facts.colour[:, 0] if target == "object" else 0)
        targets = [
            (at, int(text), patch_mask(mask, grid).long())
            for at, (text, mask) in enumerate(zip(wanted, masks, strict=True))
        ]
        yield ObjectBatch(pixels(scenes.images), texts, tuple(targets))


def masked_objects(
    clip: Clip,
    data: MaskedDataset,
    *,
    prompts: int = 80,
    limit: int | None = None,
    skipped: list[tuple[str, str]] | None = None,
    progress: Progress | None = None,
) -> Iterator[ObjectBatch]:
    """Return every class of every mask, through the model's own scaling and crop. Classes of less than one patch are left out.

    Args:
        clip: an opened model.
        data: pictures with masks.
        prompts: 80 or 1.
        limit: take this many pictures only, evenly spread.
        skipped: where id and reason of what cannot be used is put.
        progress: told how many texts are embedded.

    Yields:
        One picture each.
    """
    tell = progress or silent

    if prompts == 80:
        texts = embed_texts(clip, data.classes, imagenet_templates(), progress=tell)
    else:
        texts = embed_texts(clip, [f"a photo of a {name}." for name in data.classes], progress=tell)
        texts = F.normalize(texts, dim=-1)
    for entry in spread(data.entries, limit):
        try:
            image, mask = entry.picture(), entry.mask()
            check_sizes(image, mask)
        except ClipAnatomyError as error:
            if skipped is not None:
                skipped.append((entry.id, str(error)))
            continue
        where = clip.preprocess.geometry(*image.size)
        visible = aligned_mask(mask, where)
        grid = patch_grid(where.size, clip.patch)
        unknown = patch_mask(visible == IGNORED, grid)
        targets: list[tuple[int, int, Tensor]] = []
        for number in torch.unique(visible[visible != IGNORED]).tolist():
            there = patch_mask(visible == number, grid) & ~unknown
            if number != data.background and bool(there.any()):
                targets.append((0, int(number), there.long().masked_fill(unknown, IGNORED)))
        yield ObjectBatch(clip.preprocess(image)[None], texts, tuple(targets))
