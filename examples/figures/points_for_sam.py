"""CLIP Surgery, interactive segmentation: points and boxes for SAM, one text, several, and "a + b".

clip-anatomy segment photo.jpg --text "a dog" --text "a cat" --together "a dog + a cat" --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.report.point_marks import marked


def draw(on: Setting):
    """Mark the prompts of two texts, and of both together."""
    texts = list(on.texts[:2])
    asked = [(text, (text,)) for text in texts] + [("both", tuple(texts))]
    rows = {}
    for one in on.pictures[:2]:
        found, picture = ca.segment(on.clip, [one], texts, refine="pamr"), Image.open(one).convert("RGB")
        rows[one.rsplit("/", 1)[-1]] = [(marked(picture, found.prompts(0, *which)), name) for name, which in asked]
    return sheet("Points and boxes for SAM", rows)
