"""CLIP Surgery, Figure 3: a text's map with query–key attention in the last block, and with that of one thing with itself.

clip-anatomy heatmap photo.jpg --text "a dog" --method raw,vv --model open_clip:ViT-B-16/openai
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Draw the maps of one text with each kind of attention in the last block."""
    rows = {}
    for kind in ("qk", "qq", "kk", "vv"):
        how = ca.DenseAttention((kind,), residual=True, ffn=True)
        maps = [ca.heatmap(on.clip, [one], [text], how) for one, text in zip(on.pictures, on.texts, strict=True)]
        rows[f"{kind} attention"] = [(one.overlay(), text) for one, text in zip(maps, on.texts, strict=True)]
    return sheet("The last block's attention replaced", rows)
