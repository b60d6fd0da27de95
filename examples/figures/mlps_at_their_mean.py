"""Decomposition, Table 1: accuracy with MLPs held at their mean.

clip-anatomy ablate val.store --study mlps
"""

from panels import Setting

import clip_anatomy as ca


def draw(on: Setting):
    """Ablate all MLPs, then each."""
    return ca.study(on.store, "mlps", clip=on.clip).summary()
