"""Reviewers of the decomposition: how do its maps compare with MaskCLIP's?

clip-anatomy heatmap photo.jpg --text "a dog" --method decomposition,maskclip,maskclip_ffn --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Draw what heads read from each patch, and what the last block's values would answer there."""
    rows = {}
    for method in ("decomposition", "maskclip", "maskclip_ffn"):
        maps = [ca.heatmap(on.clip, [one], [text], method) for one, text in zip(on.pictures, on.texts, strict=True)]
        rows[method] = [(one.overlay(), text) for one, text in zip(maps, on.texts, strict=True)]
    return sheet("What the class token read, and what patches answer", rows)
