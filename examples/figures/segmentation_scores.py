"""Decomposition, Table 4: segmentation by maps of several methods.

clip-anatomy bench imagenet-seg-paper gtsegs_ijcv.mat --method decomposition,attention,rollout,gradcam,chefer,legrad,maskclip --model open_clip:ViT-L-14/laion2b_s32b_b82k
"""

from panels import Setting

import clip_anatomy as ca
from clip_anatomy.results import text_table

METHODS = "decomposition,attention,rollout,gradcam,chefer,legrad,maskclip"


def draw(on: Setting):
    """Measure on pictures of the demo world whose objects are known."""
    found = ca.bench(on.clip, pictures=40, method=METHODS)
    rows = [
        [row.method, *(f"{100 * score:.1f}" for score in (row.pixel_accuracy, row.mean_iou, row.average_precision))]
        for row in found.rows
    ]
    return text_table(["method", ">pixel accuracy", ">mIoU", ">mAP"], rows)
