"""`Masks`: which text each pixel of a picture belongs to, and how that was found."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int16

from clip_anatomy.errors import BadSpec
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.point_prompts import Prompts, prompts
from clip_anatomy.maps.thresholds import UNSEEN

__all__ = ["How", "Masks"]


@dataclass(frozen=True)
class How:
    """How masks were made: everything needed to make them again.

    Attributes:
        method: of `heatmap`, in words.
        options: that were given to it.
        threshold: a rule of RULES, or a share of the map's range.
        background: texts that compete for the pixels and are no label.
        size: what the model looked at.
        at: resolution of the labels.
        refine: how the maps were refined, a name of `refine.REFINERS`; None for not at all.
    """

    method: str
    options: dict[str, Any]
    threshold: str | float
    background: tuple[str, ...]
    size: str
    at: str
    refine: str | None

    def __str__(self) -> str:
        """Return one line for people."""
        given = "".join(f", {name}={value}" for name, value in self.options.items())
        rule = self.threshold if isinstance(self.threshold, str) else f"{self.threshold:g} of the map's range"
        behind = f", background texts {', '.join(map(repr, self.background))}" if self.background else ""
        refine = f", refined by {self.refine}" if self.refine else ", not refined"
        return f"maps: {self.method}{given}; looked at: {self.size}; threshold: {rule}{behind}; at {self.at} resolution{refine}"


@dataclass(frozen=True)
class Masks:
    """Which text each pixel belongs to.

    Attributes:
        labels: per image [row, col]: k for texts[k − 1], 0 for none of them, −1 where the crop did not look.
        texts: the labels' words, in the order of their numbers.
        maps: the maps they were cut from, one per text and then one per background text.
        cuts: per image the number above which a pixel is somebody's (−infinity where there was no cut).
        how: everything needed to make them again.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> from clip_anatomy.maps.segment import segment
        >>> masks = segment(ca.load("demo"), examples()[:1], ["a bird"])
        >>> masks.labels[0].shape, masks.mask(0, "a bird").dtype
        ((64, 64), dtype('bool'))
    """

    labels: tuple[Int16[np.ndarray, "..."], ...] = field(repr=False)
    texts: tuple[str, ...]
    maps: Maps = field(repr=False)
    cuts: tuple[float, ...]
    how: How

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def mask(self, image: int, text: int | str = 0) -> Bool[np.ndarray, "row col"]:
        """Where one text is in one image.

        Raises:
            BadSpec: there is no such text.
        """
        return self.labels[image] == self._number(text) + 1

    def shares(self, image: int) -> dict[str, float]:
        """Share of the pixels seen that each text holds."""
        labels = self.labels[image]
        seen = max(1, int((labels != UNSEEN).sum()))
        return {text: int((labels == k + 1).sum()) / seen for k, text in enumerate(self.texts)}

    def prompts(self, image: int, *texts: int | str) -> Prompts:
        """Points and boxes for SAM: of one text, or of several together ("a + b"); by default of the first.

        A text that holds no pixel of the image adds nothing.

        Raises:
            BadSpec: there is no such text, or the images were preprocessed tensors, so that nobody knows the originals.
        """
        numbers = [self._number(text) for text in texts or (0,)]
        one = self.maps[image]
        if one.geometries is None:
            raise BadSpec("these images were preprocessed tensors: points lie nowhere. Type: segment(clip, paths, ...)")
        labels, where, named = self.labels[image], one.geometries[0], [self.texts[k] for k in numbers]
        there = [k for k in numbers if (labels == k + 1).any()]
        if not there:  # a map without a mask has a highest place too, and it means nothing
            return Prompts(" + ".join(named), (), (), (), where.picture)
        mask = np.isin(labels, [k + 1 for k in there]) if labels.shape == where.picture else None
        found = prompts(one.values[0, there], [self.texts[k] for k in there], where, mask)
        return replace(found, text=" + ".join(named))

    def _number(self, text: int | str) -> int:
        if isinstance(text, str) and text in self.texts:
            return self.texts.index(text)
        if isinstance(text, int) and 0 <= text < len(self.texts):
            return text
        raise BadSpec(f"there is no mask of {text!r}. Type one of: {', '.join(map(repr, self.texts))}")

    def __str__(self) -> str:
        """Return what was found and how, in a few lines."""
        lines = [f"{len(self)} label maps of {len(self.texts)} texts", str(self.how)]
        for i in range(len(self)):
            held = ", ".join(f"{text!r} {share:.1%}" for text, share in self.shares(i).items())
            lines.append(f"image {i}: {held}")
        return "\n".join(lines)
