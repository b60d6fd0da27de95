"""Decomposition, Figure 1: a head's texts, where one of them is read by all heads, and where by this head alone.

python examples/gallery.py overview --model open_clip:ViT-L-14/laion2b_s32b_b82k --store val.store --picture photo.jpg --text "a dog"
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Show the surest head for texture beside the whole model."""
    head = on.atlas.with_role("texture")[0]
    text = head.ordered[1].text
    rows = {}
    for name, heads in ((f"“{text}”, all heads", None), (f"head {head.name} alone", head.name)):
        maps = ca.heatmap(on.clip, on.pictures, [text], heads=heads)
        rows[name] = [(maps.overlay(at), "") for at in range(len(on.pictures))]
    return sheet(f"Head {head.name}: {', '.join(one.text for one in head.ordered[:4])}", rows)
