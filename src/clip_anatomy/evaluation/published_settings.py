"""What papers of the self–self family set beside the protocol that they share: `--like sclip`.

Facts read in the configurations of their released code, and the mIoU that they report for ViT-B/16 with OpenAI's weights. The
texts of their lists of class names are not here (several have no licence): their authors' files are read with `names`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clip_anatomy.errors import BadSpec
from clip_anatomy.evaluation.protocols import PROTOCOLS, SemanticSettings

__all__ = ["PUBLISHED", "Published", "settings_like"]


@dataclass(frozen=True)
class Published:
    """One paper's settings.

    Attributes:
        told: paper and release.
        common: settings of all its data sets, where they differ from the presets.
        by_protocol: further ones by protocol; only protocols named here were released.
        reported: mIoU in percent by protocol, of ViT-B/16 with OpenAI's weights, without refinement.
        left: what still differs, beside the class names.
    """

    told: str
    common: Mapping[str, Any]
    by_protocol: Mapping[str, Mapping[str, Any]]
    reported: Mapping[str, float] = field(repr=False)
    left: str = "half precision"


PUBLISHED: dict[str, Published] = {
    "sclip": Published(
        "SCLIP (Wang et al. 2024), released configurations",
        {"method": "sclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1, "area": 0.1, "logit_scale": 65.0},
            "context60": {"threshold": 0.1, "logit_scale": 50.0},
            "coco-object": {"threshold": 0.1, "logit_scale": 50.0},
            "voc20": {},
            "context59": {},
            "coco-stuff": {"side": 448},
            "cityscapes": {"side": 560},
            "ade20k": {},
        },
        {
            "voc21": 59.63, "context60": 31.74, "coco-object": 33.52, "voc20": 81.54, "context59": 34.46,
            "coco-stuff": 22.77, "cityscapes": 32.34, "ade20k": 16.45,
        },
    ),
    "clearclip": Published(
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
    "naclip": Published(
        "NACLIP (Hajimiri et al. 2025), released configurations",
        {"method": "naclip", "logit_scale": 40.0},
        {
            "voc21": {"threshold": 0.1},
            "context60": {"threshold": 0.1},
            "coco-object": {"threshold": 0.1},
            "voc20": {},
            "context59": {},
            "coco-stuff": {"side": 448},
            "cityscapes": {"side": 560},
            "ade20k": {},
        },
        {
            "voc21": 58.9, "context60": 32.2, "coco-object": 33.2, "voc20": 79.7, "context59": 35.2, "coco-stuff": 23.3,
            "cityscapes": 35.5, "ade20k": 17.4,
        },
        "half precision; the release also refines by PAMR, ten steps, unless it is switched off",
    ),
}  # fmt: skip
"""Name → settings. Rows of `reported`: SCLIP and NACLIP from their own pages, ClearCLIP from its table."""


def settings_like(name: str, protocol: str) -> dict[str, Any]:
    """A paper's settings of a protocol, in full.

    Args:
        name: of PUBLISHED.
        protocol: of PROTOCOLS.

    Raises:
        BadSpec: an unknown paper, or one that released nothing for this protocol.

    Example:
        >>> settings_like("clearclip", "voc21")["threshold"]
        0.5
    """
    if name not in PUBLISHED:
        raise BadSpec(f"there are no settings like {name!r}. Type one of: {', '.join(PUBLISHED)}")
    paper = PUBLISHED[name]
    if protocol not in paper.by_protocol:
        raise BadSpec(f"{paper.told} has none for {protocol}. Type one of: {', '.join(paper.by_protocol)}")
    assert isinstance(PROTOCOLS[protocol].settings, SemanticSettings)
    # A threshold belongs to a paper: where it names none there is none, whatever the preset has.
    return {"threshold": None, "area": None, **paper.common, **paper.by_protocol[protocol]}
