"""Decomposition, Table 3: worst group before and after the heads that write a spurious cue are held at their mean.

clip-anatomy repair waterbirds/ --protocol paper --model open_clip:ViT-L-14/laion2b_s32b_b82k
"""

from panels import Setting

import clip_anatomy as ca


def draw(on: Setting):
    """Hold the heads whose role is the background."""
    cue = "role=background" if on.clip.name == "demo" else "role=place"
    return ca.study(on.store, select=[cue], clip=on.clip, atlas=on.atlas).summary()
