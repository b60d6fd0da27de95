"""Decomposition, Figure 4: the pictures for which a head writes most along its first text.

clip-anatomy atlas val.store
"""

from panels import Setting, sheet


def draw(on: Setting):
    """Show three heads with different roles."""
    surest = sorted((one for one in on.atlas.heads if one.role.named), key=lambda one: -one.role.confidence)
    heads = {one.role.name: one for one in reversed(surest)}
    rows = {
        f"head {one.name} ({role}): “{one.leading.text}”": [
            (on.picture(top.row), f"{top.value:+.3f}") for top in one.leading.top_images[:4]
        ]
        for role, one in sorted(heads.items(), key=lambda pair: -pair[1].role.confidence)[:3]
    }
    return sheet("The pictures behind the texts", rows, "what the head writes beyond its mean, in parts of a cosine")
