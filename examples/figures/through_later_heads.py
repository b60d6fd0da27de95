"""Reviewers of the decomposition: what do neurons and heads do through later heads (second order)?

clip-anatomy paths photos/ --model open_clip:ViT-B-32/openai
"""

from panels import Setting

import clip_anatomy as ca


def draw(on: Setting):
    """Rank neurons, MLPs and heads by what they do through later heads."""
    return ca.paths(on.clip, [on.picture(row) for row in range(12)], top=4).summary()
