"""Decomposition, Figure 6: which patches the heads read a text from.

clip-anatomy heatmap photo.jpg --text "a dog" --text "a cat" --model open_clip:ViT-L-14/laion2b_s32b_b82k
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Draw each text over each picture, on one scale."""
    maps = ca.heatmap(on.clip, on.pictures, on.texts)
    names = [one.rsplit("/", 1)[-1] for one in on.pictures]
    rows = {one: [(maps.overlay(at, text), text) for text in on.texts] for at, one in enumerate(names)}
    return sheet("Where each text is read", rows)
