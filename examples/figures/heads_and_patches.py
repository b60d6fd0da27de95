"""Decomposition, Figure 7: what one head says of a picture, and where it reads it.

python examples/gallery.py heads_and_patches --model open_clip:ViT-L-14/laion2b_s32b_b82k --store val.store --picture photo.jpg
"""

from panels import Setting, sheet

import clip_anatomy as ca


def draw(on: Setting):
    """Map heads of three roles toward that of their texts which they write most of, picture by picture."""
    rows = {}
    for head in (on.atlas.with_role(role)[0] for role in ("texture", "colour", "shape")):
        texts, cells = [one.text for one in head.texts], []
        for one in on.pictures:
            wrote = ca.decompose(on.clip, [one]).toward(on.clip.encode_text(texts)).heads[0, head.layer, head.head]
            text = texts[int(wrote.argmax())]
            cells.append((ca.heatmap(on.clip, [one], [text], heads=head.name).overlay(), text))
        rows[f"head {head.name} ({head.role.name})"] = cells
    return sheet("Heads × patches", rows)
