"""Decomposition, Figure 3: accuracy with the heads of the last layers replaced by their reconstruction from m texts.

python examples/gallery.py texts_per_head --model open_clip:ViT-L-14/laion2b_s32b_b82k --store val.store
"""

from panels import Setting, curves

import clip_anatomy as ca

COUNTS = (1, 2, 4, 8, 16, 24)


def draw(on: Setting):
    """Take the texts from the whole pool, and from a tenth of it."""
    late = f"layer={on.store.manifest.layers[-4]}-{on.store.manifest.layers[-1]}"
    mean = ca.study(on.store, select=[late], clip=on.clip)
    lines = {"whole model": [100 * mean.whole.accuracy] * len(COUNTS)}
    for share in (1.0, 0.1):
        pool = on.pool(share)
        span = ca.textspan(on.store.moments(), pool, max(COUNTS))
        found = [ca.study(on.store, select=[late], by="texts", span=span.first(m), clip=on.clip) for m in COUNTS]
        lines[f"{len(pool)} texts"] = [100 * one.effects[0].accuracy for one in found]
    lines["their mean"] = [100 * mean.effects[0].accuracy] * len(COUNTS)
    return curves(f"Heads of {late} from m texts", COUNTS, lines, ("texts a head, m", "accuracy, %"))
