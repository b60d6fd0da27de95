"""Batches for training, drawn on the fly in a worker process: pictures, tokens, and which caption is true of which picture."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from clip_anatomy.data.world import ATTRIBUTES, World, truth
from clip_anatomy.data.world.accuracy import target
from clip_anatomy.loading.word_tokenizer import WordTokenizer

CLASSES = {name: len(values) for name, values in ATTRIBUTES.items()} | {"digit": 5}
OUTLINE = (
    4  # the likeness of tied shapes in quarters, a head of its own: without it the outline hides behind the background
)


@dataclass(frozen=True)
class Batch:
    """One step's data: images uint8 [image, row, col, 3], tokens [text, token], true [image, text], labels per attribute."""

    images: Tensor
    tokens: Tensor
    true: Tensor
    labels: dict[str, Tensor]


class Batches(IterableDataset[Batch]):
    """The training stream: step k is always made of the same pictures and captions, so a resumed run goes on exactly.

    Args:
        seed: the world's seed.
        images: pictures a step.
        captions: captions a picture.
        start: first step.
        stop: the step after the last.
    """

    def __init__(self, seed: int, images: int, captions: int, start: int, stop: int) -> None:
        self.world = World(seed=seed, split="train")
        self.images, self.captions, self.start, self.stop = images, captions, start, stop
        self.tokenizer = WordTokenizer.bundled()

    def __iter__(self) -> Iterator[Batch]:
        """Go through the steps."""
        for step in range(self.start, self.stop):
            yield self.step(step)

    def step(self, step: int) -> Batch:
        """Draw one step's data."""
        scenes = self.world.batch(np.arange(step * self.images, (step + 1) * self.images))
        said = [pair for row in scenes.claims(self.captions) for pair in row]
        rng = random.Random(step)
        texts = [_stray_word(text, rng) if rng.random() < 0.05 else text for text, _ in said]
        labels = {name: torch.from_numpy(target(scenes.facts, name)) for name in ATTRIBUTES}
        labels["digit"] = torch.from_numpy(scenes.facts.digit)
        quarter = np.minimum((scenes.facts.likeness * OUTLINE).astype(np.int64), OUTLINE - 1)
        labels["outline"] = torch.from_numpy(np.where(scenes.facts.group >= 0, quarter, -1))
        tokens = self.tokenizer(texts)
        used = int((tokens != 0).sum(dim=1).max())
        return Batch(
            images=torch.from_numpy(scenes.images),
            tokens=tokens[:, : min(-(-used // 8) * 8, tokens.shape[1])],
            true=torch.from_numpy(truth(scenes.facts, [claim for _, claim in said])),
            labels=labels,
        )


def _stray_word(text: str, rng: random.Random) -> str:
    """Put a word of random letters into a caption, so that the model learns to pass over words that it does not know."""
    words = text.split()
    stray = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(3, 7)))
    words.insert(rng.randrange(len(words) + 1), stray)
    return " ".join(words)


def stream(batches: Batches, workers: int) -> DataLoader[Batch]:
    """Return a loader that draws ahead in `workers` processes (0: in this one; more than 1 would repeat steps)."""
    return DataLoader(batches, batch_size=None, num_workers=min(workers, 1), prefetch_factor=4 if workers else None)
