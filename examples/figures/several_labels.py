"""CLIP Surgery, multi-label recognition: mean average precision of plain cosines and of feature surgery.

clip-anatomy bench nus-wide NUS-WIDE --method embedding,surgery --model open_clip:ViT-B-16/openai
"""

import torch
from panels import Setting, world_of_two

from clip_anatomy.evaluation.metrics import MultiLabel
from clip_anatomy.maps.clip_surgery import feature_surgery
from clip_anatomy.results import text_table


def draw(on: Setting):
    """Ask pictures of two kinds of objects for every shape, colour and texture."""
    embeddings, texts, labels = world_of_two(on.clip, 300)
    cosines = torch.nn.functional.normalize(embeddings, dim=-1) @ texts.T
    surgery = feature_surgery(embeddings[:, None], texts)[:, 0]
    rows = []
    for name, scores in (("cosine", cosines), ("feature surgery", surgery), ("chance", torch.zeros_like(cosines))):
        found = MultiLabel(tuple(scores), tuple(labels))
        parts = (slice(0, 12), slice(12, 20), slice(20, 24), slice(0, 24))
        rows.append([name, *(f"{100 * float(found.class_ap[part].mean()):.1f}" for part in parts)])
    return text_table(["mAP, percent", ">12 shapes", ">8 colours", ">4 textures", ">all 24"], rows)
