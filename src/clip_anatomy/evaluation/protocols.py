"""Named protocols: a data set, a task and every number that decides the result. `run_protocol` runs them.

Beside them `PAPERS`: what papers of the self–self family set on the protocol that they share (`--like sclip`). Facts read in the
configurations of their released code, and the mIoU that they report for ViT-B/16 with OpenAI's weights. The texts of their lists
of class names are not here (several have no licence): their authors' files are read with `names`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clip_anatomy.errors import BadSpec

__all__ = [
    "PAPERS",
    "PROTOCOLS",
    "ForegroundSettings",
    "LabelsSettings",
    "PaperSettings",
    "Protocol",
    "ReferringSettings",
    "SaliencySettings",
    "SemanticSettings",
    "Settings",
    "paper_settings",
    "protocol_list",
    "protocol_summary",
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
        side, window, stride: pixels of the short side, of a window (0: the whole picture at once), between windows.
        prompts: CLIP's 80 templates, or 1 ("a photo of a {}.").
        logit_scale: before the softmax.
        threshold: least probability of a class; below it a pixel is background. None for none.
        area: least share of what is not background; a class with less is not there (SCLIP's release). None for none.
        background: texts that stand for the background.
        options: of the method.
        draws: how many draws of synonyms are measured beside the class names.
        vocabularies: how many of the first classes are measured alone, too.
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
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    draws: int = 5
    vocabularies: tuple[int, ...] = ()


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


@dataclass(frozen=True)
class ReferringSettings:
    """Settings of finding the region that a phrase names.

    Attributes:
        method: of `refer`.
        proposals: "maps" (our own), "objects" (all that the data set annotates in the picture), or a folder with NAME.json or NAME/*.png for each picture.
    """

    method: str = "split"
    proposals: str = "maps"


Settings = ForegroundSettings | SemanticSettings | LabelsSettings | SaliencySettings | ReferringSettings


@dataclass(frozen=True)
class Protocol:
    """One protocol by name.

    Attributes:
        dataset: a name of `READERS`.
        settings: every number that decides the result.
        description: one line for people.
    """

    dataset: str
    settings: Settings
    description: str


_REFERRING = "oIoU, mIoU and P@k of the region that a phrase names: {}"
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
    "context459": Protocol(
        "context459",
        SemanticSettings(vocabularies=(59, 100, 200, 300)),
        "mIoU on PASCAL Context, all 459 classes, and how it falls as the vocabulary grows from 59",
    ),
    "ade20k": Protocol("ade20k", SemanticSettings(), "mIoU on ADE20K, 150 classes"),
    "coco-object": Protocol("coco-object", _BACKED, "mIoU on COCO's 80 things and background"),
    "coco-stuff": Protocol("coco-stuff", SemanticSettings(), "mIoU on COCO's 171 things and stuff"),
    "cityscapes": Protocol("cityscapes", SemanticSettings(side=560), "mIoU on Cityscapes, 19 classes"),
    "potsdam": Protocol("potsdam", SemanticSettings(), "mIoU on ISPRS Potsdam, 6 classes, squares of 512"),
    "coco-labels": Protocol("coco-labels", LabelsSettings(), "multi-label mAP on COCO's 80 things"),
    "nus-wide": Protocol("nus-wide", LabelsSettings(), "multi-label mAP on NUS-WIDE's 81 concepts"),
    "cod10k": Protocol("cod10k", SaliencySettings(), "S-, E-, F-measure and MAE on COD10K"),
    "refcoco-val": Protocol("refcoco-val", ReferringSettings(), _REFERRING.format("RefCOCO or RefCOCO+, val")),
    "refcoco-testA": Protocol("refcoco-testA", ReferringSettings(), _REFERRING.format("RefCOCO or RefCOCO+, people")),
    "refcoco-testB": Protocol(
        "refcoco-testB", ReferringSettings(), _REFERRING.format("RefCOCO or RefCOCO+, other things")
    ),
    "refcocog-val": Protocol("refcocog-val", ReferringSettings(), _REFERRING.format("RefCOCOg (umd), val")),
    "refcocog-test": Protocol("refcocog-test", ReferringSettings(), _REFERRING.format("RefCOCOg (umd), test")),
    "refcocog-google": Protocol("refcocog-google", ReferringSettings(), _REFERRING.format("RefCOCOg (google), val")),
    "phrasecut": Protocol("phrasecut", ReferringSettings(), _REFERRING.format("PhraseCut, test")),
    "coco-sample": Protocol(
        "sample", SemanticSettings(), "mIoU on a folder of your own: images/, masks/, mask_classes.json"
    ),
}


@dataclass(frozen=True)
class PaperSettings:
    """One paper's settings.

    Attributes:
        description: paper and release.
        common: settings of all its data sets, where they differ from the presets.
        by_protocol: further ones by protocol; only protocols named here were released.
        reported: mIoU in percent by protocol, of ViT-B/16 with OpenAI's weights, without refinement.
        left: what still differs, beside the class names.
    """

    description: str
    common: Mapping[str, Any]
    by_protocol: Mapping[str, Mapping[str, Any]]
    reported: Mapping[str, float] = field(repr=False)
    left: str = "half precision"


SCLIP_SIZES: dict[str, dict[str, Any]] = {
    "voc20": {},
    "context59": {},
    "coco-stuff": {"side": 448},
    "cityscapes": {"side": 560},
    "ade20k": {},
}
"""Data sets without a background in SCLIP's release, which NACLIP's is built on."""

LARGER_CITYSCAPES: dict[str, dict[str, Any]] = {
    **SCLIP_SIZES,
    "coco-stuff": {},
}
"""The same in releases that look at COCO-Stuff as at the others."""


def _resclip(middle: float, feedback_scale: float, feedback: float, least: float) -> dict[str, float]:
    return {"middle": middle, "feedback_scale": feedback_scale, "feedback": feedback, "least": least}


PAPERS: dict[str, PaperSettings] = {
    "sclip": PaperSettings(
        "SCLIP (Wang et al. 2024), released configurations",
        {"method": "sclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1, "area": 0.1, "logit_scale": 65.0},
            "context60": {"threshold": 0.1, "logit_scale": 50.0},
            "coco-object": {"threshold": 0.1, "logit_scale": 50.0},
            **SCLIP_SIZES,
        },
        {
            "voc21": 59.63, "context60": 31.74, "coco-object": 33.52, "voc20": 81.54, "context59": 34.46,
            "coco-stuff": 22.77, "cityscapes": 32.34, "ade20k": 16.45,
        },
    ),
    "clearclip": PaperSettings(
        "ClearCLIP (Lan et al. 2024), released configurations",
        {"method": "clearclip", "logit_scale": 50.0, "side": 448, "window": 448, "stride": 224},
        {
            "voc21": {"threshold": 0.5},
            "context60": {"threshold": 0.15},
            "coco-object": {"threshold": 0.4},
            "voc20": {},
            "context59": {},
            "cityscapes": {"window": 224},
        },
        {
            "voc21": 51.8, "context60": 32.6, "coco-object": 33.0, "voc20": 80.9, "context59": 35.9, "cityscapes": 30.0,
        },
    ),
    "naclip": PaperSettings(
        "NACLIP (Hajimiri et al. 2025), released configurations",
        {"method": "naclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1},
            "context60": {"threshold": 0.1},
            "coco-object": {"threshold": 0.1},
            **SCLIP_SIZES,
        },
        {
            "voc21": 58.9, "context60": 32.2, "coco-object": 33.2, "voc20": 79.7, "context59": 35.2, "coco-stuff": 23.3,
            "cityscapes": 35.5, "ade20k": 17.4,
        },
        "half precision; the release also refines by PAMR, ten steps, unless it is switched off",
    ),
    "scclip": PaperSettings(
        "SC-CLIP (Bai et al. 2024), released configurations",
        {"method": "scclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.15, "area": 0.1, "logit_scale": 50.0},
            "context60": {"threshold": 0.15},
            "coco-object": {"threshold": 0.35, "logit_scale": 55.0},
            **LARGER_CITYSCAPES,
        },
        {
            "voc21": 64.6, "context60": 36.8, "coco-object": 37.7, "voc20": 84.3, "context59": 40.1, "coco-stuff": 26.6,
            "cityscapes": 41.0, "ade20k": 20.1,
        },
        "half precision; a repaired token whose neighbours are all outliers stays as it is in the release",
    ),
    "rfclip": PaperSettings(
        "RF-CLIP (AAAI 2026), as far as its paper says; no code is out",
        {"method": "rfclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1},
            "context60": {"threshold": 0.1},
            "coco-object": {"threshold": 0.1},
            **LARGER_CITYSCAPES,
        },
        {
            "voc21": 64.8, "context60": 36.4, "coco-object": 37.9, "voc20": 87.0, "context59": 39.8, "coco-stuff": 26.3,
            "cityscapes": 41.3, "ade20k": 20.4,
        },
        "scale, windows and thresholds are those of the papers around it: its own are not known; channels are found on the bundled pictures",
    ),
    "resclip": PaperSettings(
        "ResCLIP (Yang et al. 2025), released configurations",
        {"method": "resclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1, "window": 0, "options": _resclip(0.3, 2.2, 0.7, 0.5)},
            "context60": {"threshold": 0.1, "options": _resclip(0.3, 1.8, 0.7, 0.3)},
            "coco-object": {"threshold": 0.1, "options": _resclip(0.4, 1.8, 0.7, 0.11)},
            "voc20": {"window": 0, "options": _resclip(0.6, 2.1, 0.6, 0.1)},
            "context59": {"options": _resclip(0.4, 1.8, 0.7, 0.25)},
            "coco-stuff": {"options": _resclip(0.4, 1.8, 0.7, 0.11)},
            "cityscapes": {"side": 560, "options": _resclip(0.2, 2.1, 0.6, 0.1)},
            "ade20k": {"options": _resclip(0.3, 2.1, 0.7, 0.25)},
        },
        {
            "voc21": 61.1, "context60": 33.5, "coco-object": 35.0, "voc20": 86.0, "context59": 36.8, "coco-stuff": 24.7,
            "cityscapes": 35.9, "ade20k": 18.0,
        },
        "half precision; the release refines its first answer by PAMR, ten steps, before it is fed back; a re-run of it had 82.3 on voc20",
    ),
    "pearl": PaperSettings(
        "PEARL (CVPR 2026), as far as its release was read",
        {"method": "pearl", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1, "window": 0},
            "context60": {"threshold": 0.1},
            "coco-object": {"threshold": 0.1},
            **LARGER_CITYSCAPES,
        },
        {
            "voc21": 64.1, "context60": 35.1, "coco-object": 37.3, "voc20": 86.9, "context59": 38.6, "coco-stuff": 26.6,
            "cityscapes": 37.6, "ade20k": 19.4,
        },
        "scores are spread over the patches here and over 80 × 80 cells there; its logit scale is taken from the papers around it",
    ),
}  # fmt: skip
"""Name → settings. Rows of `reported`: SCLIP and NACLIP from their own pages, ClearCLIP from its table."""


def paper_settings(name: str, protocol: str) -> dict[str, Any]:
    """Return a paper's settings of a protocol, in full.

    Args:
        name: of PAPERS.
        protocol: of PROTOCOLS.

    Raises:
        BadSpec: an unknown paper, or one that released nothing for this protocol.

    Example:
        >>> paper_settings("clearclip", "voc21")["threshold"]
        0.5
    """
    if name not in PAPERS:
        raise BadSpec(f"there are no settings like {name!r}. Type one of: {', '.join(PAPERS)}")
    paper = PAPERS[name]
    if protocol not in paper.by_protocol:
        raise BadSpec(f"{paper.description} has none for {protocol}. Type one of: {', '.join(paper.by_protocol)}")
    assert isinstance(PROTOCOLS[protocol].settings, SemanticSettings)
    # A threshold belongs to a paper: where it names none there is none, whatever the preset has.
    return {"threshold": None, "area": None, **paper.common, **paper.by_protocol[protocol]}


def protocol_list() -> dict[str, Any]:
    """Return every protocol with its settings and where its data come from, and the papers' settings, ready for JSON."""
    from clip_anatomy.data.masked_datasets import READERS

    rows = {
        name: {"description": p.description, "get it": READERS[p.dataset].where, "settings": asdict(p.settings)}
        for name, p in PROTOCOLS.items()
    }
    papers = {name: asdict(paper) for name, paper in PAPERS.items()}
    return {"schema": "clip-anatomy/protocols/1", **rows, "like": papers}


def protocol_summary() -> str:
    """Return the same for people."""
    from clip_anatomy.data.masked_datasets import READERS
    from clip_anatomy.evaluation.text_tables import described

    maps = "all map methods in one table: the demo world (nothing to get), or a folder as for coco-sample"
    lines = [described("maps", maps, 22)]
    lines.append(described("speed", "what every step costs beside plain encode_image (nothing to get)", 22))
    lines += [described(name, protocol.description, 22) for name, protocol in PROTOCOLS.items()]
    lines += ["", "Settings of a paper (like)"]
    for name, paper in PAPERS.items():
        lines.append(described(name, f"{paper.description}: {', '.join(paper.by_protocol)}", 22))
    lines += ["", "Where the data come from"]
    places: dict[str, list[str]] = {}
    for name, protocol in PROTOCOLS.items():
        places.setdefault(READERS[protocol.dataset].where, []).append(name)
    for where, names in places.items():
        lines += ["", ", ".join(names), described("", f"{where}.", 4)]
    return "\n".join(lines)
