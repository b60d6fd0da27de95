"""Reviewers of the decomposition: the dual, a sentence split over words and heads of the text tower.

clip-anatomy explain photo.jpg --text "a dog on the beach" --text-tower --model open_clip:ViT-B-16/laion2b_s34b_b88k
"""

from panels import Setting

import clip_anatomy as ca


def draw(on: Setting):
    """Split the first text, toward the first pictures."""
    return ca.explain_text(on.clip, on.texts[0], on.pictures[:3]).figure()
