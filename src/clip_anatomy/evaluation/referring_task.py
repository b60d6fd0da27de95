"""The region that a phrase names, measured as RefCOCO is: overall IoU, mean IoU, and how many are found at an IoU of .5 to .9."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from clip_anatomy.data.masked import LabelledPicture, MaskedPicture
from clip_anatomy.data.picture_batches import NamedPicture
from clip_anatomy.data.referring import ReferredPicture
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.files import path_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.refer import refer
from clip_anatomy.maps.regions import Regions

__all__ = ["LEVELS", "OBJECTS", "OWN", "Overlap", "ReferringTask"]

OWN, OBJECTS = "maps", "objects"
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass
class Overlap:
    """Intersections and unions so far, one a phrase.

    Attributes:
        inside: pixels of both masks.
        either: pixels of one or both.
        chance: IoU of a proposal drawn at random, on average over draws.
        best: IoU of the best proposal that there was.

    Example:
        >>> result, truth = Overlap(), np.array([[True, True, False, False]])
        >>> result.add(np.array([[True, False, False, False]]), truth, [0.5, 0.0])
        >>> result.figures()["oIoU"], result.figures()["P@0.5"], result.figures()["mIoU of a random proposal"]
        (0.5, 1.0, 0.25)
    """

    inside: list[int] = field(default_factory=list[int])
    either: list[int] = field(default_factory=list[int])
    chance: list[float] = field(default_factory=list[float])
    best: list[float] = field(default_factory=list[float])

    def add(
        self, predicted: Bool[np.ndarray, "row col"], truth: Bool[np.ndarray, "row col"], proposals: list[float]
    ) -> None:
        """Count one phrase: what was found, what is right, and the IoU of every proposal."""
        self.inside.append(int((predicted & truth).sum()))
        self.either.append(int((predicted | truth).sum()))
        self.chance.append(float(np.mean(proposals)))
        self.best.append(max(proposals))

    def merge(self, other: "Overlap") -> "Overlap":
        """Both together, the other's phrases behind."""
        both = ((*getattr(self, one.name), *getattr(other, one.name)) for one in fields(self))
        return Overlap(*map(list, both))

    def figures(self) -> dict[str, float]:
        """Return all figures: overall IoU favours large regions, mean IoU counts every phrase alike."""
        inside, either = np.array(self.inside, dtype=np.float64), np.array(self.either, dtype=np.float64)
        iou = inside / np.maximum(either, 1)
        return {
            "oIoU": float(inside.sum() / max(either.sum(), 1)),
            "mIoU": float(iou.mean()) if len(iou) else float("nan"),
            **{f"P@{level}": float((iou >= level).mean()) if len(iou) else float("nan") for level in LEVELS},
            "mIoU of a random proposal": float(np.mean(self.chance)) if self.chance else float("nan"),
            "mIoU of the best proposal": float(np.mean(self.best)) if self.best else float("nan"),
        }


@dataclass
class ReferringTask:
    """Phrases and regions.

    Attributes:
        clip: the model.
        method: of `refer`.
        proposals: "maps", "objects", or a folder with a file or folder of masks for each picture.
    """

    clip: Clip
    method: str
    proposals: str
    measured: Overlap = field(default_factory=Overlap)

    def measure(self, entry: "MaskedPicture | LabelledPicture | ReferredPicture") -> None:
        """Find the region of one phrase. Raises BadInput when it cannot be."""
        assert isinstance(entry, ReferredPicture)
        image, truth = entry.picture(), entry.mask()
        if truth.shape != (image.height, image.width):
            raise BadImage(
                f"its mask has {truth.shape[0]} × {truth.shape[1]} pixels (row × col), the picture {image.height} × {image.width}. "
                "Bring back the original files"
            )
        referred = refer(
            self.clip, NamedPicture(image, entry.file), entry.phrase, self._masks(entry), method=self.method
        )
        each = [float((mask & truth).sum() / max(1, (mask | truth).sum())) for mask in referred.masks]
        self.measured.add(referred.mask, truth, each)

    def blank(self) -> "ReferringTask":
        """Return the same task with nothing measured."""
        return replace(self, measured=Overlap())

    def _masks(self, entry: ReferredPicture) -> Regions | None:
        if self.proposals == OWN:
            return None
        if self.proposals == OBJECTS:
            if entry.objects is None:
                raise BadInput(
                    "this data set has no other objects to choose from. Type proposals=maps, or a folder of masks"
                )
            return entry.objects()
        folder, stem = path_of(self.proposals), Path(entry.file).stem
        return next((one for one in (folder / stem, folder / f"{stem}.json") if one.exists()), folder / f"{stem}.json")

    def figures(self) -> dict[str, float]:
        """Return overall and mean IoU, P@k, and what chance and the best proposal would have."""
        return self.measured.figures()

    def per_class(self) -> dict[str, float]:
        """Return nothing: there are no classes."""
        return {}
