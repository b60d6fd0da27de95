"""Decomposition, appendix: masks from its maps beside those of other methods.

clip-anatomy segment photo.jpg --text "a dog" --text "a cat" --model open_clip:ViT-L-14/laion2b_s32b_b82k
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Segment each picture by its text, with four methods."""
    rows = {}
    for method in ("decomposition", "gradcam", "chefer", "raw"):
        found = [ca.segment(on.clip, [one], [text], method) for one, text in zip(on.pictures, on.texts, strict=True)]
        rows[method] = [(one.overlay(), text) for one, text in zip(found, on.texts, strict=True)]
    return sheet("The same texts, four methods", rows)
