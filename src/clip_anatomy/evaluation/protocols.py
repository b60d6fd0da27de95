"""Named protocols: a data set, a task and every number that decides the result. `measure.run` runs them."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "PROTOCOLS",
    "ForegroundSettings",
    "LabelsSettings",
    "Protocol",
    "SaliencySettings",
    "SemanticSettings",
    "Settings",
]

OUTDOORS = ("sky", "building", "wall", "tree", "grass", "road", "floor", "ground", "water", "mountain", "rock", "snow")


@dataclass(frozen=True)
class ForegroundSettings:
    """Settings of ImageNet-Segmentation: `mask` as the released code has it, or through the picture's own crop."""

    mask: Literal["misaligned", "aligned"] = "aligned"
    method: str = "decomposition"
    prompts: int = 80


@dataclass(frozen=True)
class SemanticSettings:
    """Settings of mIoU by sliding windows.

    Attributes:
        side, window, stride: pixels of the short side, of a window, between windows.
        prompts: CLIP's 80 templates, or 1 ("a photo of a {}.").
        logit_scale: before the softmax.
        threshold: least probability of a class; below it a pixel is background. None for none.
        area: least share of what is not background; a class with less is not there (SCLIP's release). None for none.
        background: texts that stand for the background.
    """

    method: str = "naclip"
    side: int = 336
    window: int = 224
    stride: int = 112
    prompts: int = 80
    logit_scale: float = 40.0
    threshold: float | None = None
    area: float | None = None
    background: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelsSettings:
    """Settings of multi-label mAP: `method` is "embedding", "surgery" (on the class token), or a map's highest patch."""

    method: str = "embedding"
    prompts: int = 80


@dataclass(frozen=True)
class SaliencySettings:
    """Settings of finding one object by a text; `size` squashes pictures to a square (None: the model's own size)."""

    method: str = "surgery"
    text: str = "a camouflaged animal"
    prompts: int = 1
    size: int | None = None


Settings = ForegroundSettings | SemanticSettings | LabelsSettings | SaliencySettings


@dataclass(frozen=True)
class Protocol:
    """One protocol by name.

    Attributes:
        dataset: a name of `READERS`.
        settings: every number that decides the result.
        told: one line for people.
    """

    dataset: str
    settings: Settings
    told: str


_BACKED = SemanticSettings(threshold=0.1, background=("background", *OUTDOORS))
PROTOCOLS: dict[str, Protocol] = {
    "imagenet-seg-paper": Protocol(
        "imagenet-segmentation",
        ForegroundSettings(mask="misaligned"),
        "Foreground of the predicted class; the mask is squashed while the picture is cropped, as in the released code",
    ),
    "imagenet-seg-aligned": Protocol(
        "imagenet-segmentation", ForegroundSettings(), "The same with the mask cropped as the picture is"
    ),
    "voc21": Protocol("voc21", _BACKED, "mIoU on PASCAL VOC 2012, background counted"),
    "voc20": Protocol("voc20", SemanticSettings(), "mIoU on PASCAL VOC 2012, objects only"),
    "context60": Protocol(
        "context60",
        SemanticSettings(threshold=0.1, background=("background",)),
        "mIoU on PASCAL Context, background counted",
    ),
    "context59": Protocol("context59", SemanticSettings(), "mIoU on PASCAL Context, 59 classes"),
    "ade20k": Protocol("ade20k", SemanticSettings(), "mIoU on ADE20K, 150 classes"),
    "coco-object": Protocol("coco-object", _BACKED, "mIoU on COCO's 80 things and background"),
    "coco-stuff": Protocol("coco-stuff", SemanticSettings(), "mIoU on COCO's 171 things and stuff"),
    "cityscapes": Protocol("cityscapes", SemanticSettings(side=560), "mIoU on Cityscapes, 19 classes"),
    "potsdam": Protocol("potsdam", SemanticSettings(), "mIoU on ISPRS Potsdam, 6 classes, squares of 512"),
    "coco-labels": Protocol("coco-labels", LabelsSettings(), "multi-label mAP on COCO's 80 things"),
    "nus-wide": Protocol("nus-wide", LabelsSettings(), "multi-label mAP on NUS-WIDE's 81 concepts"),
    "cod10k": Protocol("cod10k", SaliencySettings(), "S-, E-, F-measure and MAE on COD10K"),
    "coco-sample": Protocol(
        "sample", SemanticSettings(), "mIoU on a folder of your own: images/, masks/, mask_classes.json"
    ),
}
