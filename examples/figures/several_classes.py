"""CLIP Surgery, open-vocabulary segmentation: each pixel goes to the best of several texts.

clip-anatomy segment photo.jpg --text "a dog" --text "a beach" --method surgery --background sky --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Paint all texts into each picture."""
    rows = {}
    for method in ("decomposition", "surgery"):
        found = ca.segment(on.clip, on.pictures, on.texts, method)
        rows[method] = [(found.overlay(at), text) for at, text in enumerate(on.texts)]
    return sheet("Several texts at once", rows)
