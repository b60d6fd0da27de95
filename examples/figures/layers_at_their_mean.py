"""Decomposition, Figure 2: accuracy with the heads of all layers up to each held at their mean.

clip-anatomy ablate val.store --study layers
"""

from panels import Setting

import clip_anatomy as ca


def draw(on: Setting):
    """Ablate layers from the first up."""
    return ca.study(on.store, "layers", clip=on.clip).figure()
