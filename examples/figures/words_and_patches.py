"""CLIP Surgery, multimodal visualisation: each word of a text and the patches it meets.

clip-anatomy pairs photo.jpg --text "a dog on the beach" --model open_clip:ViT-B-16/openai
"""

from panels import Setting

import clip_anatomy as ca


def draw(on: Setting):
    """Split the cosine of a picture and its text over patches and words."""
    return ca.pairs(on.clip, on.pictures[0], on.texts[0]).figure()
