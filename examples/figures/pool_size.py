"""Reviewers of the decomposition: how many texts does a pool need, and how many a head?

python examples/gallery.py pool_size --model open_clip:ViT-L-14/laion2b_s32b_b82k --store val.store
"""

from panels import Setting, curves

import clip_anatomy as ca

COUNTS = (1, 5, 10, 20, 30)


def draw(on: Setting):
    """Draw the share of heads' variance that m texts explain, by the size of the pool."""
    lines, moments = {}, on.store.moments()
    for share in (1.0, 0.3, 0.1):
        pool = on.pool(share)
        span = ca.textspan(moments, pool, max(COUNTS))
        weight = moments.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        explained = (span.cumulative * weight[..., None]).sum((0, 1)) / weight.sum()
        lines[f"{len(pool)} texts"] = [100 * float(explained[m - 1]) for m in COUNTS]
    return curves("What m texts explain of the heads", COUNTS, lines, ("texts a head, m", "variance, %"))
