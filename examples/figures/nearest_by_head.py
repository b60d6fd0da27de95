"""Decomposition, Figure 5: nearest pictures by one head, for several heads.

clip-anatomy search val.store photo.jpg --heads texture
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Search by the surest heads of three roles."""
    query = on.store.rows()[3]
    surest = sorted((one for one in on.atlas.heads if one.role.named), key=lambda one: one.role.confidence)
    heads = {one.role.name: one.name for one in surest}
    rows = {}
    for role in list(heads)[-3:]:
        hits = ca.search(on.store, f"id:{query.id}", heads[role], 5, clip=on.clip).hits
        rows[f"by head {heads[role]} ({role})"] = [
            (on.picture(query.index), "query"),
            *((on.picture(hit.row.index), f"{hit.score:.2f}") for hit in hits if hit.row.index != query.index),
        ][:5]
    return sheet("Nearest by one head", rows)
