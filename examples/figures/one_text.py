"""CLIP Surgery's README: one text alone, against the empty text.

clip-anatomy heatmap photo.jpg --text "a dog" --method surgery --against "" --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Draw one text in each picture, against the empty one and against neutral texts."""
    rows = {}
    for against in ("", "neutral"):
        maps = ca.heatmap(on.clip, on.pictures, on.texts[:1], "surgery", against=against)
        rows[f"subtracted: {against or 'the empty text'}"] = [(maps.overlay(at), "") for at in range(len(maps))]
    return sheet(f"“{on.texts[0]}” alone", rows)
