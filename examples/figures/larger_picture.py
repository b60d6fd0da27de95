"""CLIP Surgery's README: the map of a larger picture.

clip-anatomy heatmap photo.jpg --text "a dog" --method surgery --size 512 --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Draw the maps at the model's own size, and at twice that."""
    rows = {}
    for times in (1, 2):
        side = times * on.clip.preprocess.size[0]
        maps = [ca.heatmap(on.clip, [one], [text], size=side) for one, text in zip(on.pictures, on.texts, strict=True)]
        rows[f"{side} pixels"] = [(one.overlay(), text) for one, text in zip(maps, on.texts, strict=True)]
    return sheet("Larger pictures", rows)
