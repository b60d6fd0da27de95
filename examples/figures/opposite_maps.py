"""CLIP Surgery, Figures 1 and 2: plain CLIP's maps are noisy and light up beside the thing; surgery's do not.

clip-anatomy heatmap photo.jpg --text "a dog" --method raw,surgery --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Draw plain cosines of patches, CLIP Surgery, and the exact shares."""
    rows = {}
    for method in ("raw", "surgery", "decomposition"):
        maps = [ca.heatmap(on.clip, [one], [text], method) for one, text in zip(on.pictures, on.texts, strict=True)]
        rows[method] = [(one.overlay(), text) for one, text in zip(maps, on.texts, strict=True)]
    return sheet("Plain CLIP, CLIP Surgery, decomposition", rows)
