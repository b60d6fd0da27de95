"""CLIP Surgery, Figures 4 and 5: what all texts share makes maps noisy; feature surgery takes it away.

clip-anatomy heatmap photo.jpg --text "a dog" --text "a cat" --method surgery --against "each other" --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Subtract nothing, a neutral set of texts, and what these texts share."""
    rows = {}
    for against in ("nothing", "neutral", "each other"):
        maps = ca.heatmap(on.clip, on.pictures[:1], on.texts, "surgery", against=against)
        rows[f"subtracted: {against}"] = [(maps.overlay(0, at), text) for at, text in enumerate(on.texts)]
    return sheet("Feature surgery", rows)
